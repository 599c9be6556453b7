"""Rotary position embedding: what happens to one token in all heads of q, or of k."""

from __future__ import annotations

import triton
import triton.language as tl

from .._rows import column_numbers, load_tile, row_numbers


@triton.jit
def _load_pairs(ptr, inside, start, c, INTERLEAVED: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr):
    """Return x₁ and x₂ of pairs start, ..., start + BLOCK_C - 1 of every head: (BLOCK_H, BLOCK_C) each."""
    if INTERLEAVED:
        col = column_numbers(2 * start, 2 * BLOCK_C)
        tile = load_tile(ptr + col, inside & (col < 2 * c), ACC)
        return tl.split(tl.reshape(tile, (tile.shape[0], BLOCK_C, 2)))
    else:
        col = column_numbers(start, BLOCK_C)
        inside &= col < c
        return load_tile(ptr + col, inside, ACC), load_tile(ptr + c + col, inside, ACC)


@triton.jit
def _store_pairs(ptr, inside, start, c, x1, x2, INTERLEAVED: tl.constexpr, BLOCK_C: tl.constexpr):
    """Store what `_load_pairs` loads."""
    if INTERLEAVED:
        col = column_numbers(2 * start, 2 * BLOCK_C)
        tile = tl.reshape(tl.join(x1, x2), (x1.shape[0], 2 * BLOCK_C))
        tl.store(ptr + col, tile.to(ptr.dtype.element_ty), mask=inside & (col < 2 * c))
    else:
        col = column_numbers(start, BLOCK_C)
        inside &= col < c
        tl.store(ptr + col, x1.to(ptr.dtype.element_ty), mask=inside)
        tl.store(ptr + c + col, x2.to(ptr.dtype.element_ty), mask=inside)


@triton.jit
def load_angle(ptr, offset, col, inside, ACC: tl.constexpr):
    """Return columns of an angle's row as (1, BLOCK_C): zeros where absent, NaN where the table has no such row."""
    if ptr is None:
        return tl.zeros(col.shape, ACC)
    else:
        return tl.load(ptr + offset + col, mask=inside, other=float("nan")).to(ACC)


@triton.jit
def turn_heads(
    a_ptr,
    a_head,
    b_ptr,
    b_head,
    x_ptr,
    x_head,
    x_dot_ptr,
    x_dot_head,
    first_ptr,
    second_ptr,
    out_head,
    heads,
    start,
    c,
    cos,
    sin,
    cos_dot,
    sin_dot,
    cos_first,
    sin_first,
    cos_second,
    sin_second,
    times,
    SUMS: tl.constexpr,
    TURNS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Turn BLOCK_C pairs of one token in all of its heads, and add this token's part to the sums for the angles.

    Pointers stand at the token's first head. The conjugate is already in the signs of sin and sin_dot. TURNS: whether
    there is an angle that changes, ė; SUMS: whether the sums are wanted. `first` is stored if times, how often it has
    been, is 0.

    Returns:
        The four sums.
    """
    for h in range(0, heads, BLOCK_H):
        head = row_numbers(h, BLOCK_H).to(tl.int64)
        inside = head < heads
        a1 = tl.zeros([BLOCK_H, BLOCK_C], ACC)
        a2 = a1
        b1 = a1
        b2 = a1
        if a_ptr is not None:
            a1, a2 = _load_pairs(a_ptr + head * a_head, inside, start, c, INTERLEAVED, BLOCK_C, ACC)
        if b_ptr is not None:
            b1, b2 = _load_pairs(b_ptr + head * b_head, inside, start, c, INTERLEAVED, BLOCK_C, ACC)
        if first_ptr is not None:
            y1 = a1 * cos - a2 * sin
            y2 = a2 * cos + a1 * sin
            once = head + times * heads < heads
            _store_pairs(first_ptr + head * out_head, once, start, c, y1, y2, INTERLEAVED, BLOCK_C)
        if second_ptr is not None:
            y1 = b1 * cos - b2 * sin
            y2 = b2 * cos + b1 * sin
            if TURNS:
                y1 += a1 * cos_dot - a2 * sin_dot
                y2 += a2 * cos_dot + a1 * sin_dot
            _store_pairs(second_ptr + head * out_head, inside, start, c, y1, y2, INTERLEAVED, BLOCK_C)
        if SUMS:
            if x_ptr is not None:
                x1, x2 = _load_pairs(x_ptr + head * x_head, inside, start, c, INTERLEAVED, BLOCK_C, ACC)
                cos_first += x1 * a1 + x2 * a2
                sin_first += x1 * a2 - x2 * a1
                cos_second += x1 * b1 + x2 * b2
                sin_second += x1 * b2 - x2 * b1
            if x_dot_ptr is not None:
                t1, t2 = _load_pairs(x_dot_ptr + head * x_dot_head, inside, start, c, INTERLEAVED, BLOCK_C, ACC)
                cos_second += t1 * a1 + t2 * a2
                sin_second += t1 * a2 - t2 * a1
    return cos_first, sin_first, cos_second, sin_second


@triton.jit
def copy_heads(
    a_ptr,
    a_head,
    b_ptr,
    b_head,
    first_ptr,
    second_ptr,
    out_head,
    heads,
    begin,
    d,
    times,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Copy elements begin, ..., begin + BLOCK_N - 1 of each head, which do not turn: first = a, second = b."""
    col = column_numbers(begin, BLOCK_N)
    for h in range(0, heads, BLOCK_H):
        head = row_numbers(h, BLOCK_H).to(tl.int64)
        inside = (head < heads) & (col < d)
        if first_ptr is not None:
            tile = tl.load(a_ptr + head * a_head + col, mask=inside, other=0.0)
            tl.store(first_ptr + head * out_head + col, tile, mask=inside & (head + times * heads < heads))
        if second_ptr is not None:
            if b_ptr is not None:
                tile = tl.load(b_ptr + head * b_head + col, mask=inside, other=0.0)
            else:
                tile = tl.zeros([BLOCK_H, BLOCK_N], second_ptr.dtype.element_ty)
            tl.store(second_ptr + head * out_head + col, tile, mask=inside)
