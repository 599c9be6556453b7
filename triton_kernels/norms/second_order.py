"""Norms, the derivatives of ⟨a, J(ẋ, ẇ, ḃ)⟩ and all that is read along with them."""

from __future__ import annotations

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
    existing,
    four_row_sums,
    inverse_rms,
    load_ahead,
    load_weight,
    part_number,
    program_block,
    row_numbers,
    row_sum,
    row_sums,
    store_column_sum,
)
from .._second import Second, second_results
from ._pieces import Norm, centre, less, load_gain, long_row_mean, row_shift


# One group is compiled for: no division, and no offsets of groups.
@triton.jit(do_not_specialize=["rows", "rows_per_program"], do_not_specialize_on_alignment=["groups"])
def _second_order_kernel(
    x_ptr,  # (groups, rows, n)
    w_ptr,  # (groups, n) or None
    x_dot_ptr,  # (groups, rows, n) or None
    w_dot_ptr,  # (groups, n) or None, like the next
    bias_dot_ptr,
    a_ptr,  # (groups, rows, n), cotangent of ẏ
    b_ptr,  # (groups, rows, n) or None, cotangent of y
    x_first_ptr,  # (groups, rows, n), contiguous, or None, like the next two
    x_second_ptr,
    y_dot_ptr,
    w_first_ptr,  # (groups, programs a group, n), contiguous, or None, like the next three
    w_second_ptr,
    bias_first_ptr,
    bias_second_ptr,
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
    bias_dot_group,
    a_group,
    a_row,
    b_group,
    b_row,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    CENTER: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Any of the seven results of `norm_second_order`, from one reading of the operands.

    With W = OFFSET + w, g = W ∘ a, q = W ∘ b + ẇ ∘ a and the means A = mean(g v + x̂ q), B = mean(x̂ g):

        x_first  = r P (g − B x̂)                             w_first  = Σ_rows a ∘ x̂
        x_second = r P (q − (A − 3 μ B) x̂ − B v − μ g)        w_second = Σ_rows b ∘ x̂ + a ∘ (v − μ x̂)
        y_dot    = (v − μ x̂) ∘ W + x̂ ∘ ẇ + ḃ                  bias_first  = Σ_rows a,   bias_second = Σ_rows b

    One program: rows_per_program rows of one group (BLOCK_M of them without weight sums, or if rows are long). Moves
    (operands + results)·size bytes an element, 16 B at most for 2-byte dtypes, and 4·n bytes a program and weight sum.
    Long rows read their operands twice, x and ẋ once more if centred.
    """
    if FULL:
        n = BLOCK_N
    group, first = program_block(groups, rows_per_program)
    stop = BLOCK_N if ONE_PASS else n
    SUMS: tl.constexpr = (  # pyright: ignore[reportAssignmentType]
        w_first_ptr is not None or w_second_ptr is not None or bias_first_ptr is not None or bias_second_ptr is not None
    )
    LOOPS: tl.constexpr = SUMS and ONE_PASS  # pyright: ignore[reportAssignmentType]
    below_stop = tl.minimum(rows_per_program, rows - first) if LOOPS else BLOCK_M

    x = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    x_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    a = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    b = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = load_gain(w_ptr, group * w_group, column_numbers(0, BLOCK_N), n, OFFSET, ACC)
    w_dot = load_weight(w_dot_ptr, group * w_dot_group, column_numbers(0, BLOCK_N), n, 0.0, ACC)
    bias_dot = load_weight(bias_dot_ptr, group * bias_dot_group, column_numbers(0, BLOCK_N), n, 0.0, ACC)
    w_first = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w_second = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    bias_first = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    bias_second = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    row = row_numbers(first, BLOCK_M)
    valid = existing(row, rows, BLOCK_M)
    next_shift = row_shift(x_ptr, group * x_group + row * x_row, None, 0, valid, CENTER, ACC)
    next_shift_dot = tl.zeros([BLOCK_M, 1], ACC)
    if x_dot_ptr is not None:
        next_shift_dot = row_shift(x_dot_ptr, group * x_dot_group + row * x_dot_row, None, 0, valid, CENTER, ACC)
    for below in tl.range(0, below_stop, BLOCK_M, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        row = row_numbers(first + below, BLOCK_M)
        valid = existing(row, rows, BLOCK_M)
        out_rows = (group * rows + row) * n
        x_at = group * x_group + row * x_row
        x_dot_at = group * x_dot_group + row * x_dot_row
        shift = next_shift
        next_at = group * x_group + (row + BLOCK_M) * x_row
        next_shift = row_shift(x_ptr, next_at, None, 0, row + BLOCK_M < rows, CENTER, ACC)
        mean = long_row_mean(x_ptr, x_at, None, 0, shift, valid, n, CENTER, ONE_PASS, ACC, BLOCK_N)
        shift_dot = next_shift_dot
        mean_dot = tl.zeros([BLOCK_M, 1], ACC)
        if x_dot_ptr is not None:
            next_at = group * x_dot_group + (row + BLOCK_M) * x_dot_row
            next_shift_dot = row_shift(x_dot_ptr, next_at, None, 0, row + BLOCK_M < rows, CENTER, ACC)
            mean_dot = long_row_mean(x_dot_ptr, x_dot_at, None, 0, shift_dot, valid, n, CENTER, ONE_PASS, ACC, BLOCK_N)
        sum_xx = tl.zeros([BLOCK_M, 1], ACC)
        sum_xv = tl.zeros([BLOCK_M, 1], ACC)  # Σ x ẋ
        sum_xg = tl.zeros([BLOCK_M, 1], ACC)
        cross = tl.zeros([BLOCK_M, 1], ACC)  # Σ g ẋ + x q
        sum_g = tl.zeros([BLOCK_M, 1], ACC)
        sum_q = tl.zeros([BLOCK_M, 1], ACC)
        for start in range(0, stop, BLOCK_N):
            col = column_numbers(start, BLOCK_N)
            inside = valid & (col < n)
            x = load_ahead(x_ptr + x_at + col, inside, LOOPS, ACC)
            a = load_ahead(a_ptr + group * a_group + row * a_row + col, inside, LOOPS, ACC)
            if x_dot_ptr is not None:
                x_dot = load_ahead(x_dot_ptr + x_dot_at + col, inside, LOOPS, ACC)
            if b_ptr is not None:
                b = load_ahead(b_ptr + group * b_group + row * b_row + col, inside, LOOPS, ACC)
            if not ONE_PASS:
                w = load_gain(w_ptr, group * w_group, col, n, OFFSET, ACC)
                w_dot = load_weight(w_dot_ptr, group * w_dot_group, col, n, 0.0, ACC)
            g = w * a
            q = _pulled(w, w_dot, a, b, w_dot_ptr, b_ptr)
            x = less(x, shift, col < n, CENTER)
            if x_dot_ptr is not None:
                x_dot = less(x_dot, shift_dot, col < n, CENTER)
                if CENTER:
                    if ONE_PASS:
                        total, total_dot, total_g, total_q = four_row_sums(x, x_dot, g, q)
                        mean = total / n
                        mean_dot = total_dot / n
                    else:
                        total_g, total_q = row_sums(g, q)
                    sum_g += total_g
                    sum_q += total_q
                x = less(x, mean, col < n, CENTER)
                x_dot = less(x_dot, mean_dot, col < n, CENTER)
                total_xx, total_xg, total_xv, total_cross = four_row_sums(x * x, x * g, x * x_dot, g * x_dot + x * q)
                sum_xv += total_xv
            else:
                if CENTER:
                    if ONE_PASS:
                        total, total_g = row_sums(x, g)
                        mean = total / n
                        total_q = row_sum(q)
                    else:
                        total_g, total_q = row_sums(g, q)
                    sum_g += total_g
                    sum_q += total_q
                x = less(x, mean, col < n, CENTER)
                total_xx, total_xg = row_sums(x * x, x * g)
                total_cross = row_sum(x * q)
            sum_xx += total_xx
            sum_xg += total_xg
            cross += total_cross
        r = tl.where(valid, inverse_rms(sum_xx, n, eps), 0.0)  # a row past the end would have r = ∞ if eps = 0
        mu = r * r * sum_xv / n
        mean_cross = r * cross / n  # A
        mean_xg = r * sum_xg / n  # B
        mean_g = sum_g / n

        for start in range(0, stop, BLOCK_N):
            col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
            inside = valid & (col < n)
            if not ONE_PASS:
                x = load_ahead(x_ptr + x_at + col, inside, LOOPS, ACC)
                a = load_ahead(a_ptr + group * a_group + row * a_row + col, inside, LOOPS, ACC)
                if x_dot_ptr is not None:
                    x_dot = load_ahead(x_dot_ptr + x_dot_at + col, inside, LOOPS, ACC)
                if b_ptr is not None:
                    b = load_ahead(b_ptr + group * b_group + row * b_row + col, inside, LOOPS, ACC)
                w = load_gain(w_ptr, group * w_group, col, n, OFFSET, ACC)
                w_dot = load_weight(w_dot_ptr, group * w_dot_group, col, n, 0.0, ACC)
                bias_dot = load_weight(bias_dot_ptr, group * bias_dot_group, col, n, 0.0, ACC)
                x = centre(x, shift, mean, col < n, n, CENTER, ONE_PASS)
                if x_dot_ptr is not None:
                    x_dot = centre(x_dot, shift_dot, mean_dot, col < n, n, CENTER, ONE_PASS)
            x_hat = r * x
            g = w * a
            if x_first_ptr is not None:
                x_first = r * g
                if CENTER:
                    x_first -= r * mean_g
                x_first -= (r * mean_xg) * x_hat
                tl.store(x_first_ptr + out_rows + col, x_first.to(x_first_ptr.dtype.element_ty), mask=inside)
            if x_second_ptr is not None:
                x_second = _pulled(w, w_dot, a, b, w_dot_ptr, b_ptr) - (mean_cross - 3.0 * mu * mean_xg) * x_hat
                if CENTER:
                    x_second -= sum_q / n - mu * mean_g  # what P leaves of q and μ g
                if x_dot_ptr is not None:
                    x_second -= mean_xg * (r * x_dot) + mu * g
                x_second *= r
                tl.store(x_second_ptr + out_rows + col, x_second.to(x_second_ptr.dtype.element_ty), mask=inside)
            if y_dot_ptr is not None:
                y_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
                if x_dot_ptr is not None:
                    y_dot += (r * x_dot - mu * x_hat) * w
                if w_dot_ptr is not None:
                    y_dot += x_hat * w_dot
                if bias_dot_ptr is not None:
                    y_dot += bias_dot
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
            if bias_first_ptr is not None:
                if LOOPS:
                    bias_first += a
                else:
                    store_column_sum(bias_first_ptr, part_number(groups), col, n, a)
            if bias_second_ptr is not None:
                if LOOPS:
                    bias_second += b
                else:
                    store_column_sum(bias_second_ptr, part_number(groups), col, n, b)
    if ONE_PASS:
        part = part_number(groups)
        col = column_numbers(0, BLOCK_N)
        if w_first_ptr is not None:
            store_column_sum(w_first_ptr, part, col, n, w_first)
        if w_second_ptr is not None:
            store_column_sum(w_second_ptr, part, col, n, w_second)
        if bias_first_ptr is not None:
            store_column_sum(bias_first_ptr, part, col, n, bias_first)
        if bias_second_ptr is not None:
            store_column_sum(bias_second_ptr, part, col, n, bias_second)


@triton.jit
def _pulled(w, w_dot, a, b, w_dot_ptr, b_ptr):
    """Return q = W ∘ b + ẇ ∘ a, without the terms that are absent."""
    q = tl.zeros(a.shape, a.dtype)
    if b_ptr is not None:
        q += w * b
    if w_dot_ptr is not None:
        q += w_dot * a
    return q


def norm_second_order(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    bias_dot: Tensor | None,
    a: Tensor,
    b: Tensor | None,
    norm: Norm,
    wants: Second,
    *,
    block_limit: int | None = None,
) -> Second:
    """Compute any of Jᵀa, Jᵀb + S(ẋ, ẇ; a) and J(ẋ, ẇ, ḃ): one launch, and one for each sum over rows.

    Serves three points of the tower. VJP of the JVP: a is the cotangent of ẏ, b that of y. JVP of the VJP: a = ȳ, b its
    tangent. VJP of the VJP: a = ȳ, b absent, tangents are the cotangents of x̄, w̄ and b̄.

    Args:
        x: (K or 1, M, N), any strides, like all operands.
        weight: (K or 1, N), or None for a gain of ones.
        bias: (K or 1, N), or None; only its shape and dtype are read.
        x_dot: (K or 1, M, N), or None for zero.
        weight_dot: (K or 1, N), or None for zero.
        bias_dot: (K or 1, N), or None for zero.
        a: (K or 1, M, N).
        b: (K or 1, M, N), or None for zero.
        norm: Which norm.
        wants: Which results; without a weight or bias there is none of its.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        The results, each None if not wanted. Row results (K, M, N) have the dtype of x; those of weight and bias their
        dtype and shape: per group if they have K groups, summed over groups if one.
    """
    _, rows, n = x.shape
    groups = group_count(x, weight, bias, x_dot, weight_dot, bias_dot, a, b)
    results = second_results(x, weight, bias, wants, (groups, rows, n))
    sums = (results.w_first, results.w_second, results.bias_first, results.bias_second)
    count = sum(total is not None for total in sums)
    if groups * rows * n == 0:
        for total in sums:
            if total is not None:
                total.zero_()
        return results
    if all(result is None for result in results):
        return results
    x, weight, x_dot, weight_dot = unit_columns(x), unit_columns(weight), unit_columns(x_dot), unit_columns(weight_dot)
    a, b, bias_dot = unit_columns(a), unit_columns(b), unit_columns(bias_dot)
    w_group, w_dot_group, bias_dot_group = group_stride(weight), group_stride(weight_dot), group_stride(bias_dot)
    item = x.element_size()
    processors = multiprocessors(x.device)
    streams = 2 + (x_dot is not None) + (b is not None)
    tiles = streams + (weight is not None) + (weight_dot is not None) + (count + 1 if count else 0)
    if count == 0:
        config = row_config(n, item, tiles, block_limit)
    else:
        config = accumulating_config(n, item, tiles, streams, block_limit, rows_of_long_tile(groups * rows, processors))
    shared = all(total is None or total.shape[0] == 1 for total in sums)
    fold = w_group == 0 and w_dot_group == 0 and bias_dot_group == 0 and shared
    layout = lay_out((x, x_dot, a, b), groups, rows, fold=fold)
    x_strides, x_dot_strides, a_strides, b_strides = layout.strides
    if count == 0:
        blocks, rows_per_program = -(-layout.rows // config.block_m), config.block_m
    else:
        blocks, rows_per_program = row_blocks(layout.rows, layout.groups, config, processors)
    partials = [
        None if total is None else partial_sums(layout.groups, blocks, total, partial_dtype(x.dtype)) for total in sums
    ]
    launch(
        _second_order_kernel,
        layout.groups * blocks,
        x,
        x,
        weight,
        x_dot,
        weight_dot,
        bias_dot,
        a,
        b,
        results.x_first,
        results.x_second,
        results.y_dot,
        *partials,
        layout.groups,
        layout.rows,
        rows_per_program,
        n,
        *x_strides,
        w_group,
        *x_dot_strides,
        w_dot_group,
        bias_dot_group,
        *a_strides,
        *b_strides,
        norm.eps,
        CENTER=norm.centred,
        OFFSET=norm.offset,
        ACC=accumulator(x.dtype),
        STAGES=config.stages,
        **config.row_tiling(n),
    )
    for partial, total in zip(partials, sums, strict=True):
        if partial is not None and total is not None:
            sum_partials(partial, total)
    return results
