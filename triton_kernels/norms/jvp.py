"""Norms, primal and tangents in one launch: y, and ẏ = (v − μ x̂) ∘ (offset + w) + x̂ ∘ ẇ + ḃ."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._config import row_config
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
    row_sums,
)
from ._pieces import Norm, centre, less, load_gain, load_sum, long_row_mean, row_shift
from .forward import norm_forward, of_values


@triton.jit
def jvp_rows(
    program,
    x_ptr,  # (groups, rows, n)
    residual_ptr,  # (groups, rows, n) or None
    w_ptr,  # (groups, n) or None, like the next
    b_ptr,
    x_dot_ptr,  # (groups·tangents, rows, n) or None
    residual_dot_ptr,  # (groups·tangents, rows, n) or None, which it is without an x_dot
    w_dot_ptr,  # (groups·tangents, n) or None, like the next
    b_dot_ptr,
    y_ptr,  # (groups, rows, n), contiguous
    sum_ptr,  # (groups, rows, n), contiguous, where there is a residual, else None
    y_dot_ptr,  # (groups·tangents, rows, n), contiguous
    sum_dot_ptr,  # (groups·tangents, rows, n), contiguous, or None
    groups,
    tangents,
    rows,
    n,
    x_group,
    x_row,
    residual_group,
    residual_row,
    w_group,
    b_group,
    x_dot_group,
    x_dot_row,
    residual_dot_group,
    residual_dot_row,
    w_dot_group,
    b_dot_group,
    eps,
    MANY: tl.constexpr,
    CENTER: tl.constexpr,
    OFFSET: tl.constexpr,
    ROUND: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal and tangents of x, or of x + residual, for one program's BLOCK_M rows of one group.

    A program takes all tangents of its rows: one a group or, if MANY, one group with `tangents` of them. Moves
    (2 + 2·tangents)·size bytes an element of x: x and y once, ẋ and ẏ once a tangent; without ẋ it is
    (2 + tangents)·size. Long rows are read twice, thrice if centred; a residual doubles it all.
    """
    group, first = block_of(program, groups, BLOCK_M)
    row = row_numbers(first, BLOCK_M)
    valid = existing(row, rows, BLOCK_M)
    x_at = group * x_group + row * x_row
    residual_at = group * residual_group + row * residual_row
    out_rows = (group * rows + row) * n
    stop = BLOCK_N if ONE_PASS else n

    x = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    x_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w = load_gain(w_ptr, group * w_group, column_numbers(0, BLOCK_N), n, OFFSET, ACC)
    b = load_weight(b_ptr, group * b_group, column_numbers(0, BLOCK_N), n, 0.0, ACC)
    w_dot = load_weight(w_dot_ptr, group * w_dot_group, column_numbers(0, BLOCK_N), n, 0.0, ACC)
    b_dot = load_weight(b_dot_ptr, group * b_dot_group, column_numbers(0, BLOCK_N), n, 0.0, ACC)
    shift = row_shift(x_ptr, x_at, residual_ptr, residual_at, valid, CENTER, ACC)
    mean = long_row_mean(x_ptr, x_at, residual_ptr, residual_at, shift, valid, n, CENTER, ONE_PASS, ACC, BLOCK_N)
    shift_dot = tl.zeros([BLOCK_M, 1], ACC)
    mean_dot = tl.zeros([BLOCK_M, 1], ACC)
    x_dot_at = group * x_dot_group + row * x_dot_row
    residual_dot_at = group * residual_dot_group + row * residual_dot_row
    if x_dot_ptr is not None and not MANY:
        shift_dot = row_shift(x_dot_ptr, x_dot_at, residual_dot_ptr, residual_dot_at, valid, CENTER, ACC)
        mean_dot = long_row_mean(
            x_dot_ptr, x_dot_at, residual_dot_ptr, residual_dot_at, shift_dot, valid, n, CENTER, ONE_PASS, ACC, BLOCK_N
        )
    squares = tl.zeros([BLOCK_M, 1], ACC)
    inner = tl.zeros([BLOCK_M, 1], ACC)  # Σ x ẋ
    for start in range(0, stop, BLOCK_N):
        col = column_numbers(start, BLOCK_N)
        inside = valid & (col < n)
        x = load_sum(x_ptr, x_at, residual_ptr, residual_at, col, inside, ACC)
        if x_dot_ptr is not None and not MANY:
            x_dot = load_sum(x_dot_ptr, x_dot_at, residual_dot_ptr, residual_dot_at, col, inside, ACC)
            if sum_dot_ptr is not None:
                tl.store(sum_dot_ptr + out_rows + col, x_dot.to(sum_dot_ptr.dtype.element_ty), mask=inside)
        if sum_ptr is not None:
            tl.store(sum_ptr + out_rows + col, x.to(sum_ptr.dtype.element_ty), mask=inside)
        if x_dot_ptr is not None and not MANY:
            x = less(x, shift, col < n, CENTER)
            x_dot = less(x_dot, shift_dot, col < n, CENTER)
            if CENTER and ONE_PASS:
                total, total_dot = row_sums(x, x_dot)
                mean = total / n
                mean_dot = total_dot / n
            x = less(x, mean, col < n, CENTER)
            x_dot = less(x_dot, mean_dot, col < n, CENTER)
            total_xx, total_xv = row_sums(x * x, x * x_dot)
            squares += total_xx
            inner += total_xv
        else:
            x = centre(x, shift, mean, col < n, n, CENTER, ONE_PASS)
            squares += row_sum(x * x)
    r = inverse_rms(squares, n, eps)

    for t in range(0, tangents if MANY else 1):
        k = group + t
        dot_rows = (k * rows + row) * n
        if MANY and x_dot_ptr is not None:
            x_dot_at = k * x_dot_group + row * x_dot_row
            residual_dot_at = k * residual_dot_group + row * residual_dot_row
            shift_dot = row_shift(x_dot_ptr, x_dot_at, residual_dot_ptr, residual_dot_at, valid, CENTER, ACC)
            mean_dot = long_row_mean(
                x_dot_ptr,
                x_dot_at,
                residual_dot_ptr,
                residual_dot_at,
                shift_dot,
                valid,
                n,
                CENTER,
                ONE_PASS,
                ACC,
                BLOCK_N,
            )
            inner = tl.zeros([BLOCK_M, 1], ACC)
            for start in range(0, stop, BLOCK_N):
                col = column_numbers(start, BLOCK_N)
                inside = valid & (col < n)
                if not ONE_PASS:
                    x = load_sum(x_ptr, x_at, residual_ptr, residual_at, col, inside, ACC)
                    x = centre(x, shift, mean, col < n, n, CENTER, ONE_PASS)
                x_dot = load_sum(x_dot_ptr, x_dot_at, residual_dot_ptr, residual_dot_at, col, inside, ACC)
                if sum_dot_ptr is not None:
                    tl.store(sum_dot_ptr + dot_rows + col, x_dot.to(sum_dot_ptr.dtype.element_ty), mask=inside)
                x_dot = centre(x_dot, shift_dot, mean_dot, col < n, n, CENTER, ONE_PASS)
                inner += row_sum(x * x_dot)
        mu = r * r * inner / n
        for start in range(0, stop, BLOCK_N):
            col = column_numbers_back(start, n, BLOCK_N, ONE_PASS)
            inside = valid & (col < n)
            if not ONE_PASS:
                x = load_sum(x_ptr, x_at, residual_ptr, residual_at, col, inside, ACC)
                x = centre(x, shift, mean, col < n, n, CENTER, ONE_PASS)
                w = load_gain(w_ptr, group * w_group, col, n, OFFSET, ACC)
                b = load_weight(b_ptr, group * b_group, col, n, 0.0, ACC)
                if x_dot_ptr is not None:
                    x_dot = load_sum(x_dot_ptr, x_dot_at, residual_dot_ptr, residual_dot_at, col, inside, ACC)
                    x_dot = centre(x_dot, shift_dot, mean_dot, col < n, n, CENTER, ONE_PASS)
            if MANY or not ONE_PASS:
                w_dot = load_weight(w_dot_ptr, k * w_dot_group, col, n, 0.0, ACC)
                b_dot = load_weight(b_dot_ptr, k * b_dot_group, col, n, 0.0, ACC)
            x_hat = r * x
            y_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            if x_dot_ptr is not None:
                y_dot = (r * x_dot - mu * x_hat) * w  # (v − μ x̂) ∘ w
            if w_dot_ptr is not None:
                y_dot += x_hat * w_dot
            if b_dot_ptr is not None:
                y_dot += b_dot
            tl.store(y_dot_ptr + dot_rows + col, y_dot.to(y_dot_ptr.dtype.element_ty), mask=inside)
            if t == 0:
                if ROUND:
                    x_hat = x_hat.to(y_ptr.dtype.element_ty).to(ACC)
                y = x_hat * w
                if b_ptr is not None:
                    y += b
                tl.store(y_ptr + out_rows + col, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tangents", "rows"], do_not_specialize_on_alignment=["groups"])
def _jvp_kernel(
    x_ptr,
    residual_ptr,
    w_ptr,
    b_ptr,
    x_dot_ptr,
    residual_dot_ptr,
    w_dot_ptr,
    b_dot_ptr,
    y_ptr,
    sum_ptr,
    y_dot_ptr,
    sum_dot_ptr,
    groups,
    tangents,
    rows,
    n,
    x_group,
    x_row,
    residual_group,
    residual_row,
    w_group,
    b_group,
    x_dot_group,
    x_dot_row,
    residual_dot_group,
    residual_dot_row,
    w_dot_group,
    b_dot_group,
    eps: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    MANY: tl.constexpr,
    CENTER: tl.constexpr,
    OFFSET: tl.constexpr,
    ROUND: tl.constexpr,
    ACC: tl.constexpr,
    ONE_PASS: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal and tangents, see `jvp_rows`. One program: BLOCK_M rows of one group and all their tangents."""
    jvp_rows(
        tl.program_id(0),
        x_ptr,
        residual_ptr,
        w_ptr,
        b_ptr,
        x_dot_ptr,
        residual_dot_ptr,
        w_dot_ptr,
        b_dot_ptr,
        y_ptr,
        sum_ptr,
        y_dot_ptr,
        sum_dot_ptr,
        groups,
        tangents,
        rows,
        BLOCK_N if FULL else n,
        x_group,
        x_row,
        residual_group,
        residual_row,
        w_group,
        b_group,
        x_dot_group,
        x_dot_row,
        residual_dot_group,
        residual_dot_row,
        w_dot_group,
        b_dot_group,
        eps,
        MANY,
        CENTER,
        OFFSET,
        ROUND,
        ACC,
        ONE_PASS,
        BLOCK_M,
        BLOCK_N,
    )


def norm_jvp(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    x_dot: Tensor | None,
    weight_dot: Tensor | None,
    bias_dot: Tensor | None,
    norm: Norm,
    *,
    residual: Tensor | None = None,
    residual_dot: Tensor | None = None,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Compute y and ẏ = (v − μ x̂) ∘ (offset + w) + x̂ ∘ ẇ + ḃ, of x or of s = x + residual, one launch.

    Where all groups of the primal share their memory (K = 1 or a group stride of 0), a program reads a row of it once
    for all tangents, and y is computed once: its groups then share their memory too.

    Args:
        x: (K or 1, M, N), any strides.
        weight: (K or 1, N), or None for a gain of ones.
        bias: (K or 1, N), or None for zeros.
        x_dot: (K or 1, M, N), or None for zero.
        weight_dot: (K or 1, N), or None for zero.
        bias_dot: (K or 1, N), or None for zero.
        norm: Which norm.
        residual: (K or 1, M, N), dtype of x, or None.
        residual_dot: (K or 1, M, N), or None for zero; only with a residual.
        block_limit: Longest row to take in one pass, for tests.

    Returns:
        y with as many groups as x, weight, bias and residual have; ẏ, (K, M, N), contiguous; both of the dtype of x.
        Then s and ṡ in the same way, None without a residual, ṡ None also where it is zero.
    """
    _, rows, n = x.shape
    primal_groups = group_count(x, weight, bias, residual)
    groups = group_count(x, weight, bias, residual, x_dot, weight_dot, bias_dot, residual_dot)
    if x_dot is None:  # a kernel that finds no ẋ looks for no ṙ
        x_dot, residual_dot = residual_dot, None
    y_dot = torch.empty((groups, rows, n), dtype=x.dtype, device=x.device)
    total_dot = torch.empty_like(y_dot) if residual is not None and x_dot is not None else None
    if y_dot.numel() == 0 or (x_dot is None and weight_dot is None and bias_dot is None):
        y, total = norm_forward(x, weight, bias, norm, residual=residual, block_limit=block_limit)
        return y, y_dot.zero_(), total, total_dot
    x, weight, bias, residual = unit_columns(x), unit_columns(weight), unit_columns(bias), unit_columns(residual)
    x_dot, weight_dot, bias_dot = unit_columns(x_dot), unit_columns(weight_dot), unit_columns(bias_dot)
    residual_dot = unit_columns(residual_dot)
    w_group, b_group = group_stride(weight), group_stride(bias)
    w_dot_group, b_dot_group = group_stride(weight_dot), group_stride(bias_dot)
    shared = group_stride(x) == 0 and group_stride(residual) == 0 and w_group == 0 and b_group == 0
    many = shared and groups > 1
    # Folding needs rows that differ in nothing but x and ẋ; with many tangents the primal's one group stays as it is.
    fold = w_group == 0 and b_group == 0 and w_dot_group == 0 and b_dot_group == 0 and not many
    layout = lay_out((x, residual, x_dot, residual_dot), groups, rows, fold=fold)
    grid_groups = 1 if many else layout.groups
    y = torch.empty((1 if shared else groups, rows, n), dtype=x.dtype, device=x.device)
    total = None if residual is None else torch.empty_like(y)
    operands = (weight, bias, residual, x_dot, weight_dot, bias_dot, residual_dot)
    tiles = 1 + many + sum(t is not None for t in operands)
    config = row_config(n, x.element_size(), tiles, block_limit, many=many)
    (x_strides, residual_strides, x_dot_strides, residual_dot_strides) = layout.strides
    launch(
        _jvp_kernel,
        grid_groups * -(-layout.rows // config.block_m),
        x,
        x,
        residual,
        weight,
        bias,
        x_dot,
        residual_dot,
        weight_dot,
        bias_dot,
        y,
        total,
        y_dot,
        total_dot,
        grid_groups,
        groups,
        layout.rows,
        n,
        *x_strides,
        *residual_strides,
        w_group,
        b_group,
        *x_dot_strides,
        *residual_dot_strides,
        w_dot_group,
        b_dot_group,
        norm.eps,
        MANY=many,
        **of_values(norm, x),
        **config.row_tiling(n),
    )
    if y.shape[0] != primal_groups:
        y = y.expand(primal_groups, rows, n)
        total = None if total is None else total.expand(primal_groups, rows, n)
    return y, y_dot, total, total_dot
