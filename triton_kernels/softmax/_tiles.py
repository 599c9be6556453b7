"""How softmax kernels walk over an axis that need not be the last: tiles, masks, and the online sum of exponentials.

An operand is (groups K, outer O, columns n, inner I): the axis in the middle, what stands before it and behind it. A
row is one of the O·I lines along the axis. Inner positions are adjacent in memory, columns are I apart.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .._config import Config, row_config
from .._layout import group_stride
from .._rows import load_tile

# Tiles of rows that lie beside one another in memory: this many make loads of whole cache lines.
_INNER_ROWS = (64, 32, 16)
_MAX_INNER_TILE = 4096


class MaskLayout(NamedTuple):
    """A boolean mask as kernels address it: up to three strides over groups and outer axes, two over inner and columns.

    Attributes:
        mask: The tensor, never expanded; or None.
        groups: How many groups it tells apart; 1 if all share it.
        numbers: Strides of three outer levels, sizes of the two last of them, strides of inner and columns.
    """

    mask: Tensor | None
    groups: int
    numbers: tuple[int, int, int, int, int, int, int]

    def arguments(self, outer: int) -> tuple[int, ...]:
        """Return what kernels take: the mask's rows between two groups, and `numbers`."""
        return (outer if self.groups > 1 else 0, *self.numbers)


NO_MASK = MaskLayout(None, 1, (0, 0, 0, 1, 1, 0, 0))


def lay_out_mask(mask: Tensor | None, lead: int, groups: int = 1) -> MaskLayout:
    """Strides of a mask that is a view of the operands' full shape, stride 0 where it is broadcast.

    Args:
        mask: (*lead axes, n, I), expanded as a view; or None.
        lead: Number of lead axes: those of groups, unless all share it, and outer ones.
        groups: How many groups it tells apart; 1 if all share it.

    Returns:
        The layout. A mask that needs more than three strides over its lead axes is copied, one that does not is not.
    """
    if mask is None:
        return NO_MASK
    levels = _merged(mask.shape[:lead], mask.stride()[:lead])
    if len(levels) > 3:
        mask = mask.contiguous()
        levels = _merged(mask.shape[:lead], mask.stride()[:lead])
    padded = [(1, 0)] * (3 - len(levels)) + levels
    strides, sizes = [s for _, s in padded], [z for z, _ in padded]
    return MaskLayout(mask, groups, (*strides, *sizes[1:], mask.stride(-1), mask.stride(-2)))  # pyright: ignore[reportArgumentType]


