"""Dynamic tanh y = t ∘ w + b with t = tanh(α x): Triton kernels and their launchers for primal, JVP and VJP.

    t′ = 1 − t²,    ẏ = t′ (α̇ x + α ẋ) ∘ w + t ∘ ẇ + ḃ

    g = w ∘ ȳ ∘ t′:   x̄ = α g,   ᾱ = Σ x g,   w̄ = Σ_rows t ∘ ȳ,   b̄ = Σ_rows ȳ

Row operands are (K, M, N), weights (K, N), α (K,), where K may be 1 against the others' K. Arithmetic is float64 if x
is float64, else float32; y, ẏ have the dtype of x, cotangents that of their arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._columns import axis_stride, column_config, column_program
from ._dtypes import accumulator, partial_dtype
from ._jets import tanh_jet
from ._launch import launch, multiprocessors
from ._layout import group_count, group_stride, unit_columns
from ._partials import partial_sums, sum_partials
from ._rows import load_tile, load_weight
from ._variants import Variant, variants_of


@triton.jit(do_not_specialize=["tangents", "rows", "row_blocks", "column_blocks"])
def _push_kernel(
    x_ptr,  # (K, rows, n)
    alpha_ptr,  # (K,)
    w_ptr,  # (K, n) or None, like b
    b_ptr,
    x_dot_ptr,  # (K·tangents, rows, n) or None
    alpha_dot_ptr,  # (K·tangents,) or None
    w_dot_ptr,  # (K·tangents, n) or None, like ḃ
    b_dot_ptr,
    y_ptr,  # (K, rows, n), contiguous
    y_dot_ptr,  # (K·tangents, rows, n), contiguous, or None
    tangents,
    rows,
    n,
    row_blocks,
    column_blocks,
    x_k,
    x_row,
    alpha_k,
    w_k,
    b_k,
    x_dot_k,
    x_dot_row,
    alpha_dot_k,
    w_dot_k,
    b_dot_k,
    MANY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal and tangents: y = t w + b, ẏ = t′ (α̇ x + α ẋ) w + t ẇ + ḃ.

    One program: a tile of one k and all its tangents: one a k or, if MANY, K = 1 with `tangents` of them. Moves
    (2 + 2·tangents)·size bytes an element of x.
    """
    k, _, first, col = column_program(row_blocks, column_blocks, BLOCK_M, BLOCK_N)
    row = first + tl.arange(0, BLOCK_M)[:, None]
    inside = (row < rows) & (col < n)
    x = load_tile(x_ptr + k * x_k + row * x_row + col, inside, ACC)
    alpha = tl.load(alpha_ptr + k * alpha_k).to(ACC)
    w = load_weight(w_ptr, k * w_k, col, n, 1.0, ACC)
    b = load_weight(b_ptr, k * b_k, col, n, 0.0, ACC)
    t, slope, _, _ = tanh_jet(alpha * x, x_ptr.dtype.element_ty.primitive_bitwidth == 16)
    tl.store(y_ptr + (k * rows + row) * n + col, (t * w + b).to(y_ptr.dtype.element_ty), mask=inside)
    if y_dot_ptr is not None:
        for i in range(0, tangents if MANY else 1):
            ki = k + i
            y_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            if alpha_dot_ptr is not None:
                y_dot += x * tl.load(alpha_dot_ptr + ki * alpha_dot_k).to(ACC)
            if x_dot_ptr is not None:
                y_dot += alpha * load_tile(x_dot_ptr + ki * x_dot_k + row * x_dot_row + col, inside, ACC)
            y_dot *= slope * w
            if w_dot_ptr is not None:
                y_dot += t * load_weight(w_dot_ptr, ki * w_dot_k, col, n, 0.0, ACC)
            if b_dot_ptr is not None:
                y_dot += load_weight(b_dot_ptr, ki * b_dot_k, col, n, 0.0, ACC)
            tl.store(y_dot_ptr + (ki * rows + row) * n + col, y_dot.to(y_dot_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "rows_per_program", "row_blocks", "column_blocks"])
