"""Gated residual y = x + g ∘ h: Triton kernels and their launchers for primal, JVP and VJP.

    ẏ = ẋ + ġ ∘ h + g ∘ ḣ                    x̄ = ȳ,   h̄ = g ∘ ȳ,   ḡ = Σ_tokens h ∘ ȳ

Row operands are (K, B, T, D), gates (K, B, 1, D), where K may be 1 against the others' K, B and D of a gate 1.
Arithmetic is float64 if x is float64, else float32; y, ẏ have the dtype of x, cotangents that of their arguments.
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
from ._launch import launch, multiprocessors
from ._layout import group_count, unit_columns
from ._partials import partial_sums, sum_partials
from ._rows import load_tile
from ._variants import Variant, variants_of


@triton.jit(do_not_specialize=["tangents", "batch", "rows", "row_blocks", "column_blocks"])
def _push_kernel(
    x_ptr,  # (K, batch, rows, n), like h
    gate_ptr,  # (K, batch, n)
    h_ptr,
    x_dot_ptr,  # (K·tangents, batch, rows, n) or None, like ḣ
    gate_dot_ptr,  # (K·tangents, batch, n) or None
    h_dot_ptr,
    y_ptr,  # (K, batch, rows, n), contiguous
    y_dot_ptr,  # (K·tangents, batch, rows, n), contiguous, or None
    tangents,
    batch,
    rows,
    n,
    row_blocks,
    column_blocks,
    x_k,
    x_b,
    x_t,
    gate_k,
    gate_b,
    gate_d,
    h_k,
    h_b,
    h_t,
    x_dot_k,
    x_dot_b,
    x_dot_t,
    gate_dot_k,
    gate_dot_b,
    gate_dot_d,
    h_dot_k,
    h_dot_b,
    h_dot_t,
    MANY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal and tangents: y = x + g h, ẏ = ẋ + ġ h + g ḣ.

    One program: a tile of one sample and all its tangents: one a k or, if MANY, K = 1 with `tangents` of them. Moves
    3·size bytes an element, and (1 + tangents present)·size more for each tangent.
    """
    outer, _, first, col = column_program(row_blocks, column_blocks, BLOCK_M, BLOCK_N)
    k = outer // batch
    b = outer % batch
    row = first + tl.arange(0, BLOCK_M)[:, None]
    inside = (row < rows) & (col < n)
    gate = load_tile(gate_ptr + k * gate_k + b * gate_b + col * gate_d, col < n, ACC)
    x = load_tile(x_ptr + k * x_k + b * x_b + row * x_t + col, inside, ACC)
    h = load_tile(h_ptr + k * h_k + b * h_b + row * h_t + col, inside, ACC)
    y = x + gate * h
    tl.store(y_ptr + (outer * rows + row) * n + col, y.to(y_ptr.dtype.element_ty), mask=inside)
    if y_dot_ptr is not None:
        for t in range(0, tangents if MANY else 1):
            kt = k + t
            y_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            if x_dot_ptr is not None:
                y_dot += load_tile(x_dot_ptr + kt * x_dot_k + b * x_dot_b + row * x_dot_t + col, inside, ACC)
            if gate_dot_ptr is not None:
                y_dot += h * load_tile(gate_dot_ptr + kt * gate_dot_k + b * gate_dot_b + col * gate_dot_d, col < n, ACC)
            if h_dot_ptr is not None:
                y_dot += gate * load_tile(h_dot_ptr + kt * h_dot_k + b * h_dot_b + row * h_dot_t + col, inside, ACC)
            out = y_dot_ptr + ((kt * batch + b) * rows + row) * n + col
            tl.store(out, y_dot.to(y_dot_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["batch", "rows", "rows_per_program", "row_blocks", "column_blocks"])
def _pull_kernel(
    y_bar_ptr,  # (K, batch, rows, n)
    gate_ptr,  # (K, batch, n) or None
    h_ptr,  # (K, batch, rows, n) or None
    x_bar_ptr,  # (K, batch, rows, n), contiguous, or None, like h̄
    gate_bar_ptr,  # (K, batch, row_blocks, n), contiguous, or None
    h_bar_ptr,
    batch,
    rows,
    n,
    rows_per_program,
    row_blocks,
    column_blocks,
    y_bar_k,
    y_bar_b,
    y_bar_t,
    gate_k,
    gate_b,
    gate_d,
    h_k,
    h_b,
    h_t,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Cotangents: x̄ = ȳ, h̄ = g ȳ, and this program's share of ḡ = Σ_rows h ȳ.

    One program: rows_per_program rows of BLOCK_N columns of one sample. Moves (operands + results)·size bytes an
    element, 4·size at most, and 4·n bytes a run of rows.
    """
    outer, block, first, col = column_program(row_blocks, column_blocks, rows_per_program, BLOCK_N)
    k = outer // batch
    b = outer % batch
    gate = tl.zeros([1, BLOCK_N], ACC)
    if gate_ptr is not None:
        gate = load_tile(gate_ptr + k * gate_k + b * gate_b + col * gate_d, col < n, ACC)
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for below in range(0, rows_per_program, BLOCK_M):
        row = first + below + tl.arange(0, BLOCK_M)[:, None]
        inside = (row < rows) & (col < n)
        y_bar = load_tile(y_bar_ptr + k * y_bar_k + b * y_bar_b + row * y_bar_t + col, inside, ACC)
        out = (outer * rows + row) * n + col
        if x_bar_ptr is not None:
            tl.store(x_bar_ptr + out, y_bar.to(x_bar_ptr.dtype.element_ty), mask=inside)
        if h_bar_ptr is not None:
            tl.store(h_bar_ptr + out, (gate * y_bar).to(h_bar_ptr.dtype.element_ty), mask=inside)
        if gate_bar_ptr is not None:
            total += y_bar * load_tile(h_ptr + k * h_k + b * h_b + row * h_t + col, inside, ACC)
    if gate_bar_ptr is not None:
        share = tl.sum(total, axis=0, keep_dims=True).to(gate_bar_ptr.dtype.element_ty)
        tl.store(gate_bar_ptr + (outer * row_blocks + block) * n + col, share, mask=col < n)


def gated_residual_push(
    x: Tensor,
    gate: Tensor,
    h: Tensor,
    tangents: tuple[Tensor | None, Tensor | None, Tensor | None] | None = None,
    *,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute y = x + g ∘ h and, if there are tangents, ẏ = ẋ + ġ ∘ h + g ∘ ḣ, one launch.

    Args:
        x: (K or 1, B, T, D), any strides, like all operands.
        gate: (K or 1, B or 1, 1, D or 1).
        h: (K or 1, B, T, D).
        tangents: Those of x, gate and h, each None for zero; None asks for y alone.
        block_limit: Rows and columns of a tile at most, for tests.

    Returns:
        y, with as many K as x, gate and h have, and ẏ with all K, or None; contiguous, dtype of x.
    """
    _, batch, rows, n = x.shape
    dots = tangents or (None, None, None)
    k_primal, k = group_count(x, gate, h), group_count(x, gate, h, *dots)
    shared = all(axis_stride(t, 0) == 0 for t in (x, gate, h))
    many = shared and k > 1 and tangents is not None
    k_y = (1 if many else k) if tangents is not None else k_primal
    y = torch.empty((k_y, batch, rows, n), dtype=x.dtype, device=x.device)
    y_dot = torch.empty((k, batch, rows, n), dtype=x.dtype, device=x.device) if tangents is not None else None
    if y.numel() == 0 or (y_dot is not None and y_dot.numel() == 0):
        return y[:1].expand(k_primal, -1, -1, -1) if y.numel() else y.new_empty(k_primal, batch, rows, n), y_dot
    x, h = unit_columns(x), unit_columns(h)
    dots = (unit_columns(dots[0]), dots[1], unit_columns(dots[2]))
    config = column_config(k_y * batch, rows, n, x.element_size(), None, block_limit)
    strides = [axis_stride(t, axis) for t, last in ((x, 2), (gate, 3), (h, 2)) for axis in (0, 1, last)]
    strides += [axis_stride(t, axis) for t, last in zip(dots, (2, 3, 2), strict=True) for axis in (0, 1, last)]
    launch(
        _push_kernel,
        k_y * batch * config.blocks,
        x,
        x,
        gate,
        h,
        *dots,
        y,
        y_dot,
        k,
        batch,
        rows,
        n,
        config.row_blocks,
        config.column_blocks,
        *strides,
        MANY=many,
        ACC=accumulator(x.dtype),
        **config.options,
    )
    return y if k_y == k_primal else y.expand(k_primal, -1, -1, -1), y_dot


def gated_residual_vjp(
    y_bar: Tensor,
    x_dtype: torch.dtype,
    gate: Tensor,
    h: Tensor,
    needs: tuple[bool, bool, bool],
    *,
    block_limit: int | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute x̄ = ȳ, ḡ = Σ_tokens h ∘ ȳ and h̄ = g ∘ ȳ: one launch, and one to add up ḡ in a fixed order.

    Args:
        y_bar: (K, B, T, D), any strides.
        x_dtype: Dtype of x, hence of x̄.
        gate: (K or 1, B or 1, 1, D or 1).
        h: (K or 1, B, T, D).
        needs: Whether to compute x̄, ḡ and h̄.
        block_limit: Rows and columns of a tile at most, for tests.

    Returns:
        x̄ and h̄, (K, B, T, D); ḡ, (K, B, 1, D) of the arithmetic's dtype, not yet summed over what broadcasts.
    """
    k, batch, rows, n = y_bar.shape
    dtype = partial_dtype(x_dtype)
    x_bar, h_bar = (
        torch.empty(y_bar.shape, dtype=t, device=y_bar.device) if needed else None
        for t, needed in ((x_dtype, needs[0]), (h.dtype, needs[2]))
    )
    gate_bar = torch.empty((k * batch, n), dtype=dtype, device=y_bar.device) if needs[1] else None
    shaped = None if gate_bar is None else gate_bar.view(k, batch, 1, n)
    if y_bar.numel() == 0:
        return x_bar, None if shaped is None else shaped.zero_(), h_bar
    y_bar, h = unit_columns(y_bar), unit_columns(h)
    processors = multiprocessors(y_bar.device) if needs[1] else None
    config = column_config(k * batch, rows, n, y_bar.element_size(), processors, block_limit)
    partial = None if gate_bar is None else partial_sums(k * batch, config.row_blocks, gate_bar, dtype)
    launch(
        _pull_kernel,
        k * batch * config.blocks,
        y_bar,
        y_bar,
        gate if needs[2] else None,
        h if needs[1] else None,
        x_bar,
        partial,
        h_bar,
        batch,
        rows,
        n,
        config.rows_per_program,
        config.row_blocks,
        config.column_blocks,
        *(axis_stride(t, axis) for t, last in ((y_bar, 2), (gate, 3), (h, 2)) for axis in (0, 1, last)),
        ACC=accumulator(x_dtype),
        **config.options,
    )
    if partial is not None and gate_bar is not None:
        sum_partials(partial, gate_bar)
    return x_bar, shaped, h_bar


def aot_variants() -> list[Variant]:
    """Return each kernel variant that the launchers choose, once, for ahead-of-time compilation."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    for dtype, n in (
        (torch.bfloat16, 1152),
        (torch.bfloat16, 33),
        (torch.float16, 64),
        (torch.float32, 512),
        (torch.float64, 512),
    ):
        x, gate = torch.empty(1, 4, 256, n, dtype=dtype, device="meta"), torch.empty(1, 4, 1, n, device="meta")
        yield partial(gated_residual_push, x, gate, x)
        yield partial(gated_residual_push, x, gate, x, (x, gate, x))
        yield partial(gated_residual_push, x, gate, x, (x.expand(3, -1, -1, -1), None, None))
        yield partial(gated_residual_vjp, x, dtype, gate, x, (True, True, True))
    x, gate = torch.empty(1, 4, 256, 64, device="meta"), torch.empty(1, 4, 1, 1, device="meta")
    for dots in ((None, gate, None), (None, None, x), (x, None, x)):
        yield partial(gated_residual_push, x, gate, x, dots)
    for needs in ((True, False, False), (False, True, False), (False, False, True), (True, False, True)):
        yield partial(gated_residual_vjp, x, torch.float32, gate, x, needs)
