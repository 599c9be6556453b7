"""An elementwise loss summed over rows with its tangent, and the pullback."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator, partial_dtype
from .._elements import element_config
from .._launch import launch, multiprocessors
from .._layout import group_count, group_stride, unit_columns
from .._partials import partial_sums, sum_partials
from .._rows import load_tile
from .jets import loss_jet


@triton.jit(do_not_specialize=["rows", "parts", "per_part"])
def _loss_kernel(
    x_ptr,  # (groups, rows, n)
    t_ptr,  # (groups, rows, n)
    x_dot_ptr,  # (groups, rows, n) or None
    t_dot_ptr,  # (groups, rows, n) or None
    y_ptr,  # (groups·rows, parts), contiguous, or None; (groups·rows, n) if not SUM
    y_dot_ptr,  # the same
    rows,
    parts,
    per_part,
    n,
    x_group,
    x_row,
    t_group,
    t_row,
    x_dot_group,
    x_dot_row,
    t_dot_group,
    t_dot_row,
    scale: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    delta: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    LOSS: tl.constexpr,
    SUM: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Parts of s Σ e and of s Σ (e_x ẋ + e_t ṫ), or their terms.

    One program: per_part elements of a row of one group. Moves (operands)·size bytes an element, and the results of as
    many elements if not SUM.
    """
    program = tl.program_id(0).to(tl.int64)
    part = program % parts
    full_row = program // parts
    group, row = full_row // rows, full_row % rows
    s = tl.full([BLOCK], scale, ACC)
    y = tl.zeros([BLOCK], ACC)
    y_dot = tl.zeros([BLOCK], ACC)
    for start in range(0, per_part, BLOCK):
        within = start + tl.arange(0, BLOCK)
        at = part * per_part + within
        inside = (within < per_part) & (at < n)
        x = load_tile(x_ptr + group * x_group + row * x_row + at, inside, ACC)
        # Past the end, 1: the logarithm of a target that is 0 would be no number.
        t = tl.load(t_ptr + group * t_group + row * t_row + at, mask=inside, other=1.0).to(ACC)
        e, e_x, e_t = loss_jet(x, t, delta, LOSS)
        term = tl.zeros([BLOCK], ACC)
        if x_dot_ptr is not None:
            term += e_x * load_tile(x_dot_ptr + group * x_dot_group + row * x_dot_row + at, inside, ACC)
        if t_dot_ptr is not None:
            term += e_t * load_tile(t_dot_ptr + group * t_dot_group + row * t_dot_row + at, inside, ACC)
        if SUM:
            y += tl.where(inside, e, 0.0)
            y_dot += tl.where(inside, term, 0.0)
        else:
            if y_ptr is not None:
                tl.store(y_ptr + full_row * n + at, (s * e).to(y_ptr.dtype.element_ty), mask=inside)
            if y_dot_ptr is not None:
                tl.store(y_dot_ptr + full_row * n + at, (s * term).to(y_dot_ptr.dtype.element_ty), mask=inside)
    if SUM:
        if y_ptr is not None:
            total = tl.sum(s * y, axis=0)
            tl.store(y_ptr + program, total.to(y_ptr.dtype.element_ty))
        if y_dot_ptr is not None:
            total_dot = tl.sum(s * y_dot, axis=0)
            tl.store(y_dot_ptr + program, total_dot.to(y_dot_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["rows", "blocks"])
def _loss_vjp_kernel(
    y_bar_ptr,  # (groups, rows, 1); (groups, rows, n) if not SUM
    x_ptr,  # (groups, rows, n)
    t_ptr,  # (groups, rows, n)
    x_bar_ptr,  # (groups, rows, n), contiguous, or None, like the next
    t_bar_ptr,
    rows,
    blocks,
    n,
    y_bar_group,
    y_bar_row,
    x_group,
    x_row,
    t_group,
    t_row,
    scale: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    delta: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    LOSS: tl.constexpr,
    SUM: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """x̄ = s ȳ e_x and t̄ = s ȳ e_t. One program: BLOCK elements of a row. Moves (2 + results)·size bytes an element."""
    program = tl.program_id(0).to(tl.int64)
    full_row = program // blocks
    group, row = full_row // rows, full_row % rows
    at = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    x = load_tile(x_ptr + group * x_group + row * x_row + at, inside, ACC)
    t = tl.load(t_ptr + group * t_group + row * t_row + at, mask=inside, other=1.0).to(ACC)
    _, e_x, e_t = loss_jet(x, t, delta, LOSS)
    y_bar_at = y_bar_ptr + group * y_bar_group + row * y_bar_row
    y_bar = tl.load(y_bar_at).to(ACC) if SUM else load_tile(y_bar_at + at, inside, ACC)
    y_bar = y_bar * tl.full([BLOCK], scale, ACC)
    if x_bar_ptr is not None:
        tl.store(x_bar_ptr + full_row * n + at, (y_bar * e_x).to(x_bar_ptr.dtype.element_ty), mask=inside)
    if t_bar_ptr is not None:
        tl.store(t_bar_ptr + full_row * n + at, (y_bar * e_t).to(t_bar_ptr.dtype.element_ty), mask=inside)


def _strides(tensor: Tensor | None) -> tuple[int, int]:
    return (0, 0) if tensor is None else (group_stride(tensor), tensor.stride(1))


def elementwise_loss(
    loss: str,
    x: Tensor,
    t: Tensor,
    x_dot: Tensor | None = None,
    t_dot: Tensor | None = None,
    *,
    scale: float = 1.0,
    delta: float = 1.0,
    reduce: bool = True,
    wants_y_dot: bool = False,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute y = s Σ e and ẏ = s Σ (e_x ẋ + e_t ṫ): one launch, and one for each sum that several programs share.

    Args:
        loss: Its name in the list of this package.
        x: (K or 1, M, N), any strides, like all operands.
        t: (K or 1, M, N).
        x_dot: (K or 1, M, N), or None for zero.
        t_dot: (K or 1, M, N), or None for zero.
        scale: s.
        delta: δ of huber.
        reduce: Whether to sum over N.
        wants_y_dot: Whether to compute ẏ.
        block_limit: Elements of a tile at most, for tests.

    Returns:
        y and ẏ, (K, M, 1) each, or (K, M, N) without reduction; dtype of x.
    """
    rows, n = x.shape[1:]
    k = group_count(x, t, x_dot, t_dot)
    columns = 1 if reduce else n
    results = [
        torch.empty((k * rows, columns), dtype=x.dtype, device=x.device) if wanted else None
        for wanted in (True, wants_y_dot)
    ]
    if k * rows * n:
        x, t, x_dot, t_dot = unit_columns(x), unit_columns(t), unit_columns(x_dot), unit_columns(t_dot)
        config = element_config(x.element_size(), block_limit)
        blocks = -(-n // config.block)
        wanted = max(1, 8 * multiprocessors(x.device) // (k * rows)) if reduce else blocks
        per_part = -(-blocks // min(blocks, wanted)) * config.block
        parts = -(-n // per_part)
        partials = [
            None if r is None else partial_sums(k * rows, parts, r, partial_dtype(x.dtype)) if reduce else r
            for r in results
        ]
        launch(
            _loss_kernel,
            k * rows * parts,
            x,
            x,
            t,
            x_dot,
            t_dot,
            *partials,
            rows,
            parts,
            per_part,
            n,
            *_strides(x),
            *_strides(t),
            *_strides(x_dot),
            *_strides(t_dot),
            scale,
            delta,
            LOSS=loss,
            SUM=reduce,
            ACC=accumulator(x.dtype),
            **config.tiling(),
        )
        for partial, result in zip(partials, results, strict=True):
            if reduce and partial is not None and result is not None:
                sum_partials(partial, result)
    elif reduce:
        for result in results:
            if result is not None:
                result.fill_(0.0 * scale)
    y, y_dot = (None if r is None else r.reshape(k, rows, columns) for r in results)
    assert y is not None
    return y, y_dot


def elementwise_loss_vjp(
    loss: str,
    y_bar: Tensor,
    x: Tensor,
    t: Tensor,
    *,
    scale: float = 1.0,
    delta: float = 1.0,
    reduce: bool = True,
    needs_x: bool = True,
    needs_t: bool = True,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute x̄ = s ȳ e_x and t̄ = s ȳ e_t, one launch.

    Args:
        loss: Its name in the list of this package.
        y_bar: (K or 1, M, 1), or (K or 1, M, N) without reduction; any strides, like all operands.
        x: (K or 1, M, N).
        t: (K or 1, M, N).
        scale: s.
        delta: δ of huber.
        reduce: Whether the loss was summed over N.
        needs_x: Whether to compute x̄.
        needs_t: Whether to compute t̄.
        block_limit: Elements of a program at most, for tests.

    Returns:
        x̄ and t̄, (K, M, N), contiguous, dtypes of x and t, or None.
    """
    rows, n = x.shape[1:]
    k = group_count(y_bar, x, t)
    x_bar = torch.empty((k, rows, n), dtype=x.dtype, device=x.device) if needs_x else None
    t_bar = torch.empty((k, rows, n), dtype=t.dtype, device=x.device) if needs_t else None
    if k * rows * n and (needs_x or needs_t):
        y_bar, x, t = y_bar if reduce else unit_columns(y_bar), unit_columns(x), unit_columns(t)
        config = element_config(x.element_size(), block_limit)
        blocks = -(-n // config.block)
        launch(
            _loss_vjp_kernel,
            k * rows * blocks,
            x,
            y_bar,
            x,
            t,
            x_bar,
            t_bar,
            rows,
            blocks,
            n,
            *_strides(y_bar),
            *_strides(x),
            *_strides(t),
            scale,
            delta,
            LOSS=loss,
            SUM=reduce,
            ACC=accumulator(x.dtype),
            **config.tiling(),
        )
    return x_bar, t_bar