def _pull_kernel(
    y_bar_ptr,  # (K, rows, n)
    x_ptr,  # (K, rows, n)
    alpha_ptr,  # (K,)
    w_ptr,  # (K, n) or None
    x_bar_ptr,  # (K, rows, n), contiguous, or None
    alpha_bar_ptr,  # (K, row_blocks·column_blocks), contiguous, or None
    w_bar_ptr,  # (K, row_blocks, n), contiguous, or None, like b̄
    b_bar_ptr,
    rows,
    n,
    rows_per_program,
    row_blocks,
    column_blocks,
    y_bar_k,
    y_bar_row,
    x_k,
    x_row,
    alpha_k,
    w_k,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Cotangents: x̄ = α g, and this program's share of ᾱ = Σ x g, w̄ = Σ_rows t ȳ and b̄ = Σ_rows ȳ, with g = w ȳ t′.

    One program: rows_per_program rows of BLOCK_N columns of one k. Moves 3·size bytes an element, one less without x̄,
    and 4 to 8·n bytes a run of rows.
    """
    k, block, first, col = column_program(row_blocks, column_blocks, rows_per_program, BLOCK_N)
    alpha = tl.load(alpha_ptr + k * alpha_k).to(ACC)
    w = load_weight(w_ptr, k * w_k, col, n, 1.0, ACC)
    alpha_bar = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w_bar = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    b_bar = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for below in range(0, rows_per_program, BLOCK_M):
        row = first + below + tl.arange(0, BLOCK_M)[:, None]
        inside = (row < rows) & (col < n)
        x = load_tile(x_ptr + k * x_k + row * x_row + col, inside, ACC)
        y_bar = load_tile(y_bar_ptr + k * y_bar_k + row * y_bar_row + col, inside, ACC)
        t, slope, _, _ = tanh_jet(alpha * x, x_ptr.dtype.element_ty.primitive_bitwidth == 16)
        g = w * y_bar * slope
        if x_bar_ptr is not None:
            tl.store(x_bar_ptr + (k * rows + row) * n + col, (alpha * g).to(x_bar_ptr.dtype.element_ty), mask=inside)
        if alpha_bar_ptr is not None:
            alpha_bar += x * g
        if w_bar_ptr is not None:
            w_bar += t * y_bar
        if b_bar_ptr is not None:
            b_bar += y_bar
    part = k * row_blocks + block
    if alpha_bar_ptr is not None:
        place = part * column_blocks + tl.program_id(0) % column_blocks
        tl.store(alpha_bar_ptr + place, tl.sum(tl.sum(alpha_bar, axis=1), axis=0).to(alpha_bar_ptr.dtype.element_ty))
    if w_bar_ptr is not None:
        share = tl.sum(w_bar, axis=0, keep_dims=True).to(w_bar_ptr.dtype.element_ty)
        tl.store(w_bar_ptr + part * n + col, share, mask=col < n)
    if b_bar_ptr is not None:
        share = tl.sum(b_bar, axis=0, keep_dims=True).to(b_bar_ptr.dtype.element_ty)
        tl.store(b_bar_ptr + part * n + col, share, mask=col < n)


def dyt_push(
    x: Tensor,
    alpha: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None] | None = None,
    *,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute y = t ∘ w + b and, if there are tangents, ẏ, one launch.

    Args:
        x: (K or 1, M, N), any strides.
        alpha: (K or 1,).
        weight: (K or 1, N), or None for all ones.
        bias: (K or 1, N), or None for zeros.
        tangents: Those of x, alpha, weight and bias, each None for zero; None asks for y alone.
        block_limit: Rows and columns of a tile at most, for tests.

    Returns:
        y, with as many K as the primals have, and ẏ with all K, or None; contiguous, dtype of x.
    """
    _, rows, n = x.shape
    dots = tangents or (None, None, None, None)
    primals = (x, alpha, weight, bias)
    k_primal, k = group_count(*primals), group_count(*primals, *dots)
    many = tangents is not None and k > 1 and all(group_stride(t) == 0 for t in primals)
    k_y = 1 if many else k
    y = torch.empty((k_primal if k == 0 else k_y, rows, n), dtype=x.dtype, device=x.device)
    y_dot = torch.empty((k, rows, n), dtype=x.dtype, device=x.device) if tangents is not None else None
    if k == 0 and k_primal:
        return dyt_push(*primals, block_limit=block_limit)[0], y_dot
    if y.numel() == 0:
        return y, y_dot
    x, weight, bias = unit_columns(x), unit_columns(weight), unit_columns(bias)
    dots = (unit_columns(dots[0]), dots[1], unit_columns(dots[2]), unit_columns(dots[3]))
    config = column_config(k_y, rows, n, x.element_size(), None, block_limit)
    launch(
        _push_kernel,
        k_y * config.blocks,
        x,
        x,
        alpha,
        weight,
        bias,
        *dots,
        y,
        y_dot,
        k,
        rows,
        n,
        config.row_blocks,
        config.column_blocks,
        group_stride(x),
        x.stride(1),
        *(group_stride(t) for t in (alpha, weight, bias)),
        group_stride(dots[0]),
        axis_stride(dots[0], 1),
        *(group_stride(t) for t in dots[1:]),
        MANY=many,
        ACC=accumulator(x.dtype),
        **config.options,
    )
    return y if y.shape[0] == k_primal else y.expand(k_primal, -1, -1), y_dot


def dyt_vjp(
    y_bar: Tensor,
    x: Tensor,
    alpha: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    needs: tuple[bool, bool, bool, bool],
    *,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Compute x̄, ᾱ, w̄ and b̄: one launch, and one for each of the last three to add them up in a fixed order.

    Args:
        y_bar: (K, M, N), any strides.
        x: (K or 1, M, N).
        alpha: (K or 1,).
        weight: (K or 1, N), or None for all ones.
        bias: (K or 1, N), or None; only its shape and dtype are read.
        needs: Whether to compute x̄, ᾱ, w̄ and b̄; an absent weight or bias has none.
        block_limit: Rows and columns of a tile at most, for tests.

    Returns:
        x̄, (K, M, N), dtype of x; the others of their arguments' dtype and shape: per k if those have K, else summed.
    """
    k, rows, n = y_bar.shape
    x_bar = torch.empty(y_bar.shape, dtype=x.dtype, device=x.device) if needs[0] else None
    alpha_bar, w_bar, b_bar = (
        torch.empty((t.shape[0], size), dtype=t.dtype, device=x.device) if needed and t is not None else None
        for t, size, needed in ((alpha, 1, needs[1]), (weight, n, needs[2]), (bias, n, needs[3]))
    )
    sums = alpha_bar, w_bar, b_bar
    if y_bar.numel() == 0:
        alpha_bar, w_bar, b_bar = (None if t is None else t.zero_() for t in sums)
    elif x_bar is not None or any(t is not None for t in sums):
        y_bar, x, weight = unit_columns(y_bar), unit_columns(x), unit_columns(weight)
        summing = any(t is not None for t in sums)
        processors = multiprocessors(x.device) if summing else None
        config = column_config(k, rows, n, x.element_size(), processors, block_limit)
        parts = (config.blocks, config.row_blocks, config.row_blocks)
        partials = [
            None if t is None else partial_sums(k, p, t, partial_dtype(x.dtype))
            for t, p in zip(sums, parts, strict=True)
        ]
        launch(
            _pull_kernel,
            k * config.blocks,
            x,
            y_bar,
            x,
            alpha,
            weight,
            x_bar,
            *partials,
            rows,
            n,
            config.rows_per_program,
            config.row_blocks,
            config.column_blocks,
            group_stride(y_bar),
            y_bar.stride(1),
            group_stride(x),
            x.stride(1),
            group_stride(alpha),
            group_stride(weight),
            ACC=accumulator(x.dtype),
            **config.options,
        )
        for partial_sum, out in zip(partials, sums, strict=True):
            if partial_sum is not None and out is not None:
                sum_partials(partial_sum, out)
    return x_bar, None if alpha_bar is None else alpha_bar[:, 0], w_bar, b_bar


def aot_variants() -> list[Variant]:
    """Return each kernel variant that the launchers choose, once, for ahead-of-time compilation."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for dtype, n in (
        (torch.bfloat16, 1152),
        (torch.float16, 33),
        (torch.float32, 512),
        (torch.float64, 512),
    ):
        x, w = torch.empty(1, 4096, n, dtype=dtype, device="meta"), torch.empty(1, n, device="meta")
        alpha = torch.empty(1, device="meta")
        yield partial(dyt_push, x, alpha, w, w)
        yield partial(dyt_push, x, alpha, w, w, (x, alpha, w, w))
        yield partial(dyt_push, x, alpha, w, w, (x.expand(3, -1, -1), None, None, None))
        yield partial(dyt_vjp, x, x, alpha, w, w, (True, True, True, True))
    x, w, alpha = (torch.empty(shape, device="meta") for shape in ((1, 64, 256), (1, 256), (1,)))
    for dots in ((None, alpha, None, None), (None, None, w, None), (None, None, None, w), (x, None, w, w)):
        yield partial(dyt_push, x, alpha, w, w, dots)
    yield partial(dyt_push, x, alpha, None, None)
    for needs in ((True, False, False, False), (False, True, False, False), (False, False, True, True)):
        yield partial(dyt_vjp, x, x, alpha, w, w, needs)
