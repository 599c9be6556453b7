"""Rotary position embedding: the kernel body, one token in all heads a program, and its two entries."""

from __future__ import annotations

import triton
import triton.language as tl

from .._rows import column_numbers, store_column_sum
from .heads import copy_heads, load_angle, turn_heads

# Sizes that must not make a new variant; c and d, and strides made of them, are specialised for aligned loads.
_SIZES = ["groups", "batches", "tokens", "table_rows", "blocks", "turning_blocks", "q_heads", "k_heads"]


@triton.jit
def _token(strides, group, batch, token):
    """Return how far from its first element a row operand's token starts."""
    group_stride, batch_stride, _, token_stride = strides
    return group * group_stride + batch * batch_stride + token * token_stride


@triton.jit
def _result(group, batch, token, batches, tokens, heads, d, HEADS_LAST: tl.constexpr):
    """Return `_token` of a result, contiguous (G, B, heads, tokens, d) or, if HEADS_LAST, (G, B, tokens, heads, d)."""
    size = heads.to(tl.int64) * d
    return (group * batches + batch) * tokens * size + token * (size if HEADS_LAST else d)


@triton.jit
def _program(
    a_q_ptr,
    a_k_ptr,
    b_q_ptr,
    b_k_ptr,
    x_q_ptr,
    x_k_ptr,
    x_dot_q_ptr,
    x_dot_k_ptr,
    cos_ptr,
    sin_ptr,
    cos_dot_ptr,
    sin_dot_ptr,
    position_ptr,
    first_q_ptr,
    first_k_ptr,
    second_q_ptr,
    second_k_ptr,
    cos_first_ptr,
    sin_first_ptr,
    cos_second_ptr,
    sin_second_ptr,
    groups,
    batches,
    tokens,
    table_rows,
    blocks,
    turning_blocks,
    q_heads,
    k_heads,
    c,
    d,
    a_q_strides,
    a_k_strides,
    b_q_strides,
    b_k_strides,
    x_q_strides,
    x_k_strides,
    x_dot_q_strides,
    x_dot_k_strides,
    angle_strides,
    angle_dot_strides,
    position_strides,
    MANY: tl.constexpr,
    FIRST_ONCE: tl.constexpr,
    INVERSE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program: BLOCK_C pairs, or 2·BLOCK_C elements that do not turn, of one token in all heads of q and k.

    Strides of row operands are (group, batch, head, token), of angles (group, batch, row), of positions (group, batch,
    token). If MANY, the program does all groups, which share e; FIRST_ONCE: they share a too, and so `first`.
    """
    program = tl.program_id(0)
    block = program % blocks
    rest = program // blocks
    token = (rest % tokens).to(tl.int64)
    rest = rest // tokens
    batch = (rest % batches).to(tl.int64)
    group = (rest // batches).to(tl.int64)

    row = token
    if position_ptr is not None:
        group_stride, batch_stride, token_stride = position_strides
        row = tl.load(position_ptr + group * group_stride + batch * batch_stride + token * token_stride).to(tl.int64)
    angle_group, angle_batch, angle_row = angle_strides
    dot_group, dot_batch, dot_row = angle_dot_strides
    start = block * BLOCK_C
    col = column_numbers(start, BLOCK_C)
    rows = row + 0 * col  # a tile, because the interpreter makes an integer of a mask and a scalar one
    inside = (col < c) & (rows >= 0) & (rows < table_rows)
    offset = group * angle_group + batch * angle_batch + row * angle_row
    cos = load_angle(cos_ptr, offset, col, inside, ACC)
    sin = load_angle(sin_ptr, offset, col, inside, ACC)
    if INVERSE:
        sin = -sin
    TURNS: tl.constexpr = cos_dot_ptr is not None or sin_dot_ptr is not None  # pyright: ignore[reportAssignmentType]
    SUMS: tl.constexpr = cos_first_ptr is not None or cos_second_ptr is not None  # pyright: ignore[reportAssignmentType]

    out_head = d if HEADS_LAST else tokens.to(tl.int64) * d
    for t in range(0, groups if MANY else 1):
        g = group + t
        first_g = group if FIRST_ONCE else g
        times = t if FIRST_ONCE else 0
        a_q = a_q_ptr + _token(a_q_strides, g, batch, token) if a_q_ptr is not None else None
        a_k = a_k_ptr + _token(a_k_strides, g, batch, token) if a_k_ptr is not None else None
        b_q = b_q_ptr + _token(b_q_strides, g, batch, token) if b_q_ptr is not None else None
        b_k = b_k_ptr + _token(b_k_strides, g, batch, token) if b_k_ptr is not None else None
        first_in_q = _result(first_g, batch, token, batches, tokens, q_heads, d, HEADS_LAST)
        first_in_k = _result(first_g, batch, token, batches, tokens, k_heads, d, HEADS_LAST)
        second_in_q = _result(g, batch, token, batches, tokens, q_heads, d, HEADS_LAST)
        second_in_k = _result(g, batch, token, batches, tokens, k_heads, d, HEADS_LAST)
        first_q = first_q_ptr + first_in_q if first_q_ptr is not None else None
        first_k = first_k_ptr + first_in_k if first_k_ptr is not None else None
        second_q = second_q_ptr + second_in_q if second_q_ptr is not None else None
        second_k = second_k_ptr + second_in_k if second_k_ptr is not None else None
        if block < turning_blocks:
            dot_offset = g * dot_group + batch * dot_batch + row * dot_row
            cos_dot = load_angle(cos_dot_ptr, dot_offset, col, inside, ACC)
            sin_dot = load_angle(sin_dot_ptr, dot_offset, col, inside, ACC)
            if INVERSE:
                sin_dot = -sin_dot
            x_q = x_q_ptr + _token(x_q_strides, g, batch, token) if x_q_ptr is not None else None
            x_k = x_k_ptr + _token(x_k_strides, g, batch, token) if x_k_ptr is not None else None
            x_dot_q = x_dot_q_ptr + _token(x_dot_q_strides, g, batch, token) if x_dot_q_ptr is not None else None
            x_dot_k = x_dot_k_ptr + _token(x_dot_k_strides, g, batch, token) if x_dot_k_ptr is not None else None
            sums = tl.zeros([BLOCK_H, BLOCK_C], ACC)
            cos_first, sin_first, cos_second, sin_second = turn_heads(
                a_q, a_q_strides[2], b_q, b_q_strides[2], x_q, x_q_strides[2], x_dot_q, x_dot_q_strides[2],
                first_q, second_q, out_head, q_heads, start, c, cos, sin, cos_dot, sin_dot,
                sums, sums, sums, sums, times, SUMS, TURNS, INTERLEAVED, ACC, BLOCK_H, BLOCK_C,
            )  # fmt: skip
            cos_first, sin_first, cos_second, sin_second = turn_heads(
                a_k, a_k_strides[2], b_k, b_k_strides[2], x_k, x_k_strides[2], x_dot_k, x_dot_k_strides[2],
                first_k, second_k, out_head, k_heads, start, c, cos, sin, cos_dot, sin_dot,
                cos_first, sin_first, cos_second, sin_second,
                times, SUMS, TURNS, INTERLEAVED, ACC, BLOCK_H, BLOCK_C,
            )  # fmt: skip
            place = (g * batches + batch) * tokens + token
            if cos_first_ptr is not None:
                store_column_sum(cos_first_ptr, place, col, c, cos_first)
                store_column_sum(sin_first_ptr, place, col, c, sin_first)
            if cos_second_ptr is not None:
                store_column_sum(cos_second_ptr, place, col, c, cos_second)
                store_column_sum(sin_second_ptr, place, col, c, sin_second)
        else:
            begin = 2 * c + (block - turning_blocks) * 2 * BLOCK_C
            copy_heads(
                a_q, a_q_strides[2], b_q, b_q_strides[2], first_q, second_q, out_head, q_heads, begin, d, times,
                BLOCK_H, 2 * BLOCK_C,
            )  # fmt: skip
            copy_heads(
                a_k, a_k_strides[2], b_k, b_k_strides[2], first_k, second_k, out_head, k_heads, begin, d, times,
                BLOCK_H, 2 * BLOCK_C,
            )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def _turn_kernel(
    a_q_ptr,  # (G, B, heads, tokens, d) or None
    a_k_ptr,  # (G, B, heads, tokens, d) or None
    b_q_ptr,  # (G, B, heads, tokens, d) or None
    b_k_ptr,  # (G, B, heads, tokens, d) or None
    cos_ptr,  # (G, B, tokens or table rows, c) or None
    sin_ptr,  # (G, B, tokens or table rows, c) or None
    cos_dot_ptr,  # (G, B, tokens or table rows, c) or None
    sin_dot_ptr,  # (G, B, tokens or table rows, c) or None
    position_ptr,  # (G, B, tokens), rows of the table, or None
    first_q_ptr,  # (G, B, heads, tokens, d) or (G, B, tokens, heads, d), contiguous, or None
    first_k_ptr,  # (G, B, heads, tokens, d) or (G, B, tokens, heads, d), contiguous, or None
    second_q_ptr,  # (G, B, heads, tokens, d) or (G, B, tokens, heads, d), contiguous, or None
    second_k_ptr,  # (G, B, heads, tokens, d) or (G, B, tokens, heads, d), contiguous, or None
    groups,
    batches,
    tokens,
    table_rows,
    blocks,
    turning_blocks,
    q_heads,
    k_heads,
    c,
    d,
    a_q_group,
    a_q_batch,
    a_q_head,
    a_q_token,
    a_k_group,
    a_k_batch,
    a_k_head,
    a_k_token,
    b_q_group,
    b_q_batch,
    b_q_head,
    b_q_token,
    b_k_group,
    b_k_batch,
    b_k_head,
    b_k_token,
    angle_group,
    angle_batch,
    angle_row,
    dot_group,
    dot_batch,
    dot_row,
    position_group,
    position_batch,
    position_token,
    MANY: tl.constexpr,
    FIRST_ONCE: tl.constexpr,
    INVERSE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """first = a e, second = b e + a ė; if INVERSE with the conjugates of e and ė.

    One program: see `_program`. Moves size bytes an element of each of a, b, first and second that is present, and the
    angles once for all heads (and, if MANY, for all groups).
    """
    absent = (0, 0, 0, 0)
    _program(
        a_q_ptr, a_k_ptr, b_q_ptr, b_k_ptr, None, None, None, None,
        cos_ptr, sin_ptr, cos_dot_ptr, sin_dot_ptr, position_ptr,
        first_q_ptr, first_k_ptr, second_q_ptr, second_k_ptr,
        None, None, None, None,
        groups, batches, tokens, table_rows, blocks, turning_blocks, q_heads, k_heads, c, d,
        (a_q_group, a_q_batch, a_q_head, a_q_token),
        (a_k_group, a_k_batch, a_k_head, a_k_token),
        (b_q_group, b_q_batch, b_q_head, b_q_token),
        (b_k_group, b_k_batch, b_k_head, b_k_token),
        absent,
        absent,
        absent,
        absent,
        (angle_group, angle_batch, angle_row), (dot_group, dot_batch, dot_row),
        (position_group, position_batch, position_token),
        MANY, FIRST_ONCE, INVERSE, INTERLEAVED, HEADS_LAST, ACC, BLOCK_H, BLOCK_C,
    )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES)
def _pull_kernel(
    a_q_ptr,  # (G, B, heads, tokens, d) or None
    a_k_ptr,  # (G, B, heads, tokens, d) or None
    b_q_ptr,  # (G, B, heads, tokens, d) or None
    b_k_ptr,  # (G, B, heads, tokens, d) or None
    x_q_ptr,  # (G, B, heads, tokens, d) or None
    x_k_ptr,  # (G, B, heads, tokens, d) or None
    x_dot_q_ptr,  # (G, B, heads, tokens, d) or None
    x_dot_k_ptr,  # (G, B, heads, tokens, d) or None
    cos_ptr,  # (G, B, tokens or table rows, c) or None
    sin_ptr,  # (G, B, tokens or table rows, c) or None
    cos_dot_ptr,  # (G, B, tokens or table rows, c) or None
    sin_dot_ptr,  # (G, B, tokens or table rows, c) or None
    position_ptr,  # (G, B, tokens), rows of the table, or None
    first_q_ptr,  # (G, B, heads, tokens, d) or (G, B, tokens, heads, d), contiguous, or None
    first_k_ptr,  # (G, B, heads, tokens, d) or (G, B, tokens, heads, d), contiguous, or None
    second_q_ptr,  # (G, B, heads, tokens, d) or (G, B, tokens, heads, d), contiguous, or None
    second_k_ptr,  # (G, B, heads, tokens, d) or (G, B, tokens, heads, d), contiguous, or None
    cos_first_ptr,  # (G, B, tokens, c), contiguous, or None
    sin_first_ptr,  # (G, B, tokens, c), contiguous, or None
    cos_second_ptr,  # (G, B, tokens, c), contiguous, or None
    sin_second_ptr,  # (G, B, tokens, c), contiguous, or None
    groups,
    batches,
    tokens,
    table_rows,
    blocks,
    turning_blocks,
    q_heads,
    k_heads,
    c,
    d,
    a_q_group,
    a_q_batch,
    a_q_head,
    a_q_token,
    a_k_group,
    a_k_batch,
    a_k_head,
    a_k_token,
    b_q_group,
    b_q_batch,
    b_q_head,
    b_q_token,
    b_k_group,
    b_k_batch,
    b_k_head,
    b_k_token,
    x_q_group,
    x_q_batch,
    x_q_head,
    x_q_token,
    x_k_group,
    x_k_batch,
    x_k_head,
    x_k_token,
    x_dot_q_group,
    x_dot_q_batch,
    x_dot_q_head,
    x_dot_q_token,
    x_dot_k_group,
    x_dot_k_batch,
    x_dot_k_head,
    x_dot_k_token,
    angle_group,
    angle_batch,
    angle_row,
    dot_group,
    dot_batch,
    dot_row,
    position_group,
    position_batch,
    position_token,
    MANY: tl.constexpr,
    FIRST_ONCE: tl.constexpr,
    INVERSE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    HEADS_LAST: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """`_turn_kernel`, and the sums Σ x̄ a and Σ (ẋ̄ a + x̄ b) over heads.

    One program: see `_program`. Moves, beside what `_turn_kernel` does, size bytes an element of x and ẋ, and 8 bytes
    (16 in float64) for each pair of sums, a pair of a token.
    """
    _program(
        a_q_ptr, a_k_ptr, b_q_ptr, b_k_ptr, x_q_ptr, x_k_ptr, x_dot_q_ptr, x_dot_k_ptr,
        cos_ptr, sin_ptr, cos_dot_ptr, sin_dot_ptr, position_ptr,
        first_q_ptr, first_k_ptr, second_q_ptr, second_k_ptr,
        cos_first_ptr, sin_first_ptr, cos_second_ptr, sin_second_ptr,
        groups, batches, tokens, table_rows, blocks, turning_blocks, q_heads, k_heads, c, d,
        (a_q_group, a_q_batch, a_q_head, a_q_token),
        (a_k_group, a_k_batch, a_k_head, a_k_token),
        (b_q_group, b_q_batch, b_q_head, b_q_token),
        (b_k_group, b_k_batch, b_k_head, b_k_token),
        (x_q_group, x_q_batch, x_q_head, x_q_token),
        (x_k_group, x_k_batch, x_k_head, x_k_token),
        (x_dot_q_group, x_dot_q_batch, x_dot_q_head, x_dot_q_token),
        (x_dot_k_group, x_dot_k_batch, x_dot_k_head, x_dot_k_token),
        (angle_group, angle_batch, angle_row), (dot_group, dot_batch, dot_row),
        (position_group, position_batch, position_token),
        MANY, FIRST_ONCE, INVERSE, INTERLEAVED, HEADS_LAST, ACC, BLOCK_H, BLOCK_C,
    )  # fmt: skip
