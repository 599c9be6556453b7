"""The kernel of value and tangents of attention, one pass over the keys."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# Constexprs take plain values, may be tuples of named facts, and decide what is bound.

from __future__ import annotations

import triton
import triton.language as tl

from .._rows import rounding
from ._forward_tiles import Keys, first_origins, visit
from ._scores import LN2, Rules, Tile, keys_seen
from ._tiles import head_offset, keys_of_tile, load_rows, store_rows
from .arguments import NOT_SPECIALIZED


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _forward_kernel(
    q_ptr,  # (n, batch, heads, rows, DK)
    k_ptr,  # (n, batch, heads / group, columns, DK)
    v_ptr,  # (n, batch, heads / group, columns, DV)
    q_dot_ptr,  # tangents of those, or None
    k_dot_ptr,
    v_dot_ptr,
    bias_ptr,  # (n, batch, heads, rows, columns) by its strides, or None
    bias_dot_ptr,
    mask_ptr,  # the same, bool
    slopes_ptr,  # (batch, heads)
    ranges_ptr,  # int32 (batch, 3, rows)
    seed_ptr,  # int64 (n)
    count_ptr,  # int32 (batch, heads, row blocks): how many blocks of keys to look at
    index_ptr,  # int32 (batch, heads, row blocks, listed): which
    o_ptr,  # (n, batch, heads, rows, DV), contiguous, as the following
    lse_ptr,  # (n, batch, heads, rows)
    o_dot_ptr,  # (n · TANGENTS, batch, heads, rows, DV), or None
    lse_dot_ptr,
    rest_ptr,  # (n, batch, heads, rows): what ℓ as rounded lacks if FINE, else 0
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
    SHARED: tl.constexpr,
    LISTED_ROWS: tl.constexpr,
    LISTED_COLUMNS: tl.constexpr,
    FACTS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program: BLOCK_M rows of one head, all keys that they see, TANGENTS of the tangents.

    A tile of keys and values is read once and takes 2 products for the value and up to 4 for each tangent. Programs
    run through the tiles of rows of a head from the last, which is the longest if attention is causal; heads that share
    keys are neighbours. With SHARED (one primal, several groups of tangents) only the first group stores the value.
    """
    DK: tl.constexpr = FACTS.DK
    BLOCK_DK: tl.constexpr = FACTS.BLOCK_DK
    DV: tl.constexpr = FACTS.DV
    BLOCK_DV: tl.constexpr = FACTS.BLOCK_DV
    BLOCK_M: tl.constexpr = FACTS.BLOCK_M
    BLOCK_N: tl.constexpr = FACTS.BLOCK_N
    TANGENTS: tl.constexpr = FACTS.TANGENTS
    ACC: tl.constexpr = FACTS.ACC
    pid = tl.program_id(0)
    block = row_blocks - 1 - pid % row_blocks
    line = pid // row_blocks  # the number of n, batch and head
    h = line % heads
    b = line // heads % batch
    n = line // heads // batch
    kv = h // group
    first_dot = n * TANGENTS
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
        bias_dot_ptr += head_offset(first_dot, b, h, bd_n, bd_b, bd_h)
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
        bd_n,
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
    row = index[:, None]
    begin, end = keys_seen(rules, row)
    tile = Tile(row, row, begin, end)  # columns as they come
    q_here = q_ptr + head_offset(n, b, h, q_n, q_b, q_h)
    q = load_rows(q_here, start, q_row, rows, BLOCK_M, DK, BLOCK_DK, False, True)
    places = (q_here,)
    q_dots = ()
    k_dots = ()
    v_dots = ()
    moved = ()
    lse_dots = ()
    for i in tl.static_range(TANGENTS):
        which = first_dot + i
        if q_dot_ptr is not None:
            here = q_dot_ptr + head_offset(which, b, h, qd_n, qd_b, qd_h)
            places = places + (here,)
            q_dots = q_dots + (load_rows(here, start, qd_row, rows, BLOCK_M, DK, BLOCK_DK, False, True),)
        if k_dot_ptr is not None:
            k_dots = k_dots + (k_dot_ptr + head_offset(which, b, kv, kd_n, kd_b, kd_h),)
        if v_dot_ptr is not None:
            v_dots = v_dots + (v_dot_ptr + head_offset(which, b, kv, vd_n, vd_b, vd_h),)
        moved = moved + (tl.zeros([BLOCK_M, BLOCK_DV], ACC),)
        lse_dots = lse_dots + (tl.zeros([BLOCK_M], ACC),)
    k_here = k_ptr + head_offset(n, b, kv, k_n, k_b, k_h)
    v_here = v_ptr + head_offset(n, b, kv, v_n, v_b, v_h)
    if FACTS.ALIKE:
        v_row, kd_row, vd_row = k_row, k_row, k_row
    keys = Keys(k_here, k_row, v_here, v_row, k_dots, kd_row, v_dots, vd_row)
    nothing = tl.full([BLOCK_M], -float("inf"), ACC)
    state = (nothing, tl.zeros([BLOCK_M], ACC), tl.zeros([BLOCK_M, BLOCK_DV], ACC), moved, lse_dots)

    first, last, shared = keys_of_tile(begin, end, row, rows, columns, BLOCK_N)
    origins = ()
    if TANGENTS > 0:
        origins = first_origins(places, q_row, qd_row, keys, rules, tile, start, first * BLOCK_N, FACTS)
    if count_ptr is not None:
        place = b * list_b + h * list_h + block * BLOCK_M // LISTED_ROWS
        SPLIT: tl.constexpr = LISTED_COLUMNS // BLOCK_N
        for i in tl.range(0, tl.load(count_ptr + place) * SPLIT, num_stages=STAGES):
            listed_block = tl.load(index_ptr + place.to(tl.int64) * listed + i // SPLIT)
            j = listed_block * LISTED_COLUMNS + i % SPLIT * BLOCK_N
            state = visit(state, q, q_dots, origins, keys, rules, tile, j, FACTS, True)
    else:
        for i in tl.range(first, shared, num_stages=STAGES):
            state = visit(state, q, q_dots, origins, keys, rules, tile, i * BLOCK_N, FACTS, False)
        for i in tl.range(shared, last, num_stages=STAGES):
            state = visit(state, q, q_dots, origins, keys, rules, tile, i * BLOCK_N, FACTS, True)

    m, mass, o, moved, lse_dots = state
    empty = mass == 0
    inverse = 1.0 / tl.where(empty, 1.0, mass)
    o *= inverse[:, None]
    # Where results stand is made of `line` again: the fewer numbers outlive the loops, the fewer are spilled.
    heads_in_all = heads * batch
    out = line
    if SHARED:  # results have no more of n than the primal
        out = line % heads_in_all
    out = out.to(tl.int64)
    if not SHARED or line < heads_in_all:
        store_rows(o_ptr + out * rows * DV, start, rows, o, BLOCK_M, DV, BLOCK_DV)
        top = tl.where(empty, 0.0, m)
        reach = tl.where(empty, 1.0, mass)
        rest = tl.zeros([BLOCK_M], ACC)
        if FACTS.FINE:
            reach = tl.log(reach)
            rest = rounding(top, reach)
            lse = top + reach
        else:
            lse = (top + tl.log2(reach)) * LN2
        lse = tl.where(empty, -float("inf"), lse)
        tl.store(lse_ptr + out * rows + index, lse.to(lse_ptr.dtype.element_ty), mask=index < rows)
        tl.store(rest_ptr + out * rows + index, rest.to(rest_ptr.dtype.element_ty), mask=index < rows)
    for i in tl.static_range(TANGENTS):
        at = line.to(tl.int64)
        if TANGENTS > 1:
            at = (line // heads_in_all * TANGENTS + i).to(tl.int64) * heads_in_all + line % heads_in_all
        r = lse_dots[i] * inverse
        tangent = moved[i] * inverse[:, None] - r[:, None] * o
        store_rows(o_dot_ptr + at * rows * DV, start, rows, tangent, BLOCK_M, DV, BLOCK_DV)
        r = tl.where(empty, 0.0, r + origins[i])
        tl.store(lse_dot_ptr + at * rows + index, r.to(lse_dot_ptr.dtype.element_ty), mask=index < rows)
