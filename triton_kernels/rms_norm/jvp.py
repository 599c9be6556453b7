"""RMS norm, primal and tangents in one launch: y = x̂ ∘ w, ẏ = (v − μ x̂) ∘ w + x̂ ∘ ẇ."""

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
from .forward import rms_norm_forward


@triton.jit(do_not_specialize=["groups", "tangents", "rows"])
def _jvp_kernel(
    x_ptr,  # (groups, rows, n)
    w_ptr,  # (groups, n) or None
    x_dot_ptr,  # (groups·tangents, rows, n) or None
    w_dot_ptr,  # (groups·tangents, n) or None
    y_ptr,  # (groups, rows, n), contiguous
    y_dot_ptr,  # (groups·tangents, rows, n), contiguous
    groups,
    tangents,
    rows,
    n,
    x_group,
    x_row,
    w_group,
    x_dot_group,
    x_dot_row,
    w_dot_group,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    MANY: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal and tangents: y = x̂ ∘ w and ẏ = (v − μ x̂) ∘ w + x̂ ∘ ẇ.

    One program: BLOCK_M rows of one group and all their tangents: one a group or, if MANY, one group with `tangents`
    of them. Moves (2 + 2·tangents)·size bytes an element of x: x and y once, ẋ and ẏ once a tangent; without ẋ it is
    (2 + tangents)·size. Long rows are read twice.
    """
    group, first = program_block(groups, BLOCK_M)
    row = row_numbers(first, BLOCK_M)
    valid = row < rows
    x_rows = x_ptr + group * x_group + row * x_row
    y_rows = y_ptr + (group * rows + row) * n
    stop = BLOCK_N if ONE_PASS else n

    x = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    x_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = load_weight(w_ptr, group * w_group, column_numbers(0, BLOCK_N), n, 1.0, ACC)
    w_dot = load_weight(w_dot_ptr, group * w_dot_group, column_numbers(0, BLOCK_N), n, 0.0, ACC)
    squares = tl.zeros([BLOCK_M, 1], ACC)
    inner = tl.zeros([BLOCK_M, 1], ACC)  # Σ x ẋ
    for start in range(0, stop, BLOCK_N):
        col = column_numbers(start, BLOCK_N)
        inside = valid & (col < n)
        x = load_tile(x_rows + col, inside, ACC)
        if x_dot_ptr is not None and not MANY:
            x_dot = load_tile(x_dot_ptr + group * x_dot_group + row * x_dot_row + col, inside, ACC)
            inner += row_sum(x * x_dot)
        squares += row_sum(x * x)
    r = inverse_rms(squares, n, eps)

    if MANY:
        for start in range(0, stop, BLOCK_N):
            col = column_numbers(start, BLOCK_N)
            inside = valid & (col < n)
            if not ONE_PASS:
                x = load_tile(x_rows + col, inside, ACC)
                w = load_weight(w_ptr, group * w_group, col, n, 1.0, ACC)
            tl.store(y_rows + col, (r * x * w).to(y_ptr.dtype.element_ty), mask=inside)

    for t in range(0, tangents if MANY else 1):
        k = group + t
        y_dot_rows = y_dot_ptr + (k * rows + row) * n
        if MANY and x_dot_ptr is not None:
            inner = tl.zeros([BLOCK_M, 1], ACC)
            for start in range(0, stop, BLOCK_N):
                col = column_numbers(start, BLOCK_N)
                inside = valid & (col < n)
                if not ONE_PASS:
                    x = load_tile(x_rows + col, inside, ACC)
                x_dot = load_tile(x_dot_ptr + k * x_dot_group + row * x_dot_row + col, inside, ACC)
                inner += row_sum(x * x_dot)
        mu = r * r * inner / n
        for start in range(0, stop, BLOCK_N):
            col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
            inside = valid & (col < n)
            if not ONE_PASS:
                x = load_tile(x_rows + col, inside, ACC)
                w = load_weight(w_ptr, group * w_group, col, n, 1.0, ACC)
                if x_dot_ptr is not None:
                    x_dot = load_tile(x_dot_ptr + k * x_dot_group + row * x_dot_row + col, inside, ACC)
            if MANY or not ONE_PASS:
                w_dot = load_weight(w_dot_ptr, k * w_dot_group, col, n, 0.0, ACC)
            x_hat = r * x
            if x_dot_ptr is None:
                y_dot = x_hat * w_dot
            else:
                y_dot = (r * x_dot - mu * x_hat) * w  # (v − μ x̂) ∘ w
                if w_dot_ptr is not None:
                    y_dot += x_hat * w_dot
            tl.store(y_dot_rows + col, y_dot.to(y_dot_ptr.dtype.element_ty), mask=inside)
            if not MANY:
                tl.store(y_rows + col, (x_hat * w).to(y_ptr.dtype.element_ty), mask=inside)


def rms_norm_jvp(
    x: Tensor,
    weight: Tensor | None,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    eps: float,
    *,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute y = x̂ ∘ w and ẏ = (v − μ x̂) ∘ w + x̂ ∘ ẇ, one launch.

    Where all groups of the primal share their memory (K = 1 or a group stride of 0), a program reads a row of it once
    for all tangents, and y is computed once: its groups then share their memory too.

    Args:
        x: (K or 1, M, N), any strides.
        weight: (K or 1, N), or None for all ones.
        x_dot: (K or 1, M, N), or None for zero.
        weight_dot: (K or 1, N), or None for zero.
        eps: Added under the root.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        y with as many groups as x and weight have, and ẏ, (K, M, N), contiguous; dtype of x.
    """
    _, rows, n = x.shape
    primal_groups = group_count(x, weight)
    groups = group_count(x, weight, x_dot, weight_dot)
    y_dot = torch.empty((groups, rows, n), dtype=x.dtype, device=x.device)
    if y_dot.numel() == 0 or (x_dot is None and weight_dot is None):
        return rms_norm_forward(x, weight, eps, block_limit=block_limit), y_dot.zero_()
    x, weight, x_dot, weight_dot = unit_columns(x), unit_columns(weight), unit_columns(x_dot), unit_columns(weight_dot)
    w_group, w_dot_group = group_stride(weight), group_stride(weight_dot)
    shared = group_stride(x) == 0 and w_group == 0
    many = shared and groups > 1
    # Folding needs rows that differ in nothing but x and ẋ; with many tangents the primal's one group stays as it is.
    layout = lay_out((x, x_dot), groups, rows, fold=w_group == 0 and w_dot_group == 0 and not many)
    (x_group, x_row), (x_dot_group, x_dot_row) = layout.strides
    grid_groups = 1 if many else layout.groups
    y = torch.empty((1 if shared else groups, rows, n), dtype=x.dtype, device=x.device)
    tiles = 1 + (weight is not None) + (x_dot is not None) + (weight_dot is not None) + many
    config = row_config(n, x.element_size(), tiles, block_limit)
    launch(
        _jvp_kernel,
        grid_groups * -(-layout.rows // config.block_m),
        x,
        x,
        weight,
        x_dot,
        weight_dot,
        y,
        y_dot,
        grid_groups,
        groups,
        layout.rows,
        n,
        x_group,
        x_row,
        w_group,
        x_dot_group,
        x_dot_row,
        w_dot_group,
        eps,
        MANY=many,
        ACC=accumulator(x.dtype),
        **config.tiling(),
    )
    return y if y.shape[0] == primal_groups else y.expand(primal_groups, rows, n), y_dot
