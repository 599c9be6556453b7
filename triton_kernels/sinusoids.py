"""Cosines and sines of phases, as embeddings have them: Triton kernels and their launchers for primal, JVP and VJP.

With d numbers x in a row and column j of m, the phase is, for frequencies F or for a geometric ladder of them,

    φ = 2π Σ_i F[j, i] x[i]        or        φ = x f_j scale,   f_j = exp(decay j)   (d = 1)

    y = (cos φ, sin φ),    ẏ = (−sin φ, cos φ) φ̇,    φ̄ = cos φ · s̄ − sin φ · c̄    for ȳ = (c̄, s̄)

cos φ and sin φ are computed once for the primal and all tangents. The ladder is computed in float64 in every program
and rounded; of the phase 2π u only u − round(u) is multiplied by 2π, which loses nothing at large u.

Rows are (K, M, d), frequencies (K, m, d), results (K, M, width) with cosines from column `cos_at` and sines from column
`sin_at`; K may be 1 against the others' K. Arithmetic is float64 if x is float64, else float32; results have the dtype
of x, φ̄ that of the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._columns import ColumnConfig, axis_stride, column_config, column_program
from ._dtypes import accumulator, partial_dtype
from ._launch import launch
from ._layout import group_count
from ._variants import Variant, variants_of

_TWO_PI = tl.constexpr(6.283185307179586)


class Layout(NamedTuple):
    """Where results lie, and the ladder if there are no frequencies: decay per column, factor of the phase."""

    width: int
    cos_at: int
    sin_at: int
    decay: float = 0.0
    scale: float = 1.0


@triton.jit
def _ladder(col, decay, ACC: tl.constexpr):
    """Return f_j = exp(decay j), computed in float64."""
    return tl.exp(col.to(tl.float64) * decay).to(ACC)  # pyright: ignore[reportArgumentType]


@triton.jit
def _products(
    x_ptr, f_ptr, d, valid, columns, x_i, f_i, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr
):
    """Return Σ_i x[row, i] f[column, i] for pointers (BLOCK_M, 1) and (1, BLOCK_N) to their first elements."""
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for i in range(0, d):
        far = tl.cast(i, tl.int64)  # columns of a transposed tensor may be 2³¹ elements apart
        x = tl.load(x_ptr + far * x_i, mask=valid, other=0.0).to(ACC)
        total += x * tl.load(f_ptr + far * f_i, mask=columns, other=0.0).to(ACC)
    return total


@triton.jit
def _cos_sin(
    x_ptr, f_ptr, col, d, valid, columns, x_i, f_i, decay, scale,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return cos φ and sin φ; without f_ptr those of the ladder."""
    if f_ptr is None:
        x = tl.load(x_ptr, mask=valid, other=0.0).to(ACC)
        phase = x * _ladder(col, decay, ACC) * tl.full([1, 1], scale, ACC)
    else:
        turns = _products(x_ptr, f_ptr, d, valid, columns, x_i, f_i, BLOCK_M, BLOCK_N, ACC)
        phase = (turns - tl.floor(turns + 0.5)) * _TWO_PI
    return tl.cos(phase), tl.sin(phase)


