"""Launchers of the pullback of attention, alone and together with its tangent; calls alike are worked out once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dtypes import partial_dtype
from .._launch import launch_prepared
from ._pullback_call import GIVEN, Call, call_of
from .arguments import Operands, Scores, is_fine
from .config import call_key

_NONE = Operands()
_NO_NEEDS = Operands(False, False, False, False)  # noqa: FBT003
_calls: dict[tuple[Any, ...], Call] = {}
_MOST_CALLS = 1024


def attention_vjp(
    at: Operands,
    o: Tensor,
    lse: Tensor,
    w: Tensor | None,
    lse_bar: Tensor | None,
    options: Scores,
    needs: Operands,
    rest: Tensor | None = None,
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
        rest: What ℓ as rounded lacks, as `attention_forward` gives it; None for 0. Of operands of 16 bits not read.

    Returns:
        The cotangents, (N, ...), None where not wanted.
    """
    return attention_second_order(
        at, _NONE, o, lse, None, None, w, lse_bar, None, None, options, needs, _NO_NEEDS, rest
    )[0]


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
    rest: Tensor | None = None,
) -> tuple[Operands, Operands]:
    """The pullback of (w, λ) and its tangent in the direction of the dots and (u, μ).

    Args:
        at: The arguments, see `attention_forward`; these and all that follows may lack the axis N.
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
        rest: What ℓ as rounded lacks, see `attention_vjp`.

    Returns:
        The cotangents and their tangents, (N, ...), None where not wanted.
    """
    if not any(needs_second):
        dots, o_dot, lse_dot, u, lse_bar_dot = _NONE, None, None, None, None
    q, k, v, bias = at
    q_dot, k_dot, v_dot, bias_dot = dots
    blocks = options.blocks
    lists = (None,) * 4 if blocks is None else blocks[:4]
    tensors = [q, k, v, q_dot, k_dot, v_dot, bias, bias_dot, options.mask, o, o_dot, w, u, lse, lse_dot]
    tensors += [lse_bar, lse_bar_dot, rest if is_fine(q) else None]
    tensors += [options.slopes, options.ranges, options.seed, *lists]
    key = (*needs_first, *needs_second, *call_key(q, options, tensors))
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= _MOST_CALLS:
            _calls.clear()
        call = _calls[key] = call_of(tensors, options, needs_first, needs_second)
    results: list[Any] = [None if like is None else q.new_empty(like[0], dtype=like[1]) for like in call.results]
    if call.steps:
        _run(call, q, tensors, results)
    else:
        for tensor in results:
            if tensor is not None:
                tensor.zero_()
    return Operands(*results[:4]), Operands(*results[4:])


def _run(call: Call, q: Tensor, tensors: list[Any], results: list[Any]) -> None:
    """Launch the kernels of a call that computes something."""
    for i, only_first in call.copied:
        tensors[i] = (tensors[i][:1] if only_first else tensors[i]).contiguous()
    known: list[Any] = [*q.new_empty(call.known, dtype=partial_dtype(q.dtype))]
    rest = known.pop() if is_fine(q) else None
    known += [None] * (4 - len(known))
    spans = spans_of(tensors[GIVEN.index("ranges")], call.spans) if call.spans else None
    everything = (*tensors, *known, rest, spans, *results, None)
    for prepared, places in call.steps:
        launch_prepared(prepared, q, [everything[i] for i in places])


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
