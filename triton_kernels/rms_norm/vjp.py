"""RMS norm, cotangents pulled back: x̄ = r (g − mean(x̂ g) x̂) with g = w ∘ ȳ, w̄ = Σ_rows x̂ ∘ ȳ."""

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


@triton.jit(do_not_specialize=["groups", "cotangents", "rows", "rows_per_program"])
def _vjp_kernel(
    y_bar_ptr,  # (groups·cotangents, rows, n)
    x_ptr,  # (groups, rows, n)
    w_ptr,  # (groups, n) or None
    x_bar_ptr,  # (groups·cotangents, rows, n), contiguous, or None
    w_bar_ptr,  # (groups, programs a group, n), contiguous, or None
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
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    MANY: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Cotangents: x̄ = r (g − mean(x̂ g) x̂) with g = w ∘ ȳ, and this program's share of w̄ = Σ_rows x̂ ∘ ȳ.

    One program: rows_per_program rows of one group (BLOCK_M of them without w̄, or if rows are long), and all cotangents
    of those rows: one a group or, if MANY, one group with `cotangents` of them. Moves (1 + 2·cotangents)·size bytes an
    element of x, one less per cotangent without x̄, and 4·n bytes a program for w̄. Long rows read x and ȳ twice.
    """
    group, first = program_block(groups, rows_per_program)
    stop = BLOCK_N if ONE_PASS else n
    # Only sums over rows that fit a tile keep a program for more than one tile.
    LOOPS: tl.constexpr = w_bar_ptr is not None and ONE_PASS  # pyright: ignore[reportAssignmentType]
    below_stop = tl.minimum(rows_per_program, rows - first) if LOOPS else BLOCK_M

    x = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    y_bar = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = load_weight(w_ptr, group * w_group, column_numbers(0, BLOCK_N), n, 1.0, ACC)
    w_bar = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for below in tl.range(0, below_stop, BLOCK_M, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        row = row_numbers(first + below, BLOCK_M)
        valid = row < rows
        x_rows = x_ptr + group * x_group + row * x_row
        squares = tl.zeros([BLOCK_M, 1], ACC)
        inner = tl.zeros([BLOCK_M, 1], ACC)  # Σ x g
        for start in range(0, stop, BLOCK_N):
            col = column_numbers(start, BLOCK_N)
            inside = valid & (col < n)
            x = load_tile(x_rows + col, inside, ACC)
            squares += row_sum(x * x)
            if not MANY and (ONE_PASS or x_bar_ptr is not None):
                y_bar = load_tile(y_bar_ptr + group * y_bar_group + row * y_bar_row + col, inside, ACC)
                if not ONE_PASS:
                    w = load_weight(w_ptr, group * w_group, col, n, 1.0, ACC)
                inner += row_sum(x * (w * y_bar))
        r = tl.where(valid, inverse_rms(squares, n, eps), 0.0)  # a row past the end would have r = ∞ if eps = 0

        for t in range(0, cotangents if MANY else 1):
            k = group + t
            y_bar_rows = y_bar_ptr + k * y_bar_group + row * y_bar_row
            if MANY:
                inner = tl.zeros([BLOCK_M, 1], ACC)
                for start in range(0, stop, BLOCK_N):
                    col = column_numbers(start, BLOCK_N)
                    inside = valid & (col < n)
                    y_bar = load_tile(y_bar_rows + col, inside, ACC)
                    if not ONE_PASS:
                        x = load_tile(x_rows + col, inside, ACC)
                        w = load_weight(w_ptr, group * w_group, col, n, 1.0, ACC)
                    inner += row_sum(x * (w * y_bar))
            mean = r * inner / n  # mean(x̂ g)
            for start in range(0, stop, BLOCK_N):
                col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
                inside = valid & (col < n)
                if not ONE_PASS:
                    x = load_tile(x_rows + col, inside, ACC)
                    y_bar = load_tile(y_bar_rows + col, inside, ACC)
                    w = load_weight(w_ptr, group * w_group, col, n, 1.0, ACC)
                x_hat = r * x
                if x_bar_ptr is not None:
                    x_bar = r * (w * y_bar - mean * x_hat)
                    x_bar_rows = x_bar_ptr + (k * rows + row) * n
                    tl.store(x_bar_rows + col, x_bar.to(x_bar_ptr.dtype.element_ty), mask=inside)
                if LOOPS:
                    w_bar += x_hat * y_bar
                elif w_bar_ptr is not None:
                    store_column_sum(w_bar_ptr, part_number(groups), col, n, x_hat * y_bar)
    if LOOPS:
        store_column_sum(w_bar_ptr, part_number(groups), column_numbers(0, BLOCK_N), n, w_bar)


def rms_norm_vjp(
    y_bar: Tensor,
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    needs_x: bool,
    needs_weight: bool,
    *,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Compute x̄ = r (g − mean(x̂ g) x̂) with g = w ∘ ȳ, and w̄ = Σ_rows x̂ ∘ ȳ: one launch, and one more to add up w̄.

    w̄ is deterministic: every program sums a fixed block of rows, and the blocks are added in a fixed order.

    Args:
        y_bar: (K, M, N), any strides.
        x: (K or 1, M, N), any strides.
        weight: (K or 1, N), or None for all ones.
        eps: Added under the root.
        needs_x: Whether to compute x̄.
        needs_weight: Whether to compute w̄; without a weight there is none.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        x̄, (K, M, N), dtype of x, or None; w̄, dtype and shape of weight, or None: per group if weight has K groups (they
        may share memory), summed over groups if it has one.
    """
    groups, rows, n = y_bar.shape
    x_bar = torch.empty((groups, rows, n), dtype=x.dtype, device=x.device) if needs_x else None
    w_bar = (
        torch.empty(weight.shape, dtype=weight.dtype, device=x.device) if needs_weight and weight is not None else None
    )
    if y_bar.numel() == 0:
        return x_bar, None if w_bar is None else w_bar.zero_()
    if x_bar is None and w_bar is None:
        return None, None
    y_bar, x, weight = unit_columns(y_bar), unit_columns(x), unit_columns(weight)
    w_group = group_stride(weight)
    item = x.element_size()
    processors = multiprocessors(x.device)
    if w_bar is None:
        config = row_config(n, item, 3 if weight is not None else 2, block_limit)
    else:
        config = accumulating_config(n, item, 4, 2, block_limit, rows_of_long_tile(groups * rows, processors))
    w_bar_shared = w_bar is None or w_bar.shape[0] == 1  # no result keeps groups of weights apart
    many = groups > 1 and group_stride(x) == 0 and w_group == 0 and w_bar_shared and (w_bar is None or config.one_pass)
    layout = lay_out((y_bar, x), groups, rows, fold=w_group == 0 and w_bar_shared and not many)
    (y_bar_group, y_bar_row), (x_group, x_row) = layout.strides
    grid_groups = 1 if many else layout.groups
    if w_bar is None:
        blocks, rows_per_program, partial = -(-layout.rows // config.block_m), config.block_m, None
    else:
        blocks, rows_per_program = row_blocks(layout.rows, grid_groups, config, processors)
        partial = partial_sums(grid_groups, blocks, w_bar, partial_dtype(x.dtype))
    launch(
        _vjp_kernel,
        grid_groups * blocks,
        x,
        y_bar,
        x,
        weight if needs_x else None,
        x_bar,
        partial,
        grid_groups,
        groups,
        layout.rows,
        rows_per_program,
        n,
        y_bar_group,
        y_bar_row,
        x_group,
        x_row,
        w_group,
        eps,
        MANY=many,
        ACC=accumulator(x.dtype),
        STAGES=config.stages,
        **config.tiling(),
    )
    if w_bar is not None and partial is not None:
        sum_partials(partial, w_bar)
    return x_bar, w_bar