@triton.jit(do_not_specialize=["tangents", "rows", "row_blocks", "column_blocks"])
def _push_kernel(
    x_ptr,  # (K, rows, d)
    f_ptr,  # (K, m, d) or None
    x_dot_ptr,  # (K·tangents, rows, d) or None
    f_dot_ptr,  # (K·tangents, m, d) or None
    y_ptr,  # (K, rows, width), contiguous
    y_dot_ptr,  # (K·tangents, rows, width), contiguous, or None
    tangents,
    rows,
    m,
    d,
    width,
    cos_at,
    sin_at,
    row_blocks,
    column_blocks,
    x_k,
    x_row,
    x_i,
    f_k,
    f_row,
    f_i,
    x_dot_k,
    x_dot_row,
    x_dot_i,
    f_dot_k,
    f_dot_row,
    f_dot_i,
    decay: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    scale: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    MANY: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Primal and tangents: y = (cos φ, sin φ), ẏ = (−sin φ, cos φ) φ̇.

    One program: a tile of phases of one k and all their tangents: one a k or, if MANY, K = 1 with `tangents` of them.
    Moves 2·(1 + tangents)·size bytes a phase.
    """
    k, _, first, col = column_program(row_blocks, column_blocks, BLOCK_M, BLOCK_N)
    row = first + tl.arange(0, BLOCK_M)[:, None]
    valid = row < rows
    columns = col < m
    inside = valid & columns
    x_rows = x_ptr + k * x_k + row * x_row
    f_rows = None if f_ptr is None else f_ptr + k * f_k + col * f_row
    c, s = _cos_sin(x_rows, f_rows, col, d, valid, columns, x_i, f_i, decay, scale, BLOCK_M, BLOCK_N, ACC)
    out = (k * rows + row) * width + col
    tl.store(y_ptr + out + cos_at, c.to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y_ptr + out + sin_at, s.to(y_ptr.dtype.element_ty), mask=inside)
    if y_dot_ptr is not None:
        for t in range(0, tangents if MANY else 1):
            kt = k + t
            phase_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            if f_ptr is None:
                x_dot = tl.load(x_dot_ptr + kt * x_dot_k + row * x_dot_row, mask=valid, other=0.0).to(ACC)
                phase_dot += x_dot * _ladder(col, decay, ACC) * tl.full([1, 1], scale, ACC)
            else:
                if x_dot_ptr is not None:
                    x_dot_rows = x_dot_ptr + kt * x_dot_k + row * x_dot_row
                    phase_dot += _products(x_dot_rows, f_rows, d, valid, columns, x_dot_i, f_i, BLOCK_M, BLOCK_N, ACC)
                if f_dot_ptr is not None:
                    f_dot_rows = f_dot_ptr + kt * f_dot_k + col * f_dot_row
                    phase_dot += _products(x_rows, f_dot_rows, d, valid, columns, x_i, f_dot_i, BLOCK_M, BLOCK_N, ACC)
                phase_dot *= _TWO_PI
            out = (kt * rows + row) * width + col
            tl.store(y_dot_ptr + out + cos_at, (-s * phase_dot).to(y_dot_ptr.dtype.element_ty), mask=inside)
            tl.store(y_dot_ptr + out + sin_at, (c * phase_dot).to(y_dot_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows", "row_blocks", "column_blocks"])
def _pull_kernel(
    y_bar_ptr,  # (K, rows, width)
    x_ptr,  # (K, rows, d)
    f_ptr,  # (K, m, d) or None
    out_ptr,  # φ̄, (K, rows, m), contiguous; without f_ptr x̄, (K, rows), contiguous
    rows,
    m,
    d,
    cos_at,
    sin_at,
    row_blocks,
    column_blocks,
    y_bar_k,
    y_bar_row,
    y_bar_i,
    x_k,
    x_row,
    x_i,
    f_k,
    f_row,
    f_i,
    decay: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    scale: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Cotangents: φ̄ = cos φ · s̄ − sin φ · c̄; or, with the ladder, x̄ = Σ_j f_j scale φ̄_j.

    One program: a tile of phases; with the ladder BLOCK_M rows of it. Moves 2·size bytes a phase, and 4 for φ̄.
    """
    k, _, first, col0 = column_program(row_blocks, column_blocks, BLOCK_M, BLOCK_N)
    row = first + tl.arange(0, BLOCK_M)[:, None]
    valid = row < rows
    x_rows = x_ptr + k * x_k + row * x_row
    y_bar_rows = y_bar_ptr + k * y_bar_k + row * y_bar_row
    total = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for start in range(0, m if f_ptr is None else BLOCK_N, BLOCK_N):
        col = col0 + start
        columns = col < m
        inside = valid & columns
        f_rows = None if f_ptr is None else f_ptr + k * f_k + col * f_row
        c, s = _cos_sin(x_rows, f_rows, col, d, valid, columns, x_i, f_i, decay, scale, BLOCK_M, BLOCK_N, ACC)
        far = col.to(tl.int64)  # see `_products`
        c_bar = tl.load(y_bar_rows + (far + cos_at) * y_bar_i, mask=inside, other=0.0).to(ACC)
        s_bar = tl.load(y_bar_rows + (far + sin_at) * y_bar_i, mask=inside, other=0.0).to(ACC)
        phase_bar = c * s_bar - s * c_bar
        if f_ptr is None:
            total += phase_bar * _ladder(col, decay, ACC) * tl.full([1, 1], scale, ACC)
        else:
            tl.store(out_ptr + (k * rows + row) * m + col, phase_bar, mask=inside)
    if f_ptr is None:
        x_bar = tl.sum(total, axis=1, keep_dims=True)
        tl.store(out_ptr + k * rows + row, x_bar.to(out_ptr.dtype.element_ty), mask=valid)


def sinusoids_push(
    x: Tensor,
    frequencies: Tensor | None,
    m: int,
    layout: Layout,
    tangents: tuple[Tensor | None, Tensor | None] | None = None,
    *,
    block_limit: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute y = (cos φ, sin φ) and, if there are tangents, ẏ = (−sin φ, cos φ) φ̇, one launch.

    Args:
        x: (K or 1, M, d), any strides; d = 1 without frequencies.
        frequencies: (K or 1, m, d), any strides, or None for the ladder of `layout`.
        m: Phases of a row.
        layout: Where the results lie; columns that are neither cosines nor sines are zero.
        tangents: Those of x and of the frequencies, one of them not None; None asks for y alone.
        block_limit: Rows and columns of a tile at most, for tests.

    Returns:
        y, (K of x and frequencies, M, width), and ẏ with all K, or None; contiguous, dtype of x.
    """
    dots = tangents or (None, None)
    k_primal, k = group_count(x, frequencies), group_count(x, frequencies, *dots)
    many = tangents is not None and k > 1 and axis_stride(x, 0) == 0 and axis_stride(frequencies, 0) == 0
    rows, d = x.shape[1:]
    if k == 0 and k_primal:
        y = sinusoids_push(x, frequencies, m, layout, block_limit=block_limit)[0]
        return y, y.new_empty(0, rows, layout.width)
    new = torch.empty if layout.width == 2 * m else torch.zeros
    k_y = 1 if many else k
    y = new((k_y, rows, layout.width), dtype=x.dtype, device=x.device)
    y_dot = None if tangents is None else new((k, rows, layout.width), dtype=x.dtype, device=x.device)
    if y.numel() and m:
        config = _config(k_y, rows, m, block_limit)
        launch(
            _push_kernel,
            k_y * config.blocks,
            x,
            x,
            frequencies,
            *dots,
            y,
            y_dot,
            k,
            rows,
            m,
            d,
            *layout[:3],
            config.row_blocks,
            config.column_blocks,
            *(s for t in (x, frequencies, *dots) for s in _strides(t)),
            layout.decay,
            layout.scale,
            MANY=many,
            ACC=accumulator(x.dtype),
            **config.options,
        )
    return y if k_y == k_primal else y.expand(k_primal, -1, -1), y_dot


def sinusoids_pull(
    y_bar: Tensor, x: Tensor, frequencies: Tensor | None, m: int, layout: Layout, *, block_limit: int | None = None
) -> Tensor:
    """Compute φ̄ or, with the ladder, x̄ = Σ_j f_j scale φ̄_j, one launch.

    Args:
        y_bar: (K, M, width), any strides.
        x: (K or 1, M, d); d = 1 without frequencies.
        frequencies: (K or 1, m, d), or None for the ladder of `layout`.
        m: Phases of a row.
        layout: Where cosines and sines lie.
        block_limit: Rows and columns of a tile at most, for tests.

    Returns:
        φ̄, (K, M, m), of the arithmetic's dtype; or x̄, (K, M, 1), dtype of x.
    """
    k, rows, _ = y_bar.shape
    ladder = frequencies is None
    shape, dtype = ((k, rows, 1), x.dtype) if ladder else ((k, rows, m), partial_dtype(x.dtype))
    out = torch.empty(shape, dtype=dtype, device=x.device)
    if out.numel():
        config = _config(k, rows, m, block_limit)
        column_blocks = 1 if ladder else config.column_blocks
        launch(
            _pull_kernel,
            k * config.row_blocks * column_blocks,
            x,
            y_bar,
            x,
            frequencies,
            out,
            rows,
            m,
            x.shape[2],
            layout.cos_at,
            layout.sin_at,
            config.row_blocks,
            column_blocks,
            *(s for t in (y_bar, x, frequencies) for s in _strides(t)),
            layout.decay,
            layout.scale,
            ACC=accumulator(x.dtype),
            **config.options,
        )
    return out


def _config(k: int, rows: int, m: int, limit: int | None) -> ColumnConfig:
    config = column_config(k, rows, m, 8, None, min(limit or 128, 128))
    # Sine and cosine take so many registers that a thread has four phases, not eight.
    return config._replace(options={**config.options, "num_warps": 2 * config.options["num_warps"]})


def _strides(tensor: Tensor | None) -> tuple[int, int, int]:
    return (0, 0, 0) if tensor is None else (axis_stride(tensor, 0), tensor.stride(1), tensor.stride(2))


def aot_variants() -> list[Variant]:
    """Return each kernel variant that the launchers choose, once, for ahead-of-time compilation."""
    return variants_of(_calls())


def _calls() -> Iterator[Callable[[], object]]:
    # Not in float64, where the sine of CUDA's library keeps a table of 40 bytes in local memory, as if it spilled.
    for dtype, m in ((torch.bfloat16, 128), (torch.float16, 33), (torch.float32, 160)):
        t, layout = torch.empty(1, 256, 1, dtype=dtype, device="meta"), Layout(2 * m, 0, m, -0.1)
        y_bar = torch.empty(1, 256, 2 * m, dtype=dtype, device="meta")
        yield partial(sinusoids_push, t, None, m, layout)
        yield partial(sinusoids_push, t, None, m, layout, (t, None))
        yield partial(sinusoids_pull, y_bar, t, None, m, layout)
        x = torch.empty(1, 256, 3, dtype=dtype, device="meta")
        f = torch.empty(1, m, 3, dtype=dtype, device="meta")
        yield partial(sinusoids_push, x, f, m, layout)
        yield partial(sinusoids_push, x, f, m, layout, (x, f))
        yield partial(sinusoids_push, x, f, m, layout, (x.expand(3, -1, -1), None))
        yield partial(sinusoids_pull, y_bar, x, f, m, layout)
    yield partial(sinusoids_push, x, f, m, layout, (x, None))
    yield partial(sinusoids_push, x, f, m, layout, (None, f))
    yield partial(sinusoids_push, t, None, m, layout, (t.expand(3, -1, -1), None))
