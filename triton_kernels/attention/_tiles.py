"""How attention kernels address matrices of one head, and which tiles they visit."""

# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false
# Constexprs decide what is bound.

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def head_offset(n, b, h, n_stride, b_stride, h_stride):
    """Return how many elements the matrix of one head begins behind the first."""
    return n.to(tl.int64) * n_stride + b.to(tl.int64) * b_stride + h.to(tl.int64) * h_stride


@triton.jit
def load_rows(
    ptr,
    start,
    stride,
    count,
    LENGTH: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Load LENGTH vectors of a matrix from `start` as rows of a tile, zeros where there are none; WHOLE: all exist."""
    # WIDE: elements stand 2³¹ or more behind the first. Only then is start · stride added to the pointer: the compiler
    # would add the rest before it, outside of the loop, and keep an address of 64 bits for every load of a thread. In
    # 32 bits the offsets inside of a tile stay what they are, and matrices of the same strides share them.
    number = tl.arange(0, LENGTH)[:, None]
    element = tl.arange(0, BLOCK)[None, :]
    if WIDE:
        place = ptr + tl.cast(start, tl.int64) * stride + (number * stride + element)
    else:
        place = ptr + (start * stride + (number * stride + element))
    return _load(place, start + number < count, element < SIZE, SIZE, BLOCK, WHOLE)


@triton.jit
def _load(place, exists, fits, SIZE: tl.constexpr, BLOCK: tl.constexpr, WHOLE: tl.constexpr):
    if WHOLE:
        if SIZE == BLOCK:
            return tl.load(place)
        else:
            return tl.load(place, mask=fits, other=0.0)
    else:
        if SIZE == BLOCK:
            return tl.load(place, mask=exists, other=0.0)
        else:
            return tl.load(place, mask=exists & fits, other=0.0)


@triton.jit
def store_rows(ptr, start, count, tile, LENGTH: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Store the rows of a tile as vectors from `start` of a contiguous matrix."""
    number = tl.arange(0, LENGTH)[:, None]
    element = tl.arange(0, BLOCK)[None, :]
    place = ptr + tl.cast(start, tl.int64) * SIZE + (number * SIZE + element)
    tl.store(place, tile.to(ptr.dtype.element_ty), mask=(start + number < count) & (element < SIZE))


@triton.jit
def keys_of_tile(begin, end, index, rows, columns, BLOCK: tl.constexpr):
    """Return the first and end of the keys that some of these rows see, in tiles, and the end of those all see.

    Keys before the first that all see are counted among those that only some do: with a window there are no others.
    """
    exists = index < rows
    first = tl.min(tl.where(exists, begin, columns))
    last = tl.max(tl.where(exists, end, 0))
    shared = tl.min(tl.where(exists, end, columns))
    blind = tl.max(tl.where(exists, begin, 0)) > 0
    first = tl.maximum(first, 0) // BLOCK
    last = (tl.minimum(last, columns) + BLOCK - 1) // BLOCK
    shared = tl.where(blind, first, tl.maximum(shared, 0) // BLOCK)
    return first, tl.maximum(last, first), tl.minimum(tl.maximum(shared, first), last)
