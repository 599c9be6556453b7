"""RMS norm, the derivatives of ⟨a, J(ẋ, ẇ)⟩ and all that is read along with them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._config import accumulating_config, row_blocks, row_config, rows_of_long_tile
from .._dtypes import accumulator, partial_dtype
from .._launch import launch, multiprocessors
from .._layout import group_count, group_stride, lay_out, unit_columns
from .._partials import partial_sums, sum_partials
from .._rows import (
    column_numbers,
    column_numbers_back,
    inverse_rms,
    load_tile,
    load_weight,
    part_number,
    program_block,
    row_numbers,
    row_sum,
    store_column_sum,
)


@triton.jit(do_not_specialize=["groups", "rows", "rows_per_program"])
def _second_order_kernel(
    x_ptr,  # (groups, rows, n)
    w_ptr,  # (groups, n) or None
    x_dot_ptr,  # (groups, rows, n) or None
    w_dot_ptr,  # (groups, n) or None
    a_ptr,  # (groups, rows, n), cotangent of ẏ
    b_ptr,  # (groups, rows, n) or None, cotangent of y
    x_first_ptr,  # (groups, rows, n), contiguous, or None, like the next two
    x_second_ptr,
    y_dot_ptr,
    w_first_ptr,  # (groups, programs a group, n), contiguous, or None, like the next
    w_second_ptr,
    groups,
    rows,
    rows_per_program,
    n,
    x_group,
    x_row,
    w_group,
    x_dot_group,
    x_dot_row,
    w_dot_group,
    a_group,
    a_row,
    b_group,
    b_row,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Any of the five results of `rms_norm_second_order`, from one reading of the operands.

    With g = w ∘ a, h = ẇ ∘ a, f = w ∘ b and the means A = mean(g v), B = mean(x̂ g), C = mean(x̂ h), F = mean(x̂ f):

        x_first  = r (g − B x̂)                                      w_first  = Σ_rows a ∘ x̂
        x_second = r (f − F x̂ + h − (A + C − 3 μ B) x̂ − B v − μ g)   w_second = Σ_rows b ∘ x̂ + a ∘ (v − μ x̂)
        y_dot    = (v − μ x̂) ∘ w + x̂ ∘ ẇ

    One program: rows_per_program rows of one group (BLOCK_M of them without weight sums, or if rows are long). Moves
    (operands + results)·size bytes an element, 16 B at most for 2-byte dtypes, and 4·n bytes a program and weight sum.
    Long rows read their operands twice.
    """
    group, first = program_block(groups, rows_per_program)
    stop = BLOCK_N if ONE_PASS else n
    LOOPS: tl.constexpr = (w_first_ptr is not None or w_second_ptr is not None) and ONE_PASS  # pyright: ignore[reportAssignmentType]
    below_stop = tl.minimum(rows_per_program, rows - first) if LOOPS else BLOCK_M

    x = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    x_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    a = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    b = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = load_weight(w_ptr, group * w_group, column_numbers(0, BLOCK_N), n, 1.0, ACC)
    w_dot = load_weight(w_dot_ptr, group * w_dot_group, column_numbers(0, BLOCK_N), n, 0.0, ACC)
    w_first = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w_second = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for below in tl.range(0, below_stop, BLOCK_M, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        row = row_numbers(first + below, BLOCK_M)
        valid = row < rows
        out_rows = (group * rows + row) * n
        sum_xx = tl.zeros([BLOCK_M, 1], ACC)
        sum_xv = tl.zeros([BLOCK_M, 1], ACC)  # Σ x ẋ
        sum_gv = tl.zeros([BLOCK_M, 1], ACC)  # Σ g ẋ
        sum_xg = tl.zeros([BLOCK_M, 1], ACC)
        sum_xh = tl.zeros([BLOCK_M, 1], ACC)
        sum_xf = tl.zeros([BLOCK_M, 1], ACC)
        for start in range(0, stop, BLOCK_N):
            col = column_numbers(start, BLOCK_N)
            inside = valid & (col < n)
            x = load_tile(x_ptr + group * x_group + row * x_row + col, inside, ACC)
            a = load_tile(a_ptr + group * a_group + row * a_row + col, inside, ACC)
            if x_dot_ptr is not None:
                x_dot = load_tile(x_dot_ptr + group * x_dot_group + row * x_dot_row + col, inside, ACC)
            if b_ptr is not None:
                b = load_tile(b_ptr + group * b_group + row * b_row + col, inside, ACC)
            if not ONE_PASS:
                w = load_weight(w_ptr, group * w_group, col, n, 1.0, ACC)
                w_dot = load_weight(w_dot_ptr, group * w_dot_group, col, n, 0.0, ACC)
            sum_xx += row_sum(x * x)
            sum_xg += row_sum(x * (w * a))
            if x_dot_ptr is not None:
                sum_xv += row_sum(x * x_dot)
                sum_gv += row_sum(x_dot * (w * a))
            if w_dot_ptr is not None:
                sum_xh += row_sum(x * (w_dot * a))
            if b_ptr is not None:
                sum_xf += row_sum(x * (w * b))
        r = tl.where(valid, inverse_rms(sum_xx, n, eps), 0.0)  # a row past the end would have r = ∞ if eps = 0
        mu = r * r * sum_xv / n
        mean_gv = r * sum_gv / n  # A
        mean_xg = r * sum_xg / n  # B
        mean_xh = r * sum_xh / n  # C
        mean_xf = r * sum_xf / n  # F

        for start in range(0, stop, BLOCK_N):
            col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
            inside = valid & (col < n)
            if not ONE_PASS:
                x = load_tile(x_ptr + group * x_group + row * x_row + col, inside, ACC)
                a = load_tile(a_ptr + group * a_group + row * a_row + col, inside, ACC)
                if x_dot_ptr is not None:
                    x_dot = load_tile(x_dot_ptr + group * x_dot_group + row * x_dot_row + col, inside, ACC)
                if b_ptr is not None:
                    b = load_tile(b_ptr + group * b_group + row * b_row + col, inside, ACC)
                w = load_weight(w_ptr, group * w_group, col, n, 1.0, ACC)
                w_dot = load_weight(w_dot_ptr, group * w_dot_group, col, n, 0.0, ACC)
            x_hat = r * x
            g = w * a
            if x_first_ptr is not None:
                x_first = r * (g - mean_xg * x_hat)
                tl.store(x_first_ptr + out_rows + col, x_first.to(x_first_ptr.dtype.element_ty), mask=inside)
            if x_second_ptr is not None:
                x_second = tl.zeros([BLOCK_M, BLOCK_N], ACC)
                if b_ptr is not None:
                    x_second += w * b - mean_xf * x_hat
                if w_dot_ptr is not None:
                    x_second += w_dot * a - mean_xh * x_hat
                if x_dot_ptr is not None:
                    x_second -= (mean_gv - 3.0 * mu * mean_xg) * x_hat + mean_xg * (r * x_dot) + mu * g
                x_second *= r
                tl.store(x_second_ptr + out_rows + col, x_second.to(x_second_ptr.dtype.element_ty), mask=inside)
            if y_dot_ptr is not None:
                y_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
                if x_dot_ptr is not None:
                    y_dot += (r * x_dot - mu * x_hat) * w
                if w_dot_ptr is not None:
                    y_dot += x_hat * w_dot
                tl.store(y_dot_ptr + out_rows + col, y_dot.to(y_dot_ptr.dtype.element_ty), mask=inside)
            if w_first_ptr is not None:
                if LOOPS:
                    w_first += a * x_hat
                else:
                    store_column_sum(w_first_ptr, part_number(groups), col, n, a * x_hat)
            if w_second_ptr is not None:
                term = tl.zeros([BLOCK_M, BLOCK_N], ACC)
                if b_ptr is not None:
                    term += b * x_hat
                if x_dot_ptr is not None:
                    term += a * (r * x_dot - mu * x_hat)
                if LOOPS:
                    w_second += term
                else:
                    store_column_sum(w_second_ptr, part_number(groups), col, n, term)
    if w_first_ptr is not None and ONE_PASS:
        store_column_sum(w_first_ptr, part_number(groups), column_numbers(0, BLOCK_N), n, w_first)
    if w_second_ptr is not None and ONE_PASS:
        store_column_sum(w_second_ptr, part_number(groups), column_numbers(0, BLOCK_N), n, w_second)


def rms_norm_second_order(
    x: Tensor,
    weight: Tensor | None,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    eps: float,
    *,
    wants_x_first: bool,
    wants_w_first: bool,
    wants_x_second: bool,
    wants_w_second: bool,
    wants_y_dot: bool,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Compute any of Jᵀa, Jᵀb + S(ẋ, ẇ; a) and J(ẋ, ẇ): one launch, and one for each weight sum.

    Serves three points of the tower. VJP of the JVP: a is the cotangent of ẏ, b that of y. JVP of the VJP: a = ȳ, b its
    tangent. VJP of the VJP: a = ȳ, b absent, tangents are the cotangents of x̄ and w̄.

    Args:
        x: (K or 1, M, N), any strides, like all operands.
        weight: (K or 1, N), or None for all ones.
        x_dot: (K or 1, M, N), or None for zero.
        weight_dot: (K or 1, N), or None for zero.
        a: (K or 1, M, N).
        b: (K or 1, M, N), or None for zero.
        eps: Added under the root.
        wants_x_first: Whether to compute (Jᵀa)_x.
        wants_w_first: Whether to compute (Jᵀa)_w; without a weight there is none.
        wants_x_second: Whether to compute (Jᵀb)_x + S_x.
        wants_w_second: Whether to compute (Jᵀb)_w + S_w; without a weight there is none.
        wants_y_dot: Whether to compute J(ẋ, ẇ).
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        x_first, w_first, x_second, w_second, y_dot, each None if not wanted. Row results (K, M, N) have the dtype of x;
        weight results the dtype and shape of weight: per group if it has K groups, summed over groups if one.
    """
    _, rows, n = x.shape
    groups = group_count(x, weight, x_dot, weight_dot, a, b)
    row_results = [
        torch.empty((groups, rows, n), dtype=x.dtype, device=x.device) if wanted else None
        for wanted in (wants_x_first, wants_x_second, wants_y_dot)
    ]
    w_results = [
        torch.empty(weight.shape, dtype=weight.dtype, device=x.device) if wanted and weight is not None else None
        for wanted in (wants_w_first, wants_w_second)
    ]
    x_first, x_second, y_dot = row_results
    w_first, w_second = w_results
    results = x_first, w_first, x_second, w_second, y_dot
    sums = (w_first is not None) + (w_second is not None)
    if groups * rows * n == 0:
        for result in w_results:
            if result is not None:
                result.zero_()
        return results
    if all(result is None for result in results):
        return results
    x, weight, x_dot, weight_dot = unit_columns(x), unit_columns(weight), unit_columns(x_dot), unit_columns(weight_dot)
    a, b = unit_columns(a), unit_columns(b)
    w_group, w_dot_group = group_stride(weight), group_stride(weight_dot)
    item = x.element_size()
    processors = multiprocessors(x.device)
    streams = 2 + (x_dot is not None) + (b is not None)
    tiles = streams + (weight is not None) + (weight_dot is not None) + (sums + 1 if sums else 0)
    if sums == 0:
        config = row_config(n, item, tiles, block_limit)
    else:
        config = accumulating_config(n, item, tiles, streams, block_limit, rows_of_long_tile(groups * rows, processors))
    w_shared = sums == 0 or (weight is not None and weight.shape[0] == 1)
    fold = w_group == 0 and w_dot_group == 0 and w_shared
    layout = lay_out((x, x_dot, a, b), groups, rows, fold=fold)
    (x_group, x_row), (x_dot_group, x_dot_row), (a_group, a_row), (b_group, b_row) = layout.strides
    if sums == 0:
        blocks, rows_per_program = -(-layout.rows // config.block_m), config.block_m
    else:
        blocks, rows_per_program = row_blocks(layout.rows, layout.groups, config, processors)
    partials = [
        None if result is None else partial_sums(layout.groups, blocks, result, partial_dtype(x.dtype))
        for result in w_results
    ]
    launch(
        _second_order_kernel,
        layout.groups * blocks,
        x,
        x,
        weight,
        x_dot,
        weight_dot,
        a,
        b,
        x_first,
        x_second,
        y_dot,
        *partials,
        layout.groups,
        layout.rows,
        rows_per_program,
        n,
        x_group,
        x_row,
        w_group,
        x_dot_group,
        x_dot_row,
        w_dot_group,
        a_group,
        a_row,
        b_group,
        b_row,
        eps,
        ACC=accumulator(x.dtype),
        STAGES=config.stages,
        **config.tiling(),
    )
    for partial, result in zip(partials, w_results, strict=True):
        if partial is not None and result is not None:
            sum_partials(partial, result)
    return results
