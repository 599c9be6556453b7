"""Softmax, log_softmax and logsumexp: the derivatives of ⟨a, J v⟩, and Jᵀa along with them."""

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
from .._rows import column_numbers, column_numbers_back, load_tile, row_sum, row_sums
from ._tiles import (
    NO_MASK,
    MaskLayout,
    adjacent,
    column_offsets,
    finite_top,
    inverse_total,
    load_keep,
    load_scores,
    mask_rows,
    outer_strides,
    program_rows,
    programs,
    raised,
    softmax_config,
)
from .apply import probabilities


@triton.jit
def load_vector(ptr, offset, keep, ACC: tl.constexpr):
    """Return a tile of a vector, 0 where it is absent or not kept."""
    if ptr is None:
        return tl.zeros(keep.shape, ACC)
    else:
        return load_tile(ptr + offset, keep, ACC)


@triton.jit
def load_number(ptr, offset, valid, ACC: tl.constexpr):
    """Return one number for each row, 0 where it is absent."""
    if ptr is None:
        return tl.zeros(valid.shape, ACC)
    else:
        return load_tile(ptr + offset, valid, ACC)


@triton.jit
def bent(p, y_dot, a, mean_a, sum_a, cross, KIND: tl.constexpr):
    """Return the derivative of ⟨a, J v⟩ by the scores, without its factor s: see the package's docstring."""
    if KIND == "softmax":
        return y_dot * (a - mean_a) - p * cross
    else:
        return -sum_a * p * y_dot


