"""The pullback of attention to keys and values, and its tangent: one pass over the rows."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexprs take plain values, may be tuples of named facts, and decide what is bound.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ._adjoint_tiles import known_of, known_rows
from ._scores import Rules, Tile, adjoints
from ._tiles import head_offset, load_rows, store_rows
from .arguments import NOT_SPECIALIZED


class Keys(NamedTuple):
    """What belongs to the columns of a tile, in registers: k, v, k̇ and v̇; k and v again where absent."""

    k: Any
    v: Any
    k_dot: Any
    v_dot: Any


class Queries(NamedTuple):
    """What belongs to the rows of one head: pointers, and strides between vectors; None where absent."""

    q: Any
    q_stride: Any
    q_dot: Any
    q_dot_stride: Any
    w: Any
    u: Any
    known: Any


@triton.jit
def _visit(state, keys, queries, rules, tile, j, FACTS: tl.constexpr, HIDES: tl.constexpr):
    """Take in the tile of rows that begins at j; tiles are columns by rows. HIDES: whether some may not see a key."""
    DK: tl.constexpr = FACTS.DK
    BLOCK_DK: tl.constexpr = FACTS.BLOCK_DK
    DV: tl.constexpr = FACTS.DV
    BLOCK_DV: tl.constexpr = FACTS.BLOCK_DV
    BLOCK_M: tl.constexpr = FACTS.BLOCK_M
    BLOCK_N: tl.constexpr = FACTS.BLOCK_N
    FIRST: tl.constexpr = FACTS.FIRST
    SECOND: tl.constexpr = FACTS.SECOND
    KEYS: tl.constexpr = FACTS.KEYS
    VALUES: tl.constexpr = FACTS.VALUES
    HAS_Q: tl.constexpr = FACTS.HAS_Q
    HAS_K: tl.constexpr = FACTS.HAS_K
    HAS_V: tl.constexpr = FACTS.HAS_V
    HAS_W: tl.constexpr = FACTS.HAS_W
    HAS_U: tl.constexpr = FACTS.HAS_U
    PRECISION: tl.constexpr = FACTS.PRECISION
    ACC: tl.constexpr = FACTS.ACC
    k_bar, v_bar, k_bar_dot, v_bar_dot = state
    index = j + tl.arange(0, BLOCK_M)
    tile = Tile(index[None, :], tile.column, tile.low, tile.high)
    known = known_rows(queries.known, index, 0, SECOND, FACTS.FINE)
    q = load_rows(queries.q, j, queries.q_stride, rules.rows, BLOCK_M, DK, BLOCK_DK, False, FACTS.WIDE)
    z = tl.dot(keys.k, tl.trans(q), input_precision=PRECISION, out_dtype=ACC)
    z_dot = tl.zeros([BLOCK_N, BLOCK_M], ACC)
    w_v = tl.zeros([BLOCK_N, BLOCK_M], ACC)
    moved_v = tl.zeros([BLOCK_N, BLOCK_M], ACC)
    if HAS_W:
        w = load_rows(queries.w, j, DV, rules.rows, BLOCK_M, DV, BLOCK_DV, False, FACTS.WIDE)
    if HAS_W and KEYS:
        w_v = tl.dot(keys.v, tl.trans(w), w_v, input_precision=PRECISION, out_dtype=ACC)
    if SECOND:
        if HAS_Q:
            q_dot = load_rows(
                queries.q_dot, j, queries.q_dot_stride, rules.rows, BLOCK_M, DK, BLOCK_DK, False, FACTS.WIDE
            )
            z_dot = tl.dot(keys.k, tl.trans(q_dot), z_dot, input_precision=PRECISION, out_dtype=ACC)
        if HAS_K:
            z_dot = tl.dot(keys.k_dot, tl.trans(q), z_dot, input_precision=PRECISION, out_dtype=ACC)
        if HAS_U:
            u = load_rows(queries.u, j, DV, rules.rows, BLOCK_M, DV, BLOCK_DV, False, FACTS.WIDE)
        if HAS_U and KEYS:
            moved_v = tl.dot(keys.v, tl.trans(u), moved_v, input_precision=PRECISION, out_dtype=ACC)
        if HAS_V and HAS_W and KEYS:
            moved_v = tl.dot(keys.v_dot, tl.trans(w), moved_v, input_precision=PRECISION, out_dtype=ACC)
    p, p_dot, _, _, dz, dz_dot = adjoints(rules, known, tile, z, z_dot, w_v, moved_v, FACTS, HIDES, True)
    low, low_p = dz.to(q.dtype), p.to(keys.v.dtype)
    if FIRST:
        if KEYS:
            k_bar = tl.dot(low, q, k_bar, input_precision=PRECISION, out_dtype=ACC)
        if HAS_W and VALUES:
            v_bar = tl.dot(low_p, w, v_bar, input_precision=PRECISION, out_dtype=ACC)
    if SECOND:
        if KEYS:
            k_bar_dot = tl.dot(dz_dot.to(q.dtype), q, k_bar_dot, input_precision=PRECISION, out_dtype=ACC)
        if HAS_Q and KEYS:
            k_bar_dot = tl.dot(low, q_dot, k_bar_dot, input_precision=PRECISION, out_dtype=ACC)
        if HAS_W and VALUES:
            v_bar_dot = tl.dot(p_dot.to(keys.v.dtype), w, v_bar_dot, input_precision=PRECISION, out_dtype=ACC)
        if HAS_U and VALUES:
            v_bar_dot = tl.dot(low_p, u, v_bar_dot, input_precision=PRECISION, out_dtype=ACC)
    return k_bar, v_bar, k_bar_dot, v_bar_dot


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _columns_kernel(
    q_ptr,  # (n, batch, heads, rows, DK)
    k_ptr,  # (n, batch, heads / group, columns, DK)
    v_ptr,  # (n, batch, heads / group, columns, DV)
    q_dot_ptr,  # tangents of those, or None
    k_dot_ptr,
    v_dot_ptr,
    w_ptr,  # (n, batch, heads, rows, DV), contiguous but for n, as the following: cotangents of o, or None
    u_ptr,  # their tangents, or None
    lse_ptr,  # (n, batch, heads, stored): what the kernel of row scalars left, see `Row`
    delta_ptr,
    lse_dot_ptr,
    delta_dot_ptr,
    rest_ptr,
    bias_ptr,  # (n, batch, heads, rows, columns) by its strides, or None
    bias_dot_ptr,
    mask_ptr,  # the same, bool
    slopes_ptr,  # (batch, heads)
    ranges_ptr,  # int32 (batch, 3, rows)
    seed_ptr,  # int64 (n)
    spans_ptr,  # int32 (batch, 2, columns): first row that sees a key, and the end of those; with ranges
    count_ptr,  # int32 (batch, heads, column blocks): how many blocks of rows to look at
    index_ptr,  # int32 (batch, heads, column blocks, listed): which
    k_first_ptr,  # (n, batch, heads / group, columns, DK), contiguous: cotangents of k, or None
    v_first_ptr,  # (n, batch, heads / group, columns, DV): of v
    k_second_ptr,  # their tangents, or None
    v_second_ptr,
    q_n,
    q_b,
    q_h,
    q_row,
    k_n,
    k_b,
    k_h,
    k_row,
    v_n,
    v_b,
    v_h,
    v_row,
    qd_n,
    qd_b,
    qd_h,
    qd_row,
    kd_n,
    kd_b,
    kd_h,
    kd_row,
    vd_n,
    vd_b,
    vd_h,
    vd_row,
    w_n,
    u_n,
    stored,
    bias_n,
    bias_b,
    bias_h,
    bias_row,
    bias_column,
    bd_n,
    bd_b,
    bd_h,
    bd_row,
    bd_column,
    mask_n,
    mask_b,
    mask_h,
    mask_row,
    mask_column,
    slopes_b,
    ranges_b,
    spans_b,
    seed_n,
    list_b,
    list_h,
    listed,
    batch,
    heads,
    group,
    rows,
    columns,
    left,
    right,
    offset,
    column_blocks,
    scale: tl.float64,
    softcap: tl.float64,
    dropout_p: tl.float64,
    LISTED_ROWS: tl.constexpr,
    LISTED_COLUMNS: tl.constexpr,
    FACTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: BLOCK_N keys of one head, and all rows of all query heads of its group that see them.

    4 products a tile for the cotangents, up to 12 with their tangents. Programs run from the first keys, which most
    rows see if attention is causal. No sum is shared between programs.
    """
    DK: tl.constexpr = FACTS.DK
    BLOCK_DK: tl.constexpr = FACTS.BLOCK_DK
    DV: tl.constexpr = FACTS.DV
    BLOCK_DV: tl.constexpr = FACTS.BLOCK_DV
    BLOCK_M: tl.constexpr = FACTS.BLOCK_M
    BLOCK_N: tl.constexpr = FACTS.BLOCK_N
    ACC: tl.constexpr = FACTS.ACC
    pid = tl.program_id(0)
    block = pid % column_blocks
    key_heads = heads // group
    kv = (pid // column_blocks) % key_heads
    b = (pid // column_blocks // key_heads) % batch
    n = pid // column_blocks // key_heads // batch
    start = block * BLOCK_N
    column = (start + tl.arange(0, BLOCK_N))[:, None]
    k = load_rows(
        k_ptr + head_offset(n, b, kv, k_n, k_b, k_h), start, k_row, columns, BLOCK_N, DK, BLOCK_DK, False, True
    )
    v = load_rows(
        v_ptr + head_offset(n, b, kv, v_n, v_b, v_h), start, v_row, columns, BLOCK_N, DV, BLOCK_DV, False, True
    )
    k_dot = k
    v_dot = v
    if k_dot_ptr is not None:
        place = k_dot_ptr + head_offset(n, b, kv, kd_n, kd_b, kd_h)
        k_dot = load_rows(place, start, kd_row, columns, BLOCK_N, DK, BLOCK_DK, False, True)
    if v_dot_ptr is not None:
        place = v_dot_ptr + head_offset(n, b, kv, vd_n, vd_b, vd_h)
        v_dot = load_rows(place, start, vd_row, columns, BLOCK_N, DV, BLOCK_DV, False, True)
    keys = Keys(k, v, k_dot, v_dot)
    if ranges_ptr is not None:
        ranges_ptr += b.to(tl.int64) * ranges_b

    # The rows that see a key lie side by side: from its low to its high, which do not decrease along the keys. Those of
    # the first and the last key say which rows see some of the keys, and which see all.
    final = tl.minimum(start + BLOCK_N, columns) - 1
    if ranges_ptr is not None:
        spans_ptr += b.to(tl.int64) * spans_b
        inside = column < columns
        low = tl.load(spans_ptr + column, mask=inside, other=0)
        high = tl.load(spans_ptr + columns + column, mask=inside, other=0)
        some, some_end = tl.load(spans_ptr + start), tl.load(spans_ptr + columns + final)
        every, every_end = tl.load(spans_ptr + final), tl.load(spans_ptr + columns + start)
    else:
        low = column - offset - right
        high = column - offset + left + 1
        some, some_end = start - offset - right, final - offset + left + 1
        every, every_end = final - offset - right, start - offset + left + 1
    tile = Tile(column, column, low, high)  # rows as they come
    some, some_end = tl.maximum(some, 0), tl.minimum(some_end, rows)
    some_tile = some // BLOCK_M
    last = tl.maximum((some_end + BLOCK_M - 1) // BLOCK_M, some_tile)
    shared = tl.minimum(tl.maximum((tl.maximum(every, 0) + BLOCK_M - 1) // BLOCK_M, some_tile), last)
    # From the tile `full` on some keys are not seen by some rows again: those behind a window, or of the next sequence.
    full, masked = last, shared
    if FACTS.LEFT:
        full = tl.where(every_end >= rows, last, tl.maximum(tl.minimum(every_end // BLOCK_M, last), shared))
        masked = shared + last - full

    if FACTS.ALIKE:
        qd_row = q_row
    no_k = tl.zeros([BLOCK_N, BLOCK_DK], ACC)
    no_v = tl.zeros([BLOCK_N, BLOCK_DV], ACC)
    state = (no_k, no_v, no_k, no_v)
    for member in range(0, group):
        h = kv * group + member
        slope = None
        if slopes_ptr is not None:
            slope = tl.load(slopes_ptr + b * slopes_b + h).to(ACC)
        seed = None
        if seed_ptr is not None:
            seed = tl.load(seed_ptr + n * seed_n)
        bias_here = None
        bias_dot_here = None
        mask_here = None
        if bias_ptr is not None:
            bias_here = bias_ptr + head_offset(n, b, h, bias_n, bias_b, bias_h)
        if bias_dot_ptr is not None:
            bias_dot_here = bias_dot_ptr + head_offset(n, b, h, bd_n, bd_b, bd_h)
        if mask_ptr is not None:
            mask_here = mask_ptr + head_offset(n, b, h, mask_n, mask_b, mask_h)
        rules = Rules(
            tl.full([], scale, ACC),
            tl.full([], softcap, ACC),
            slope,
            tl.full([], dropout_p, ACC),
            seed,
            b * heads + h,
            bias_here,
            bias_row,
            bias_column,
            bias_dot_here,
            0,
            bd_row,
            bd_column,
            mask_here,
            mask_row,
            mask_column,
            ranges_ptr,
            left,
            right,
            offset,
            rows,
            columns,
        )
        head = (b * heads + h).to(tl.int64)
        out = n.to(tl.int64) * batch * heads + head
        here = head * rows
        q_dot_here = None
        w_here = None
        u_here = None
        if q_dot_ptr is not None:
            q_dot_here = q_dot_ptr + head_offset(n, b, h, qd_n, qd_b, qd_h)
        if w_ptr is not None:
            w_here = w_ptr + n.to(tl.int64) * w_n + here * DV
        if u_ptr is not None:
            u_here = u_ptr + n.to(tl.int64) * u_n + here * DV
        known = known_of(lse_ptr, delta_ptr, lse_dot_ptr, delta_dot_ptr, rest_ptr, out, stored)
        queries = Queries(
            q_ptr + head_offset(n, b, h, q_n, q_b, q_h),
            q_row,
            q_dot_here,
            qd_row,
            w_here,
            u_here,
            known,
        )
        if count_ptr is not None:
            listing = b * list_b + h * list_h + block * BLOCK_N // LISTED_COLUMNS
            SPLIT: tl.constexpr = LISTED_ROWS // BLOCK_M
            for i in tl.range(0, tl.load(count_ptr + listing) * SPLIT, num_stages=STAGES):
                listed_block = tl.load(index_ptr + listing.to(tl.int64) * listed + i // SPLIT)
                j = listed_block * LISTED_ROWS + i % SPLIT * BLOCK_M
                state = _visit(state, keys, queries, rules, tile, j, FACTS, True)
        else:
            for i in tl.range(some_tile, masked, num_stages=STAGES):
                number = i
                if FACTS.LEFT:
                    number = tl.where(i < shared, i, full + i - shared)
                state = _visit(state, keys, queries, rules, tile, number * BLOCK_M, FACTS, True)
            for i in tl.range(shared, full, num_stages=STAGES):
                state = _visit(state, keys, queries, rules, tile, i * BLOCK_M, FACTS, False)

    k_bar, v_bar, k_bar_dot, v_bar_dot = state
    factor = tl.full([], scale, ACC)
    base = ((n.to(tl.int64) * batch + b) * key_heads + kv) * columns
    if k_first_ptr is not None:
        store_rows(k_first_ptr + base * DK, start, columns, k_bar * factor, BLOCK_N, DK, BLOCK_DK)
    if v_first_ptr is not None:
        store_rows(v_first_ptr + base * DV, start, columns, v_bar, BLOCK_N, DV, BLOCK_DV)
    if k_second_ptr is not None:
        store_rows(k_second_ptr + base * DK, start, columns, k_bar_dot * factor, BLOCK_N, DK, BLOCK_DK)
    if v_second_ptr is not None:
        store_rows(v_second_ptr + base * DV, start, columns, v_bar_dot, BLOCK_N, DV, BLOCK_DV)
