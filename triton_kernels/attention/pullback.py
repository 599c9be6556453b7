"""Launchers of the pullback of attention, and of the pullback together with its tangent."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dtypes import accumulator, partial_dtype
from .._launch import launch
from ._adjoint_tiles import Facts, _delta_kernel
from .arguments import (
    Operands,
    Scores,
    are_alike,
    capped,
    head_strides,
    is_wide,
    padded,
    rule_arguments,
    shared_size,
    unit_last,
    with_front,
)
from .bias import attention_bias
from .columns import _columns_kernel
from .config import Config, adjoint_config, precision, sums_apart
from .rows import _rows_kernel

_NONE = Operands()
_STORED = 128  # rows of the largest tile: what is known of rows is stored for whole tiles
_NO_NEEDS = Operands(False, False, False, False)  # noqa: FBT003


def attention_vjp(
    at: Operands,
    o: Tensor,
    lse: Tensor,
    w: Tensor | None,
    lse_bar: Tensor | None,
    options: Scores,
    needs: Operands,
) -> Operands:
    """The cotangents of query, key, value and bias: a launch for row scalars, one by rows and one by columns.

    Args:
        at: The arguments, see `attention_forward`.
        o: The output, (N, B, Hq, Lq, dv).
        lse: ℓ, (N, B, Hq, Lq).
        w: Cotangent of o, or None.
        lse_bar: Cotangent of ℓ, or None.
        options: What is done to the scores.
        needs: Which cotangents are wanted.

    Returns:
        The cotangents, (N, ...), None where not wanted.
    """
    return attention_second_order(at, _NONE, o, lse, None, None, w, lse_bar, None, None, options, needs, _NO_NEEDS)[0]


def attention_second_order(
    at: Operands,
    dots: Operands,
    o: Tensor,
    lse: Tensor,
    o_dot: Tensor | None,
    lse_dot: Tensor | None,
    w: Tensor | None,
    lse_bar: Tensor | None,
    u: Tensor | None,
    lse_bar_dot: Tensor | None,
    options: Scores,
    needs_first: Operands,
    needs_second: Operands,
) -> tuple[Operands, Operands]:
    """The pullback of (w, λ) and its tangent in the direction of the dots and (u, μ).

    Args:
        at: The arguments, see `attention_forward`.
        dots: Their tangents, or None each.
        o: The output.
        lse: ℓ.
        o_dot: Its tangent; needed for a tangent of the pullback.
        lse_dot: The tangent of ℓ; likewise.
        w: Cotangent of o, or None.
        lse_bar: Cotangent of ℓ, or None.
        u: Tangent of w, or None.
        lse_bar_dot: Tangent of the cotangent of ℓ, or None.
        options: What is done to the scores.
        needs_first: Which cotangents are wanted.
        needs_second: Which tangents of cotangents are wanted.

    Returns:
        The cotangents and their tangents, (N, ...), None where not wanted.
    """
    q, k, v, q_dot, k_dot, v_dot = (unit_last(t) for t in (*at[:3], *dots[:3]))
    bias, bias_dot = at.bias, dots.bias
    if options.mask is not None:
        options = options._replace(mask=with_front(options.mask))
    second = any(needs_second)
    batch, heads, rows, dk = q.shape[1:]
    key_heads, columns, dv = v.shape[2:]
    n = shared_size(
        q, k, v, bias, q_dot, k_dot, v_dot, bias_dot, o, w, u, lse_bar, lse_bar_dot, options.mask, options.seed
    )
    wide = partial_dtype(q.dtype)
    first_results = _results(n, q, k, v, bias, needs_first)
    second_results = _results(n, q, k, v, bias, needs_second)
    if min(batch, heads, rows, columns, key_heads) == 0:
        for tensor in (*first_results, *second_results):
            if tensor is not None:
                tensor.zero_()
        return first_results, second_results

    (o, o_n), (o_dot, od_n), (w, w_n), (u, u_n) = (_rows_of(t) for t in (o, o_dot, w, u))
    (lse, lse_n), (lse_dot, ld_n) = (_rows_of(t) for t in (lse, lse_dot))
    (lse_bar, lb_n), (lse_bar_dot, lbd_n) = (_rows_of(t) for t in (lse_bar, lse_bar_dot))
    stored = -(-rows // _STORED) * _STORED
    scalars = torch.empty((4 if second else 2, n, batch * heads, stored), dtype=wide, device=q.device)
    known_lse, delta, known_dot, delta_dot = (*scalars, *((None, None) if not second else ()))
    scalar_rows = 16 if padded(dv) > 128 else 32
    launch(
        _delta_kernel,
        n * batch * heads * (stored // scalar_rows),
        q,
        o,
        o_dot if second else None,
        w,
        u if second else None,
        lse,
        lse_dot if second else None,
        lse_bar,
        lse_bar_dot if second else None,
        known_lse,
        delta,
        known_dot,
        delta_dot,
        o_n,
        od_n,
        w_n,
        u_n,
        lse_n,
        ld_n,
        lb_n,
        lbd_n,
        rows,
        stored,
        stored // scalar_rows,
        batch * heads,
        DV=dv,
        BLOCK_DV=padded(dv),
        BLOCK_M=scalar_rows,
        ACC=accumulator(q.dtype),
        num_warps=4,
        num_stages=1,
        enable_fp_fusion=True,
    )
    rules = rule_arguments(options, bias, bias_dot if second else None)
    moving = (q_dot, k_dot, v_dot) if second else (None, None, None)
    tensors = (q, k, v, *moving)
    tail = (batch, heads, heads // key_heads, rows, columns, *rules.window)
    known = (w, u if second else None, known_lse, delta, known_dot, delta_dot)
    strides = (*(stride for t in tensors for stride in head_strides(t)), w_n, u_n, stored)

    wide_matrices = is_wide(*tensors, w, u, bias, bias_dot, options.mask)
    alike = are_alike(k, v, *moving[1:]) and are_alike(q, moving[0])

    def config_of(kind: str, second_needed: Any) -> Config:
        return adjoint_config(max(dk, dv), q, kind, options.blocks, second=bool(second_needed))

    def facts(
        config: Config, first_needed: Any, second_needed: Any, *, keys: bool = True, values: bool = True
    ) -> Facts:
        return Facts(
            dk,
            padded(dk),
            dv,
            padded(dv),
            config.block_m,
            config.block_n,
            bool(first_needed),
            bool(second_needed),
            keys,
            values,
            moving[0] is not None,
            moving[1] is not None,
            moving[2] is not None,
            w is not None,
            bool(second_needed) and u is not None,
            capped(options, q),
            options.left >= 0 or options.ranges is not None,
            wide_matrices,
            alike,
            precision(q.dtype),
            accumulator(q.dtype),
        )

    if needs_first.q or needs_second.q:
        config = config_of("rows", needs_second.q)
        row_blocks = -(-rows // config.block_m)
        launch(
            _rows_kernel,
            row_blocks * heads * batch * n,
            q,
            *tensors,
            *known,
            bias,
            bias_dot if second else None,
            *rules.pointers,
            *rules.key_lists,
            first_results.q,
            second_results.q,
            *strides,
            *rules.strides,
            *rules.key_list_strides,
            *tail,
            row_blocks,
            *rules.numbers,
            LISTED_ROWS=options.blocks.q_block if options.blocks else config.block_m,
            LISTED_COLUMNS=options.blocks.kv_block if options.blocks else config.block_n,
            FACTS=facts(config, needs_first.q, needs_second.q),
            **config.options(),
        )
    sums_keys, sums_values = needs_first.k or needs_second.k, needs_first.v or needs_second.v
    apart = sums_keys and sums_values and sums_apart(max(dk, dv), q, second=bool(needs_second.k or needs_second.v))
    for keys, values in ((True, False), (False, True)) if apart else ((sums_keys, sums_values),):
        if not (keys or values):
            continue
        sums_first = (needs_first.k and keys) or (needs_first.v and values)
        sums_second = (needs_second.k and keys) or (needs_second.v and values)
        config = config_of("columns" if keys else "values", sums_second)
        column_blocks = -(-columns // config.block_n)
        spans = None if options.ranges is None else spans_of(options.ranges, columns)
        mask, slopes, ranges, seed = rules.pointers
        *outer, seed_n = rules.strides
        launch(
            _columns_kernel,
            column_blocks * key_heads * batch * n,
            q,
            *tensors,
            *known,
            bias,
            bias_dot if second else None,
            mask,
            slopes,
            ranges,
            seed,
            spans,
            *rules.row_lists,
            first_results.k if keys else None,
            first_results.v if values else None,
            second_results.k if keys else None,
            second_results.v if values else None,
            *strides,
            *outer,
            0 if spans is None or spans.shape[0] == 1 else spans.stride(0),
            seed_n,
            *rules.row_list_strides,
            *tail,
            column_blocks,
            *rules.numbers,
            LISTED_ROWS=options.blocks.q_block if options.blocks else config.block_m,
            LISTED_COLUMNS=options.blocks.kv_block if options.blocks else config.block_n,
            FACTS=facts(config, sums_first, sums_second, keys=keys, values=values),
            **config.options(),
        )
    if needs_first.bias or needs_second.bias:
        config = config_of("bias", needs_second.bias)
        attention_bias(
            bias,
            n,
            tensors,
            known,
            strides,
            rules,
            bias_dot if second else None,
            tail,
            first_results.bias,
            second_results.bias,
            facts(config, needs_first.bias, needs_second.bias),
            config,
        )
    return first_results, second_results


def _results(n: int, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, needs: Operands) -> Operands:
    """Room for what is wanted."""
    return Operands(
        *(
            t.new_empty((n, *t.shape[1:])) if t is not None and needed else None
            for t, needed in zip((q, k, v, bias), needs, strict=True)
        )
    )


def _rows_of(tensor: Tensor | None) -> tuple[Any, int]:
    """Something for rows, contiguous but for the first axis, and the elements between two along that."""
    if tensor is None:
        return None, 0
    if tensor.shape[0] == 1 or tensor.stride(0) == 0:
        return tensor[:1].contiguous(), 0
    tensor = tensor.contiguous()
    return tensor, tensor.stride(0)


def spans_of(ranges: Tensor, columns: int) -> Tensor:
    """First row that sees a key and the end of those that do, int32 (B or 1, 2, Lk), from (B or 1, 3, Lq) of rows.

    Args:
        ranges: First keys and ends, which do not decrease.
        columns: Lk.

    Returns:
        The spans, computed on the device.
    """
    keys = torch.arange(columns, device=ranges.device, dtype=ranges.dtype).expand(ranges.shape[0], columns).contiguous()
    first = torch.searchsorted(ranges[:, 1].contiguous(), keys, right=True)
    end = torch.searchsorted(ranges[:, 0].contiguous(), keys, right=True)
    return torch.stack([first, end], 1).to(torch.int32)