@triton.jit(do_not_specialize=["groups", "outer", "mask_step", "mask_size_1", "mask_size_0"])
def _second_order_kernel(
    x_ptr,  # (groups, outer, n, inner): scores, or the output y if FROM_OUTPUT
    mask_ptr,
    v_ptr,  # (groups, outer, n, inner): v, or ẏ = J v if FROM_OUTPUT
    a_ptr,  # (groups, outer, n, inner); (groups, outer, inner) for logsumexp; or None, like the next
    b_ptr,
    first_ptr,  # (groups, outer, n, inner), contiguous, or None, like the next
    second_ptr,
    pushed_ptr,  # (groups, outer, inner), contiguous, or None: J v of logsumexp
    groups,
    outer,
    inner,
    n,
    x_group,
    x_outer,
    v_group,
    v_outer,
    a_group,
    a_outer,
    b_group,
    b_outer,
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
    FROM_OUTPUT: tl.constexpr,
    ACC: tl.constexpr,
    INNER: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """first = Jᵀa,  second = Jᵀb + ∂⟨a, J v⟩/∂x,  pushed = J v.

    One program: BLOCK_M rows of one group. Moves (operands + results)·size bytes an element; rows longer than a tile
    are read twice, those of softmax from scores three times.
    """
    group, o, i, valid = program_rows(groups, outer, inner, INNER, BLOCK_M)
    x_rows = x_ptr + group * x_group + o * x_outer + i
    v_rows = v_ptr + group * v_group + o * v_outer + i
    mask_row = group * mask_step + o
    keep_rows = mask_rows(mask_ptr, mask_row, i, mask_2, mask_1, mask_0, mask_size_1, mask_size_0, mask_inner)
    out_rows = (group * outer + o) * n * inner + i
    s = tl.full([BLOCK_M, 1], scale, ACC)
    stop = BLOCK_N if ONE_PASS else n
    NUMBERS: tl.constexpr = KIND == "logsumexp"  # pyright: ignore[reportAssignmentType]
    a_rows = group * a_group + o * (inner if NUMBERS else a_outer) + i
    b_rows = group * b_group + o * (inner if NUMBERS else b_outer) + i

    source = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    v = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    a = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    b = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    top = tl.full([BLOCK_M, 1], float("-inf"), ACC)
    sums = tl.zeros([BLOCK_M, 1], ACC)
    mean_v = tl.zeros([BLOCK_M, 1], ACC)  # ⟨p, v⟩, and likewise for a and b
    mean_a = tl.zeros([BLOCK_M, 1], ACC)
    mean_b = tl.zeros([BLOCK_M, 1], ACC)
    sum_a = tl.zeros([BLOCK_M, 1], ACC)
    sum_b = tl.zeros([BLOCK_M, 1], ACC)
    cross = tl.zeros([BLOCK_M, 1], ACC)  # ⟨ẏ, a⟩
    for start in range(0, stop, BLOCK_N):
        col = column_numbers(start, BLOCK_N)
        inside = valid & (col < n)
        keep = load_keep(mask_ptr, keep_rows, col, mask_col, inside)
        at = column_offsets(col, inner, INNER)
        v = load_tile(v_rows + at, keep, ACC)
        if not NUMBERS:
            a = load_vector(a_ptr, a_rows + at, keep, ACC)
            b = load_vector(b_ptr, b_rows + at, keep, ACC)
        if FROM_OUTPUT:
            source = load_tile(x_rows + at, inside, ACC)
            weight = probabilities(source, keep, top, sums, KIND, True)
            cross += row_sum(v * a)
        else:
            source = load_scores(x_rows + at, keep, s, ACC)
            top, shrink = raised(top, source, NUMBERS)
            weight = tl.exp(source - finite_top(top, NUMBERS))
            sums_here, mean_here = row_sums(weight, weight * v)
            sums = sums * shrink + sums_here
            mean_v = mean_v * shrink + mean_here
            mean_a *= shrink
            mean_b *= shrink
        if KIND == "softmax":
            a_here, b_here = row_sums(weight * a, weight * b)
            mean_a += a_here
            mean_b += b_here
        elif not NUMBERS:
            sum_a += row_sum(a)
            sum_b += row_sum(b)
    if FROM_OUTPUT:
        sums = tl.full([BLOCK_M, 1], 1.0, ACC)
    else:
        sums = tl.where(valid, sums, 1.0)
    inverse = inverse_total(sums, mask_ptr is not None)
    if not FROM_OUTPUT:
        mean_v *= inverse
        mean_a *= inverse
        mean_b *= inverse
    if KIND == "softmax" and not FROM_OUTPUT:
        for start in range(0, stop, BLOCK_N):
            if not ONE_PASS:
                col = column_numbers(start, BLOCK_N)
                inside = valid & (col < n)
                keep = load_keep(mask_ptr, keep_rows, col, mask_col, inside)
                at = column_offsets(col, inner, INNER)
                source = load_scores(x_rows + at, keep, s, ACC)
                v = load_tile(v_rows + at, keep, ACC)
                a = load_vector(a_ptr, a_rows + at, keep, ACC)
            p = tl.exp(source - finite_top(top, NUMBERS)) * inverse
            cross += s * row_sum(p * (v - mean_v) * a)
    if NUMBERS:
        number_a = load_number(a_ptr, a_rows, valid, ACC)
        number_b = load_number(b_ptr, b_rows, valid, ACC)
        if pushed_ptr is not None:
            row = (group * outer + o) * inner + i
            tl.store(pushed_ptr + row, (s * mean_v).to(pushed_ptr.dtype.element_ty), mask=valid)

    if first_ptr is not None or second_ptr is not None:
        for start in range(0, stop, BLOCK_N):
            col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
            inside = valid & (col < n)
            keep = load_keep(mask_ptr, keep_rows, col, mask_col, inside)
            at = column_offsets(col, inner, INNER)
            if not ONE_PASS:
                if FROM_OUTPUT:
                    source = load_tile(x_rows + at, inside, ACC)
                else:
                    source = load_scores(x_rows + at, keep, s, ACC)
                v = load_tile(v_rows + at, keep, ACC)
                if not NUMBERS:
                    a = load_vector(a_ptr, a_rows + at, keep, ACC)
                    b = load_vector(b_ptr, b_rows + at, keep, ACC)
            p = probabilities(source, keep, top, inverse, KIND, FROM_OUTPUT)
            if NUMBERS:
                first = p * number_a
                second = p * (number_b + number_a * s * (v - mean_v))
            else:
                if FROM_OUTPUT:
                    y_dot = v
                elif KIND == "softmax":
                    y_dot = s * p * (v - mean_v)
                else:
                    y_dot = s * (v - mean_v)
                first = p * (a - mean_a) if KIND == "softmax" else a - p * sum_a
                second = p * (b - mean_b) if KIND == "softmax" else b - p * sum_b
                second += bent(p, y_dot, a, mean_a, sum_a, cross, KIND)
            if first_ptr is not None:
                tl.store(first_ptr + out_rows + at, (s * first).to(first_ptr.dtype.element_ty), mask=inside)
            if second_ptr is not None:
                tl.store(second_ptr + out_rows + at, (s * second).to(second_ptr.dtype.element_ty), mask=inside)


def softmax_second_order(
    x: Tensor,
    v: Tensor,
    a: Tensor | None,
    b: Tensor | None,
    mask: MaskLayout = NO_MASK,
    *,
    kind: str,
    scale: float,
    from_output: bool = False,
    wants_first: bool = True,
    wants_second: bool = True,
    wants_pushed: bool = False,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute Jᵀa, Jᵀb + ∂⟨a, J v⟩/∂x and J v, those that are wanted, one launch.

    Args:
        x: (K or 1, O, n, I): the scores, or the output of the primal if `from_output`.
        v: (K or 1, O, n, I): v, or ẏ = J v if `from_output`.
        a: (K or 1, O, n, I), for logsumexp (K or 1, O, I) contiguous; None for zero.
        b: Like a.
        mask: What is kept.
        kind: "softmax", "log_softmax" or "logsumexp".
        scale: s.
        from_output: Whether x and v hold y and ẏ; not for logsumexp.
        wants_first: Whether to compute Jᵀa.
        wants_second: Whether to compute Jᵀb + ∂⟨a, J v⟩/∂x.
        wants_pushed: Whether to compute J v of logsumexp.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        The three, None where not wanted: (K, O, n, I) twice and (K, O, I); contiguous, dtype of x.
    """
    _, outer, n, inner = x.shape
    groups = max(group_count(x, v, a, b), mask.groups)
    if 0 in (t.shape[0] for t in (x, v, a, b) if t is not None):
        groups = 0
    shape = (groups, outer, n, inner)
    first = torch.empty(shape, dtype=x.dtype, device=x.device) if wants_first else None
    second = torch.empty(shape, dtype=x.dtype, device=x.device) if wants_second else None
    pushed = torch.empty((groups, outer, inner), dtype=x.dtype, device=x.device) if wants_pushed else None
    if groups * outer * n * inner == 0 or not (wants_first or wants_second or wants_pushed):
        return first, second, None if pushed is None else pushed.zero_()
    x, v = adjacent(x), adjacent(v)  # pyright: ignore[reportAssignmentType]
    if kind != "logsumexp":
        a, b = adjacent(a), adjacent(b)
    strides = [number for operand in (x, v, a, b) for number in outer_strides(operand)]
    wide = (a is not None) + (b is not None) if kind != "logsumexp" else 0
    config = softmax_config(n, inner, x.element_size(), 3 + wide + (mask.mask is not None), block_limit)
    launch(
        _second_order_kernel,
        programs(config, groups, outer, inner),
        x,
        x,
        mask.mask,
        v,
        a,
        b,
        first,
        second,
        pushed,
        groups,
        outer,
        inner,
        n,
        *strides,
        *mask.arguments(outer),
        scale,
        KIND=kind,
        FROM_OUTPUT=from_output,
        ACC=accumulator(x.dtype),
        INNER=inner > 1,
        **config.tiling(),
    )
    return first, second, pushed
