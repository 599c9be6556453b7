"""Pieces that the norm kernels share: what a launch is told about the norm, a centred row, a gain with its offset."""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from .._rows import column_numbers, load_tile, load_weight, row_sum


class Norm(NamedTuple):
    """Which norm: y = x̂ ∘ (offset + w) + b, with x̂ = r P x and r = (mean((P x)²) + eps)^(-1/2).

    Attributes:
        eps: Added under the root.
        centred: Whether P subtracts the mean of the row (layer norm); if not, it is the identity (RMS norm).
        offset: Added to the gain where there is one.
        rounded: Whether x̂ is rounded to the dtype of x before it meets the gain, in values (derivatives never are).
    """

    eps: float
    centred: bool = False
    offset: float = 0.0
    rounded: bool = False


@triton.jit
def load_sum(x_ptr, x_at, residual_ptr, residual_at, col, inside, ACC: tl.constexpr):
    """Return a tile of x, or of x + residual rounded to the dtype of x, in the accumulation dtype; 0 outside."""
    tile = load_tile(x_ptr + x_at + col, inside, ACC)
    if residual_ptr is not None:
        tile += load_tile(residual_ptr + residual_at + col, inside, ACC)
        tile = tile.to(x_ptr.dtype.element_ty).to(ACC)
    return tile


@triton.jit
def row_shift(x_ptr, x_at, residual_ptr, residual_at, valid, CENTER: tl.constexpr, ACC: tl.constexpr):
    """Return the first element of each row, (BLOCK_M, 1): about it a mean is exact however far from 0 a row lies."""
    if CENTER:
        return load_sum(x_ptr, x_at, residual_ptr, residual_at, 0, valid, ACC)
    else:
        return tl.zeros(valid.shape, ACC)


@triton.jit
def long_row_mean(
    x_ptr,
    x_at,
    residual_ptr,
    residual_at,
    shift,
    valid,
    n,
    CENTER: tl.constexpr,
    ONE_PASS: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Return mean(x − shift) of rows too long for a tile, by a pass of its own; a tile finds its own in `centre`."""
    total = tl.zeros(valid.shape, ACC)
    if CENTER and not ONE_PASS:
        for start in range(0, n, BLOCK_N):
            col = column_numbers(start, BLOCK_N)
            inside = valid & (col < n)
            tile = load_sum(x_ptr, x_at, residual_ptr, residual_at, col, inside, ACC)
            total += row_sum(tl.where(inside, tile - shift, 0.0))
    return total / n


@triton.jit
def centre(tile, shift, mean, inside, n, CENTER: tl.constexpr, ONE_PASS: tl.constexpr):
    """Return P x: a tile less the mean of its rows; the tile itself for a norm that does not centre. See `less`."""
    tile = less(tile, shift, inside, CENTER)
    if CENTER and ONE_PASS:
        mean = row_sum(tile) / n
    return less(tile, mean, inside, CENTER)


@triton.jit
def less(tile, amount, inside, CENTER: tl.constexpr):
    """Return a tile less an amount of each row; the tile itself for a norm that does not centre.

    Columns outside become 0. Rows outside, which were loaded as zeros, have an amount of 0 and stay what they are.
    """
    if CENTER:
        tile = tl.where(inside, tile - amount, 0.0)
    return tile


@triton.jit
def load_gain(w_ptr, offset, col, n, OFFSET: tl.constexpr, ACC: tl.constexpr):
    """Return columns of the gain OFFSET + w as a row (1, BLOCK_N); 1 without a weight."""
    gain = load_weight(w_ptr, offset, col, n, 1.0, ACC)
    if w_ptr is not None and OFFSET != 0.0:
        gain += OFFSET
    return gain
