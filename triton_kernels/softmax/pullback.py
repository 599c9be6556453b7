"""Softmax and log_softmax: the VJP of their pullback, which reads the output alone."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false
# Constexprs take plain values, and decide what is bound.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator
from .._launch import launch
from .._layout import group_count
from .._rows import column_numbers, column_numbers_back, load_tile, row_sums
from ._tiles import (
    NO_MASK,
    MaskLayout,
    adjacent,
    column_offsets,
    load_keep,
    mask_rows,
    outer_strides,
    program_rows,
    programs,
    softmax_config,
)
from .apply import probabilities


@triton.jit(do_not_specialize=["groups", "outer", "mask_step", "mask_size_1", "mask_size_0"])
def _pullback_vjp_kernel(
    y_ptr,  # (groups, outer, n, inner): the output
    mask_ptr,
    y_bar_ptr,  # (groups, outer, n, inner)
    u_ptr,  # (groups, outer, n, inner): the cotangent of x̄
    y_bar_bar_ptr,  # (groups, outer, n, inner), contiguous, or None, like the next
    y_second_ptr,
    groups,
    outer,
    inner,
    n,
    y_group,
    y_outer,
    y_bar_group,
    y_bar_outer,
    u_group,
    u_outer,
    mask_step,
    mask_2,
    mask_1,
    mask_0,
    mask_size_1,
    mask_size_0,
    mask_inner,
    mask_col,
    scale: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    KIND: tl.constexpr,
    ACC: tl.constexpr,
    INNER: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The cotangents of ȳ and of y in x̄ = Jᵀ(y) ȳ: J u, and ∂⟨u, Jᵀ(y) ȳ⟩/∂y.

        softmax:      s [u ∘ (ȳ − ⟨y, ȳ⟩) − ȳ ⟨y, u⟩]
        log_softmax:  −s u ∘ exp(y) Σ ȳ

    One program: BLOCK_M rows of one group. Moves up to 5·size bytes an element; long rows are read twice.
    """
    group, o, i, valid = program_rows(groups, outer, inner, INNER, BLOCK_M)
    y_rows = y_ptr + group * y_group + o * y_outer + i
    y_bar_rows = y_bar_ptr + group * y_bar_group + o * y_bar_outer + i
    u_rows = u_ptr + group * u_group + o * u_outer + i
    mask_row = group * mask_step + o
    keep_rows = mask_rows(mask_ptr, mask_row, i, mask_2, mask_1, mask_0, mask_size_1, mask_size_0, mask_inner)
    out_rows = (group * outer + o) * n * inner + i
    s = tl.full([BLOCK_M, 1], scale, ACC)
    stop = BLOCK_N if ONE_PASS else n

    p = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    y_bar = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    u = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    along = tl.zeros([BLOCK_M, 1], ACC)  # ⟨p, u⟩
    against = tl.zeros([BLOCK_M, 1], ACC)  # ⟨p, ȳ⟩, for log_softmax Σ ȳ
    for start in range(0, stop, BLOCK_N):
        col = column_numbers(start, BLOCK_N)
        inside = valid & (col < n)
        keep = load_keep(mask_ptr, keep_rows, col, mask_col, inside)
        at = column_offsets(col, inner, INNER)
        p = probabilities(load_tile(y_rows + at, inside, ACC), keep, along, along, KIND, True)
        y_bar = load_tile(y_bar_rows + at, keep, ACC)
        u = load_tile(u_rows + at, keep, ACC)
        along_here, against_here = row_sums(p * u, p * y_bar if KIND == "softmax" else y_bar)
        along += along_here
        against += against_here
    for start in range(0, stop, BLOCK_N):
        col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
        inside = valid & (col < n)
        keep = load_keep(mask_ptr, keep_rows, col, mask_col, inside)
        at = column_offsets(col, inner, INNER)
        if not ONE_PASS:
            p = probabilities(load_tile(y_rows + at, inside, ACC), keep, along, along, KIND, True)
            y_bar = load_tile(y_bar_rows + at, keep, ACC)
            u = load_tile(u_rows + at, keep, ACC)
        if y_bar_bar_ptr is not None:
            pushed = p * (u - along) if KIND == "softmax" else tl.where(keep, u - along, 0.0)
            tl.store(y_bar_bar_ptr + out_rows + at, (s * pushed).to(y_bar_bar_ptr.dtype.element_ty), mask=inside)
        if y_second_ptr is not None:
            second = u * (y_bar - against) - y_bar * along if KIND == "softmax" else -u * p * against
            tl.store(y_second_ptr + out_rows + at, (s * second).to(y_second_ptr.dtype.element_ty), mask=inside)


def softmax_pullback_vjp(
    y: Tensor,
    y_bar: Tensor,
    u: Tensor,
    mask: MaskLayout = NO_MASK,
    *,
    kind: str,
    scale: float,
    wants_y_bar: bool = True,
    wants_y: bool = True,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute J u and ∂⟨u, Jᵀ(y) ȳ⟩/∂y, those that are wanted, one launch.

    Args:
        y: (K or 1, O, n, I), the output of softmax or log_softmax.
        y_bar: (K or 1, O, n, I).
        u: (K or 1, O, n, I), the cotangent of x̄.
        mask: What is kept.
        kind: "softmax" or "log_softmax".
        scale: s.
        wants_y_bar: Whether to compute J u.
        wants_y: Whether to compute the derivative by y.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        The two, (K, O, n, I), contiguous, dtype of y; None where not wanted.
    """
    _, outer, n, inner = y.shape
    groups = max(group_count(y, y_bar, u), mask.groups)
    if 0 in (y.shape[0], y_bar.shape[0], u.shape[0]):
        groups = 0
    shape = (groups, outer, n, inner)
    y_bar_bar = torch.empty(shape, dtype=y.dtype, device=y.device) if wants_y_bar else None
    y_second = torch.empty(shape, dtype=y.dtype, device=y.device) if wants_y else None
    if groups * outer * n * inner == 0 or not (wants_y_bar or wants_y):
        return y_bar_bar, y_second
    y, y_bar, u = adjacent(y), adjacent(y_bar), adjacent(u)  # pyright: ignore[reportAssignmentType]
    strides = [number for operand in (y, y_bar, u) for number in outer_strides(operand)]
    config = softmax_config(n, inner, y.element_size(), 4 + (mask.mask is not None), block_limit)
    launch(
        _pullback_vjp_kernel,
        programs(config, groups, outer, inner),
        y,
        y,
        mask.mask,
        y_bar,
        u,
        y_bar_bar,
        y_second,
        groups,
        outer,
        inner,
        n,
        *strides,
        *mask.arguments(outer),
        scale,
        KIND=kind,
        ACC=accumulator(y.dtype),
        INNER=inner > 1,
        **config.tiling(),
    )
    return y_bar_bar, y_second
