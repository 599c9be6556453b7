"""RMS norm, primal: y = x̂ ∘ w."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._config import row_config
from .._dtypes import accumulator
from .._launch import launch
from .._layout import group_count, group_stride, lay_out, unit_columns
from .._rows import (
    column_numbers,
    column_numbers_back,
    inverse_rms,
    load_tile,
    load_weight,
    program_block,
    row_numbers,
    row_sum,
)


@triton.jit(do_not_specialize=["groups", "rows"])
def _forward_kernel(
    x_ptr,  # (groups, rows, n)
    w_ptr,  # (groups, n) or None
    y_ptr,  # (groups, rows, n), contiguous
    groups,
    rows,
    n,
    x_group,
    x_row,
    w_group,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal: y = x̂ ∘ w. One program: BLOCK_M rows of one group. Moves 2·size bytes an element (3 if rows are long)."""
    group, first = program_block(groups, BLOCK_M)
    row = row_numbers(first, BLOCK_M)
    valid = row < rows
    x_rows = x_ptr + group * x_group + row * x_row
    y_rows = y_ptr + (group * rows + row) * n
    stop = BLOCK_N if ONE_PASS else n

    x = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = load_weight(w_ptr, group * w_group, column_numbers(0, BLOCK_N), n, 1.0, ACC)
    squares = tl.zeros([BLOCK_M, 1], ACC)
    for start in range(0, stop, BLOCK_N):
        col = column_numbers(start, BLOCK_N)
        x = load_tile(x_rows + col, valid & (col < n), ACC)
        squares += row_sum(x * x)
    r = inverse_rms(squares, n, eps)
    for start in range(0, stop, BLOCK_N):
        col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
        inside = valid & (col < n)
        if not ONE_PASS:
            x = load_tile(x_rows + col, inside, ACC)
            w = load_weight(w_ptr, group * w_group, col, n, 1.0, ACC)
        tl.store(y_rows + col, (r * x * w).to(y_ptr.dtype.element_ty), mask=inside)


def rms_norm_forward(x: Tensor, weight: Tensor | None, eps: float, *, block_limit: int | None = None) -> Tensor:
    """Compute y = x̂ ∘ w, one launch.

    Args:
        x: (K or 1, M, N), any strides.
        weight: (K or 1, N), or None for all ones.
        eps: Added under the root.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        y, (K, M, N), contiguous, dtype of x.
    """
    _, rows, n = x.shape
    groups = group_count(x, weight)
    y = torch.empty((groups, rows, n), dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y
    x, weight = unit_columns(x), unit_columns(weight)
    w_group = group_stride(weight)
    layout = lay_out((x,), groups, rows, fold=w_group == 0)
    ((x_group, x_row),) = layout.strides
    config = row_config(n, x.element_size(), 1 if weight is None else 2, block_limit)
    launch(
        _forward_kernel,
        layout.groups * -(-layout.rows // config.block_m),
        x,
        x,
        weight,
        y,
        layout.groups,
        layout.rows,
        n,
        x_group,
        x_row,
        w_group,
        eps,
        ACC=accumulator(x.dtype),
        **config.tiling(),
    )
    return y
