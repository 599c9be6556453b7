"""Norms, cotangents pulled back: x̄ = r P (g − mean(x̂ g) x̂) with g = (offset + w) ∘ ȳ, w̄ = Σ x̂ ∘ ȳ, b̄ = Σ ȳ."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._config import accumulating_config, row_blocks, row_config, rows_of_long_tile
from .._dtypes import accumulator, partial_dtype
from .._launch import launch, multiprocessors
from .._layout import group_stride, lay_out, unit_columns
from .._partials import partial_sums, sum_partials
from .._rows import (
    block_of,
    column_numbers,
    column_numbers_back,
    existing,
    inverse_rms,
    load_ahead,
    part_of,
    row_numbers,
    row_sum,
    row_sums,
    store_column_sum,
)
from ._pieces import Norm, centre, less, load_gain, long_row_mean, row_shift


@triton.jit
def vjp_rows(
    program,
    programs,
    y_bar_ptr,  # (groups·cotangents, rows, n)
    x_ptr,  # (groups, rows, n)
    w_ptr,  # (groups, n) or None
    carry_ptr,  # (groups·cotangents, rows, n) or None: added to x̄
    x_bar_ptr,  # (groups·cotangents, rows, n), contiguous, or None
    w_bar_ptr,  # (groups, programs a group, n), contiguous, or None, like the next
    b_bar_ptr,
    groups,
    cotangents,
    rows,
    rows_per_program,
    n,
    y_bar_group,
    y_bar_row,
    x_group,
    x_row,
    w_group,
    carry_group,
    carry_row,
    eps,
    MANY: tl.constexpr,
    CENTER: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Cotangents: x̄ (plus a carry), and this program's shares of w̄ = Σ_rows x̂ ∘ ȳ and b̄ = Σ_rows ȳ.

    One program: rows_per_program rows of one group (BLOCK_M of them without w̄ and b̄, or if rows are long), and all
    cotangents of those rows: one a group or, if MANY, one group with `cotangents` of them. Moves
    (1 + 2·cotangents)·size bytes an element of x, one less per cotangent without x̄, one more with a carry, and 4·n
    bytes a program for w̄ and for b̄. Long rows read x and ȳ twice, and x once more if centred.
    """
    group, first = block_of(program, groups, rows_per_program)
    stop = BLOCK_N if ONE_PASS else n
    # Only sums over rows that fit a tile keep a program for more than one tile.
    LOOPS: tl.constexpr = (w_bar_ptr is not None or b_bar_ptr is not None) and ONE_PASS  # pyright: ignore[reportAssignmentType]
    below_stop = tl.minimum(rows_per_program, rows - first) if LOOPS else BLOCK_M
    part = part_of(program, programs, groups)

    x = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    y_bar = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = load_gain(w_ptr, group * w_group, column_numbers(0, BLOCK_N), n, OFFSET, ACC)
    w_bar = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    b_bar = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    row = row_numbers(first, BLOCK_M)
    next_shift = row_shift(x_ptr, group * x_group + row * x_row, None, 0, existing(row, rows, BLOCK_M), CENTER, ACC)
    for below in tl.range(0, below_stop, BLOCK_M, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        row = row_numbers(first + below, BLOCK_M)
        valid = existing(row, rows, BLOCK_M)
        x_at = group * x_group + row * x_row
        shift = next_shift
        next_at = group * x_group + (row + BLOCK_M) * x_row
        next_shift = row_shift(x_ptr, next_at, None, 0, row + BLOCK_M < rows, CENTER, ACC)
        mean = long_row_mean(x_ptr, x_at, None, 0, shift, valid, n, CENTER, ONE_PASS, ACC, BLOCK_N)
        squares = tl.zeros([BLOCK_M, 1], ACC)
        inner = tl.zeros([BLOCK_M, 1], ACC)  # Σ x g
        sum_g = tl.zeros([BLOCK_M, 1], ACC)
        for start in range(0, stop, BLOCK_N):
            col = column_numbers(start, BLOCK_N)
            inside = valid & (col < n)
            x = load_ahead(x_ptr + x_at + col, inside, LOOPS, ACC)
            if not MANY and (ONE_PASS or x_bar_ptr is not None):
                y_bar = load_ahead(y_bar_ptr + group * y_bar_group + row * y_bar_row + col, inside, LOOPS, ACC)
                if not ONE_PASS:
                    w = load_gain(w_ptr, group * w_group, col, n, OFFSET, ACC)
            if not MANY and (ONE_PASS or x_bar_ptr is not None):
                g = w * y_bar
                x = less(x, shift, col < n, CENTER)
                if CENTER:
                    if ONE_PASS:
                        total, total_g = row_sums(x, g)
                        mean = total / n
                    else:
                        total_g = row_sum(g)
                    sum_g += total_g
                x = less(x, mean, col < n, CENTER)
                total_xx, total_xg = row_sums(x * x, x * g)
                squares += total_xx
                inner += total_xg
            else:
                x = centre(x, shift, mean, col < n, n, CENTER, ONE_PASS)
                squares += row_sum(x * x)
        r = tl.where(valid, inverse_rms(squares, n, eps), 0.0)  # a row past the end would have r = ∞ if eps = 0

        for t in range(0, cotangents if MANY else 1):
            k = group + t
            y_bar_rows = y_bar_ptr + k * y_bar_group + row * y_bar_row
            if MANY:
                inner = tl.zeros([BLOCK_M, 1], ACC)
                sum_g = tl.zeros([BLOCK_M, 1], ACC)
                for start in range(0, stop, BLOCK_N):
                    col = column_numbers(start, BLOCK_N)
                    inside = valid & (col < n)
                    y_bar = load_ahead(y_bar_rows + col, inside, LOOPS, ACC)
                    if not ONE_PASS:
                        x = load_ahead(x_ptr + x_at + col, inside, LOOPS, ACC)
                        x = centre(x, shift, mean, col < n, n, CENTER, ONE_PASS)
                        w = load_gain(w_ptr, group * w_group, col, n, OFFSET, ACC)
                    g = w * y_bar
                    if CENTER:
                        total_xg, total_g = row_sums(x * g, g)
                        inner += total_xg
                        sum_g += total_g
                    else:
                        inner += row_sum(x * g)
            mean_xg = r * inner / n  # mean(x̂ g)
            mean_g = sum_g / n
            for start in range(0, stop, BLOCK_N):
                col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
                inside = valid & (col < n)
                if not ONE_PASS:
                    x = load_ahead(x_ptr + x_at + col, inside, LOOPS, ACC)
                    x = centre(x, shift, mean, col < n, n, CENTER, ONE_PASS)
                    y_bar = load_ahead(y_bar_rows + col, inside, LOOPS, ACC)
                    w = load_gain(w_ptr, group * w_group, col, n, OFFSET, ACC)
                x_hat = r * x
                if x_bar_ptr is not None:
                    x_bar = r * (w * y_bar)
                    if CENTER:
                        x_bar -= r * mean_g
                    x_bar -= (r * mean_xg) * x_hat
                    if carry_ptr is not None:
                        x_bar += load_ahead(carry_ptr + k * carry_group + row * carry_row + col, inside, LOOPS, ACC)
                    x_bar_rows = x_bar_ptr + (k * rows + row) * n
                    tl.store(x_bar_rows + col, x_bar.to(x_bar_ptr.dtype.element_ty), mask=inside)
                if LOOPS:
                    if w_bar_ptr is not None:
                        w_bar += x_hat * y_bar
                    if b_bar_ptr is not None:
                        b_bar += y_bar
                else:
                    if w_bar_ptr is not None:
                        store_column_sum(w_bar_ptr, part, col, n, x_hat * y_bar)
                    if b_bar_ptr is not None:
                        store_column_sum(b_bar_ptr, part, col, n, y_bar)
    if LOOPS:
        if w_bar_ptr is not None:
            store_column_sum(w_bar_ptr, part, column_numbers(0, BLOCK_N), n, w_bar)
        if b_bar_ptr is not None:
            store_column_sum(b_bar_ptr, part, column_numbers(0, BLOCK_N), n, b_bar)


@triton.jit(do_not_specialize=["cotangents", "rows", "rows_per_program"], do_not_specialize_on_alignment=["groups"])
def _vjp_kernel(
    y_bar_ptr,
    x_ptr,
    w_ptr,
    carry_ptr,
    x_bar_ptr,
    w_bar_ptr,
    b_bar_ptr,
    groups,
    cotangents,
    rows,
    rows_per_program,
    n,
    y_bar_group,
    y_bar_row,
    x_group,
    x_row,
    w_group,
    carry_group,
    carry_row,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    MANY: tl.constexpr,
    CENTER: tl.constexpr,
    OFFSET: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Cotangents, see `vjp_rows`. One program: rows_per_program rows of one group and all their cotangents."""
    vjp_rows(
        tl.program_id(0),
        tl.num_programs(0),
        y_bar_ptr,
        x_ptr,
        w_ptr,
        carry_ptr,
        x_bar_ptr,
        w_bar_ptr,
        b_bar_ptr,
        groups,
        cotangents,
        rows,
        rows_per_program,
        BLOCK_N if FULL else n,
        y_bar_group,
        y_bar_row,
        x_group,
        x_row,
        w_group,
        carry_group,
        carry_row,
        eps,
        MANY,
        CENTER,
        OFFSET,
        ACC,
        ONE_PASS,
        BLOCK_M,
        BLOCK_N,
        STAGES,
    )


def norm_vjp(
    y_bar: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    needs: tuple[bool, bool, bool],
    *,
    carry: Tensor | None = None,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute x̄ = r P (g − mean(x̂ g) x̂), w̄ = Σ_rows x̂ ∘ ȳ and b̄ = Σ_rows ȳ: one launch, and one for each sum.

    w̄ and b̄ are deterministic: every program sums a fixed block of rows, and the blocks are added in a fixed order.

    Args:
        y_bar: (K, M, N), any strides.
        x: (K or 1, M, N), any strides.
        weight: (K or 1, N), or None for a gain of ones.
        bias: (K or 1, N), or None; only its shape and dtype are read.
        norm: Which norm.
        needs: Whether to compute x̄, w̄ and b̄; without a weight or bias there is none.
        carry: (K or 1, M, N), added to x̄, or None.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        x̄, (K, M, N), dtype of x, or None; w̄ and b̄, dtype and shape of weight and bias, or None: per group if these
        have K groups (they may share memory), summed over groups if one.
    """
    groups, rows, n = y_bar.shape
    x_bar = torch.empty((groups, rows, n), dtype=x.dtype, device=x.device) if needs[0] else None
    sums = [
        torch.empty(like.shape, dtype=like.dtype, device=x.device) if needed and like is not None else None
        for needed, like in ((needs[1], weight), (needs[2], bias))
    ]
    if y_bar.numel() == 0:
        for total in sums:
            if total is not None:
                total.zero_()
        return x_bar, sums[0], sums[1]
    present = sum(total is not None for total in sums)
    if x_bar is None and not present:
        return None, None, None
    y_bar, x, weight, carry = unit_columns(y_bar), unit_columns(x), unit_columns(weight), unit_columns(carry)
    w_group = group_stride(weight) if x_bar is not None else 0  # a gain is read for x̄ only
    item, processors = x.element_size(), multiprocessors(x.device)
    tiles = 2 + (weight is not None) + (carry is not None)
    if present == 0:
        config = row_config(n, item, tiles, block_limit, many=groups > 1 and group_stride(x) == 0)
    else:
        loop_rows = rows_of_long_tile(groups * rows, processors)
        config = accumulating_config(n, item, max(4, tiles + present), 2, block_limit, loop_rows)
    shared = all(total is None or total.shape[0] == 1 for total in sums)  # no result keeps groups of weights apart
    many = groups > 1 and group_stride(x) == 0 and w_group == 0 and shared and (present == 0 or config.one_pass)
    layout = lay_out((y_bar, x, carry), groups, rows, fold=w_group == 0 and shared and not many)
    y_bar_strides, x_strides, carry_strides = layout.strides
    grid_groups = 1 if many else layout.groups
    if present == 0:
        blocks, rows_per_program = -(-layout.rows // config.block_m), config.block_m
    else:
        blocks, rows_per_program = row_blocks(layout.rows, grid_groups, config, processors)
    partials = [
        None if total is None else partial_sums(grid_groups, blocks, total, partial_dtype(x.dtype)) for total in sums
    ]
    launch(
        _vjp_kernel,
        grid_groups * blocks,
        x,
        y_bar,
        x,
        weight if x_bar is not None else None,
        carry,
        x_bar,
        *partials,
        grid_groups,
        groups,
        layout.rows,
        rows_per_program,
        n,
        *y_bar_strides,
        *x_strides,
        w_group,
        *carry_strides,
        norm.eps,
        MANY=many,
        CENTER=norm.centred,
        OFFSET=norm.offset,
        ACC=accumulator(x.dtype),
        STAGES=config.stages,
        **config.row_tiling(n),
    )
    for partial, total in zip(partials, sums, strict=True):
        if partial is not None and total is not None:
            sum_partials(partial, total)
    return x_bar, sums[0], sums[1]
