"""Norms, primal: y = x̂ ∘ (offset + w) + b, alone or of a sum that is stored as well."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._config import row_config
from .._dtypes import accumulator
from .._launch import launch
from .._layout import group_count, group_stride, lay_out, unit_columns
from .._rows import (
    block_of,
    column_numbers,
    column_numbers_back,
    existing,
    inverse_rms,
    load_weight,
    row_numbers,
    row_sum,
)
from ._pieces import Norm, centre, load_gain, load_sum, long_row_mean, row_shift


@triton.jit
def forward_rows(
    program,
    x_ptr,  # (groups, rows, n)
    residual_ptr,  # (groups, rows, n) or None
    w_ptr,  # (groups, n) or None, like the next
    b_ptr,
    y_ptr,  # (groups, rows, n), contiguous
    sum_ptr,  # (groups, rows, n), contiguous, where there is a residual, else None
    groups,
    rows,
    n,
    x_group,
    x_row,
    residual_group,
    residual_row,
    w_group,
    b_group,
    eps,
    CENTER: tl.constexpr,
    OFFSET: tl.constexpr,
    ROUND: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal: y = x̂ ∘ (OFFSET + w) + b of x, or of x + residual, for one program's BLOCK_M rows of one group.

    Moves 2·size bytes an element (3 if rows are long, 4 if they are centred too), twice that with a residual.
    """
    group, first = block_of(program, groups, BLOCK_M)
    row = row_numbers(first, BLOCK_M)
    valid = existing(row, rows, BLOCK_M)
    x_at = group * x_group + row * x_row
    residual_at = group * residual_group + row * residual_row
    out_rows = (group * rows + row) * n
    stop = BLOCK_N if ONE_PASS else n

    x = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = load_gain(w_ptr, group * w_group, column_numbers(0, BLOCK_N), n, OFFSET, ACC)
    b = load_weight(b_ptr, group * b_group, column_numbers(0, BLOCK_N), n, 0.0, ACC)
    shift = row_shift(x_ptr, x_at, residual_ptr, residual_at, valid, CENTER, ACC)
    mean = long_row_mean(x_ptr, x_at, residual_ptr, residual_at, shift, valid, n, CENTER, ONE_PASS, ACC, BLOCK_N)
    squares = tl.zeros([BLOCK_M, 1], ACC)
    for start in range(0, stop, BLOCK_N):
        col = column_numbers(start, BLOCK_N)
        inside = valid & (col < n)
        x = load_sum(x_ptr, x_at, residual_ptr, residual_at, col, inside, ACC)
        if sum_ptr is not None:
            tl.store(sum_ptr + out_rows + col, x.to(sum_ptr.dtype.element_ty), mask=inside)
        x = centre(x, shift, mean, col < n, n, CENTER, ONE_PASS)
        squares += row_sum(x * x)
    r = inverse_rms(squares, n, eps)
    for start in range(0, stop, BLOCK_N):
        col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
        inside = valid & (col < n)
        if not ONE_PASS:
            x = load_sum(x_ptr, x_at, residual_ptr, residual_at, col, inside, ACC)
            x = centre(x, shift, mean, col < n, n, CENTER, ONE_PASS)
            w = load_gain(w_ptr, group * w_group, col, n, OFFSET, ACC)
            b = load_weight(b_ptr, group * b_group, col, n, 0.0, ACC)
        x_hat = r * x
        if ROUND:
            x_hat = x_hat.to(y_ptr.dtype.element_ty).to(ACC)
        y = x_hat * w
        if b_ptr is not None:
            y += b
        tl.store(y_ptr + out_rows + col, y.to(y_ptr.dtype.element_ty), mask=inside)


# One group is compiled for: no division, and no offsets of groups.
@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["groups"])
def _forward_kernel(
    x_ptr,
    residual_ptr,
    w_ptr,
    b_ptr,
    y_ptr,
    sum_ptr,
    groups,
    rows,
    n,
    x_group,
    x_row,
    residual_group,
    residual_row,
    w_group,
    b_group,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    CENTER: tl.constexpr,
    OFFSET: tl.constexpr,
    ROUND: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal, see `forward_rows`. One program: BLOCK_M rows of one group."""
    forward_rows(
        tl.program_id(0),
        x_ptr,
        residual_ptr,
        w_ptr,
        b_ptr,
        y_ptr,
        sum_ptr,
        groups,
        rows,
        BLOCK_N if FULL else n,
        x_group,
        x_row,
        residual_group,
        residual_row,
        w_group,
        b_group,
        eps,
        CENTER,
        OFFSET,
        ROUND,
        ACC,
        ONE_PASS,
        BLOCK_M,
        BLOCK_N,
    )


def norm_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Norm,
    *,
    residual: Tensor | None = None,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute y = x̂ ∘ (offset + w) + b, of x or of s = x + residual, one launch.

    Args:
        x: (K or 1, M, N), any strides.
        weight: (K or 1, N), or None for a gain of ones.
        bias: (K or 1, N), or None for zeros.
        norm: Which norm.
        residual: (K or 1, M, N), dtype of x, or None.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        y, (K, M, N), contiguous, dtype of x; s, rounded to that dtype before it is normalised, None without a residual.
    """
    _, rows, n = x.shape
    groups = group_count(x, weight, bias, residual)
    y = torch.empty((groups, rows, n), dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(y)
    if y.numel() == 0:
        return y, total
    x, weight, bias, residual = unit_columns(x), unit_columns(weight), unit_columns(bias), unit_columns(residual)
    w_group, b_group = group_stride(weight), group_stride(bias)
    layout = lay_out((x, residual), groups, rows, fold=w_group == 0 and b_group == 0)
    (x_group, x_row), (residual_group, residual_row) = layout.strides
    tiles = 1 + (weight is not None) + (bias is not None) + (residual is not None)
    config = row_config(n, x.element_size(), tiles, block_limit)
    launch(
        _forward_kernel,
        layout.groups * -(-layout.rows // config.block_m),
        x,
        x,
        residual,
        weight,
        bias,
        y,
        total,
        layout.groups,
        layout.rows,
        n,
        x_group,
        x_row,
        residual_group,
        residual_row,
        w_group,
        b_group,
        norm.eps,
        **of_values(norm, x),
        **config.row_tiling(n),
    )
    return y, total


def of_values(norm: Norm, x: Tensor) -> dict[str, Any]:
    """Return the constexprs of a kernel that computes values.

    Args:
        norm: Which norm.
        x: The tensor whose dtype says whether rounding does anything.

    Returns:
        Constexprs by name.
    """
    return {
        "CENTER": norm.centred,
        "OFFSET": norm.offset,
        "ROUND": norm.rounded and x.element_size() == 2,
        "ACC": accumulator(x.dtype),
    }
