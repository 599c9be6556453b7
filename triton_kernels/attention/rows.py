"""The pullback of attention to queries, and its tangent: one pass over the keys."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexprs take plain values, may be tuples of named facts, and decide what is bound.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ._adjoint_tiles import known_of, known_rows
from ._scores import Rules, Tile, adjoints, keys_seen
from ._tiles import head_offset, keys_of_tile, load_rows, store_rows
from .arguments import NOT_SPECIALIZED


class Queries(NamedTuple):
    """What belongs to the rows of a tile, in registers: q, q̇, w and u; zeros where absent."""

    q: Any
    q_dot: Any
    w: Any
    u: Any


class Keys(NamedTuple):
    """Keys and values of one head and their tangents: pointers, and strides between vectors."""

    k: Any
    k_stride: Any
    v: Any
    v_stride: Any
    k_dot: Any
    k_dot_stride: Any
    v_dot: Any
    v_dot_stride: Any


@triton.jit
def _visit(first, second, queries, keys, rules, known, tile, j, FACTS: tl.constexpr, HIDES: tl.constexpr):
    """Take in the tile of keys that begins at j; HIDES: whether some of it may not be visible, or not exist."""
    DK: tl.constexpr = FACTS.DK
    BLOCK_DK: tl.constexpr = FACTS.BLOCK_DK
    DV: tl.constexpr = FACTS.DV
    BLOCK_DV: tl.constexpr = FACTS.BLOCK_DV
    BLOCK_M: tl.constexpr = FACTS.BLOCK_M
    BLOCK_N: tl.constexpr = FACTS.BLOCK_N
    FIRST: tl.constexpr = FACTS.FIRST
    SECOND: tl.constexpr = FACTS.SECOND
    HAS_Q: tl.constexpr = FACTS.HAS_Q
    HAS_K: tl.constexpr = FACTS.HAS_K
    HAS_V: tl.constexpr = FACTS.HAS_V
    HAS_W: tl.constexpr = FACTS.HAS_W
    HAS_U: tl.constexpr = FACTS.HAS_U
    PRECISION: tl.constexpr = FACTS.PRECISION
    ACC: tl.constexpr = FACTS.ACC
    column = (j + tl.arange(0, BLOCK_N))[None, :]
    tile = Tile(tile.row, column, tile.low, tile.high)
    k = load_rows(keys.k, j, keys.k_stride, rules.columns, BLOCK_N, DK, BLOCK_DK, not HIDES, FACTS.WIDE)
    v = load_rows(keys.v, j, keys.v_stride, rules.columns, BLOCK_N, DV, BLOCK_DV, not HIDES, FACTS.WIDE)
    z = tl.dot(queries.q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
    z_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    w_v = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    moved_v = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    if HAS_W:
        w_v = tl.dot(queries.w, tl.trans(v), w_v, input_precision=PRECISION, out_dtype=ACC)
    if SECOND:
        if HAS_Q:
            z_dot = tl.dot(queries.q_dot, tl.trans(k), z_dot, input_precision=PRECISION, out_dtype=ACC)
        if HAS_K:
            k_dot = load_rows(
                keys.k_dot, j, keys.k_dot_stride, rules.columns, BLOCK_N, DK, BLOCK_DK, not HIDES, FACTS.WIDE
            )
            z_dot = tl.dot(queries.q, tl.trans(k_dot), z_dot, input_precision=PRECISION, out_dtype=ACC)
        if HAS_U:
            moved_v = tl.dot(queries.u, tl.trans(v), moved_v, input_precision=PRECISION, out_dtype=ACC)
        if HAS_V and HAS_W:
            v_dot = load_rows(
                keys.v_dot, j, keys.v_dot_stride, rules.columns, BLOCK_N, DV, BLOCK_DV, not HIDES, FACTS.WIDE
            )
            moved_v = tl.dot(queries.w, tl.trans(v_dot), moved_v, input_precision=PRECISION, out_dtype=ACC)
    _, _, _, _, dz, dz_dot = adjoints(rules, known, tile, z, z_dot, w_v, moved_v, FACTS, HIDES, False)
    low = dz.to(k.dtype)
    if FIRST:
        first = tl.dot(low, k, first, input_precision=PRECISION, out_dtype=ACC)
    if SECOND:
        second = tl.dot(dz_dot.to(k.dtype), k, second, input_precision=PRECISION, out_dtype=ACC)
        if HAS_K:
            second = tl.dot(low, k_dot, second, input_precision=PRECISION, out_dtype=ACC)
    return first, second


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _rows_kernel(
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
    count_ptr,  # int32 (batch, heads, row blocks): how many blocks of keys to look at
    index_ptr,  # int32 (batch, heads, row blocks, listed): which
    first_ptr,  # (n, batch, heads, rows, DK), contiguous: cotangents of q, or None
    second_ptr,  # their tangents, or None
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
    row_blocks,
    scale: tl.float64,
    softcap: tl.float64,
    dropout_p: tl.float64,
    LISTED_ROWS: tl.constexpr,
    LISTED_COLUMNS: tl.constexpr,
    FACTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: BLOCK_M rows of one head and all keys that they see.

    3 products a tile for the cotangent, up to 9 with its tangent; order of programs as in the forward kernel.
    """
    DK: tl.constexpr = FACTS.DK
    BLOCK_DK: tl.constexpr = FACTS.BLOCK_DK
    DV: tl.constexpr = FACTS.DV
    BLOCK_DV: tl.constexpr = FACTS.BLOCK_DV
    BLOCK_M: tl.constexpr = FACTS.BLOCK_M
    BLOCK_N: tl.constexpr = FACTS.BLOCK_N
    SECOND: tl.constexpr = FACTS.SECOND
    ACC: tl.constexpr = FACTS.ACC
    pid = tl.program_id(0)
    block = row_blocks - 1 - pid % row_blocks
    h = (pid // row_blocks) % heads
    b = (pid // row_blocks // heads) % batch
    n = pid // row_blocks // heads // batch
    kv = h // group
    slope = None
    if slopes_ptr is not None:
        slope = tl.load(slopes_ptr + b * slopes_b + h).to(ACC)
    seed = None
    if seed_ptr is not None:
        seed = tl.load(seed_ptr + n * seed_n)
    if ranges_ptr is not None:
        ranges_ptr += b.to(tl.int64) * ranges_b
    if bias_ptr is not None:
        bias_ptr += head_offset(n, b, h, bias_n, bias_b, bias_h)
    if bias_dot_ptr is not None:
        bias_dot_ptr += head_offset(n, b, h, bd_n, bd_b, bd_h)
    if mask_ptr is not None:
        mask_ptr += head_offset(n, b, h, mask_n, mask_b, mask_h)
    rules = Rules(
        tl.full([], scale, ACC),
        tl.full([], softcap, ACC),
        slope,
        tl.full([], dropout_p, ACC),
        seed,
        b * heads + h,
        bias_ptr,
        bias_row,
        bias_column,
        bias_dot_ptr,
        0,
        bd_row,
        bd_column,
        mask_ptr,
        mask_row,
        mask_column,
        ranges_ptr,
        left,
        right,
        offset,
        rows,
        columns,
    )
    start = block * BLOCK_M
    index = start + tl.arange(0, BLOCK_M)
    head = (b * heads + h).to(tl.int64)
    out = (n.to(tl.int64) * batch * heads + head) * rows
    here = head * rows
    here_known = known_of(lse_ptr, delta_ptr, lse_dot_ptr, delta_dot_ptr, rest_ptr, n * batch * heads + head, stored)
    known = known_rows(here_known, index, 1, SECOND, FACTS.FINE)
    begin, end = keys_seen(rules, index[:, None])
    tile = Tile(index[:, None], index[:, None], begin, end)  # columns as they come
    q = load_rows(q_ptr + head_offset(n, b, h, q_n, q_b, q_h), start, q_row, rows, BLOCK_M, DK, BLOCK_DK, False, True)
    q_dot = q
    w = q
    u = q
    if q_dot_ptr is not None:
        place = q_dot_ptr + head_offset(n, b, h, qd_n, qd_b, qd_h)
        q_dot = load_rows(place, start, qd_row, rows, BLOCK_M, DK, BLOCK_DK, False, True)
    if w_ptr is not None:
        w = load_rows(w_ptr + n.to(tl.int64) * w_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False, True)
    if u_ptr is not None:
        u = load_rows(u_ptr + n.to(tl.int64) * u_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False, True)
    queries = Queries(q, q_dot, w, u)
    k_here = k_ptr + head_offset(n, b, kv, k_n, k_b, k_h)
    v_here = v_ptr + head_offset(n, b, kv, v_n, v_b, v_h)
    k_dot_here = None
    v_dot_here = None
    if k_dot_ptr is not None:
        k_dot_here = k_dot_ptr + head_offset(n, b, kv, kd_n, kd_b, kd_h)
    if v_dot_ptr is not None:
        v_dot_here = v_dot_ptr + head_offset(n, b, kv, vd_n, vd_b, vd_h)
    if FACTS.ALIKE:
        v_row, kd_row, vd_row = k_row, k_row, k_row
    keys = Keys(k_here, k_row, v_here, v_row, k_dot_here, kd_row, v_dot_here, vd_row)
    first = tl.zeros([BLOCK_M, BLOCK_DK], ACC)
    second = tl.zeros([BLOCK_M, BLOCK_DK], ACC)
    begin_tile, last, shared = keys_of_tile(begin, end, tile.row, rows, columns, BLOCK_N)
    if count_ptr is not None:
        listing = b * list_b + h * list_h + block * BLOCK_M // LISTED_ROWS
        SPLIT: tl.constexpr = LISTED_COLUMNS // BLOCK_N
        for i in tl.range(0, tl.load(count_ptr + listing) * SPLIT, num_stages=STAGES):
            listed_block = tl.load(index_ptr + listing.to(tl.int64) * listed + i // SPLIT)
            j = listed_block * LISTED_COLUMNS + i % SPLIT * BLOCK_N
            first, second = _visit(first, second, queries, keys, rules, known, tile, j, FACTS, True)
    else:
        for i in tl.range(begin_tile, shared, num_stages=STAGES):
            first, second = _visit(first, second, queries, keys, rules, known, tile, i * BLOCK_N, FACTS, False)
        for i in tl.range(shared, last, num_stages=STAGES):
            first, second = _visit(first, second, queries, keys, rules, known, tile, i * BLOCK_N, FACTS, True)
    if first_ptr is not None:
        store_rows(first_ptr + out * DK, start, rows, first * rules.scale, BLOCK_M, DK, BLOCK_DK)
    if second_ptr is not None:
        store_rows(second_ptr + out * DK, start, rows, second * rules.scale, BLOCK_M, DK, BLOCK_DK)