def _merged(sizes: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """Sizes and strides of axes, those joined that are walked by one stride."""
    levels: list[tuple[int, int]] = []
    for size, stride in zip(sizes, strides, strict=True):
        if size == 1:
            continue
        if levels and levels[-1][1] == size * stride:
            levels[-1] = (levels[-1][0] * size, stride)
        else:
            levels.append((size, stride))
    return levels


def adjacent(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor (K, O, n, I), copied only if its columns are not I apart or its inner positions not adjacent."""
    if tensor is None or tensor.numel() == 0:
        return tensor
    n, inner = tensor.shape[-2:]
    if (n == 1 or tensor.stride(-2) == inner) and (inner == 1 or tensor.stride(-1) == 1):
        return tensor
    return tensor.contiguous()


def outer_strides(tensor: Tensor | None) -> tuple[int, int]:
    """Return the strides of groups (0 if they share their memory) and of outer positions."""
    return (0, 0) if tensor is None else (group_stride(tensor), tensor.stride(1))


@functools.cache
def softmax_config(n: int, inner: int, itemsize: int, tiles: int, limit: int | None = None) -> Config:
    """Configuration for n columns that are `inner` apart; for one inner position, `row_config`.

    Args:
        n: Columns.
        inner: Inner positions.
        itemsize: Bytes of an element.
        tiles: Row-shaped values a program keeps at once.
        limit: Longest row to take in one pass, for tests.

    Returns:
        The configuration.
    """
    if inner == 1:
        return row_config(n, itemsize, tiles, limit)
    elements = _MAX_INNER_TILE // (4 if tiles * (3 if itemsize == 8 else 1) > 6 else 1)
    beside = 1 << (inner - 1).bit_length()
    block_n = 1 << max(0, n - 1).bit_length()
    longest = elements if limit is None else limit
    for block_m in _INNER_ROWS:
        block_m = min(block_m, beside)
        if block_n <= min(longest, elements // block_m):
            return Config(block_m, block_n, True, max(1, min(8, block_m * block_n // 512)))
    block_m = min(_INNER_ROWS[1], beside)
    block_n = min(longest, elements // block_m)
    return Config(block_m, block_n, False, max(1, min(8, block_m * block_n // 512)))


def programs(config: Config, groups: int, outer: int, inner: int) -> int:
    """Return the size of the grid that `program_rows` decodes."""
    if inner == 1:
        return groups * -(-outer // config.block_m)
    return groups * outer * -(-inner // config.block_m)


@triton.jit
def program_rows(groups, outer, inner, INNER: tl.constexpr, BLOCK_M: tl.constexpr):
    """Return a program's group, outer and inner positions as columns (BLOCK_M, 1) or scalars, and which exist.

    With INNER its rows lie side by side at one outer position; else every outer position is one row. All are int64.
    """
    program = tl.program_id(0)
    group = (program % groups).to(tl.int64)
    block = (program // groups).to(tl.int64)
    step = tl.arange(0, BLOCK_M)[:, None]
    if INNER:
        blocks = (inner + BLOCK_M - 1) // BLOCK_M
        i = block % blocks * BLOCK_M + step
        o = block // blocks + step * 0
        return group, o, i, i < inner
    else:
        o = block * BLOCK_M + step
        return group, o, o * 0, o < outer


@triton.jit
def column_offsets(col, inner, INNER: tl.constexpr):
    """Return how far columns lie from the first one."""
    if INNER:
        return col.to(tl.int64) * inner
    else:
        return col


@triton.jit
def mask_rows(mask_ptr, row, i, stride_2, stride_1, stride_0, size_1, size_0, stride_i):
    """Return where the mask of each row starts; `row` counts outer positions, and groups where the mask has them."""
    if mask_ptr is None:
        return row
    else:
        rest = row // size_0
        return mask_ptr + rest // size_1 * stride_2 + rest % size_1 * stride_1 + row % size_0 * stride_0 + i * stride_i


@triton.jit
def load_keep(mask_ptr, rows, col, stride_col, inside):
    """Return which lanes of a tile are inside and kept by the mask."""
    if mask_ptr is None:
        return inside
    else:
        return inside & (tl.load(rows + col.to(tl.int64) * stride_col, mask=inside, other=0) != 0)


@triton.jit
def load_scores(pointers, keep, s, ACC: tl.constexpr):
    """Return s·x, -∞ where not kept."""
    x = load_tile(pointers, keep, ACC)
    return tl.where(keep, s * x, float("-inf"))


@triton.jit
def finite_top(top, INFINITE: tl.constexpr):
    """Return what is subtracted before exp: the row's maximum, 0 where that is -∞ (or ∞, if INFINITE)."""
    empty = top == float("-inf")
    if INFINITE:
        empty = empty | (top == float("inf"))
    return tl.where(empty, 0.0, top)


@triton.jit
def raised(top, tile, INFINITE: tl.constexpr):
    """Return the maximum with one more tile, and the factor by which sums of exponentials shrink: exp(old − new)."""
    new = tl.maximum(top, tl.max(tile, axis=1, keep_dims=True))
    shrink = tl.exp(finite_top(top, INFINITE) - finite_top(new, INFINITE))
    return new, tl.where(top == float("-inf"), 1.0, shrink)  # nothing was summed before


@triton.jit
def inverse_total(total, MASKED: tl.constexpr):
    """Return 1 / Σ exp; 0 for a row of which nothing is kept. Without a mask such a row is 0/0, as in PyTorch."""
    if MASKED:
        return tl.where(total == 0.0, 0.0, 1.0 / tl.where(total == 0.0, 1.0, total))
    else:
        return 1.0 / total


@triton.jit
def log_total(total, empty, MASKED: tl.constexpr):
    """Return log Σ exp; `empty` for a row of which a mask keeps nothing."""
    if MASKED:
        return tl.where(total == 0.0, empty, tl.log(tl.where(total == 0.0, 1.0, total)))
    else:
        return tl.log(total)
