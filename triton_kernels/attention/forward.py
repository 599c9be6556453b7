"""Value and tangents of attention in one pass over the keys."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# Constexprs take plain values, may be tuples of named facts, and decide what is bound.

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator, partial_dtype
from .._launch import launch
from ._scores import LN2, LOG2E, Rules, Tile, keys_seen, scores, survival, tangent_scores, visible
from ._tiles import head_offset, keys_of_tile, load_rows, store_rows
from .arguments import (
    NOT_SPECIALIZED,
    Operands,
    Scores,
    are_alike,
    capped,
    head_strides,
    is_wide,
    padded,
    rule_arguments,
    shared_size,
    unit_last,
)
from .config import forward_config, precision, tangents_of_program


class Keys(NamedTuple):
    """Keys and values of one head and tuples of their tangents: pointers, and strides between vectors."""

    k: Any
    k_stride: Any
    v: Any
    v_stride: Any
    k_dots: Any
    k_dot_stride: Any
    v_dots: Any
    v_dot_stride: Any


class Facts(NamedTuple):
    """Compile-time facts: head sizes, tiles, how many tangents and which of them there are, and how to multiply.

    CAPPED: 0 without a softcap, 1 with one, 2 where tanh has to be exact. LEFT: whether a row may not see a key before
    its last. PLAIN: whether scores are q·k by a positive factor. WIDE, ALIKE: see the facts of pullbacks.
    """

    DK: int
    BLOCK_DK: int
    DV: int
    BLOCK_DV: int
    BLOCK_M: int
    BLOCK_N: int
    TANGENTS: int
    HAS_Q: bool
    HAS_K: bool
    HAS_V: bool
    HAS_BIAS: bool
    CAPPED: int
    LEFT: bool
    PLAIN: bool
    WIDE: bool
    ALIKE: bool
    PRECISION: str
    ACC: tl.dtype


@triton.jit
def _tangent_products(q, q_dots, k, keys, rules, j, FACTS: tl.constexpr, HIDES: tl.constexpr, WHICH: tl.constexpr):
    """Return q̇·k + q·k̇ of rows and the tile of keys that begins at j, given as columns, for one of several tangents."""
    BLOCK_M: tl.constexpr = FACTS.BLOCK_M
    BLOCK_N: tl.constexpr = FACTS.BLOCK_N
    z_dot = tl.zeros([BLOCK_M, BLOCK_N], FACTS.ACC)
    if FACTS.HAS_Q:
        z_dot = tl.dot(q_dots[WHICH], k, z_dot, input_precision=FACTS.PRECISION, out_dtype=FACTS.ACC)
    if FACTS.HAS_K:
        place, stride = keys.k_dots[WHICH], keys.k_dot_stride
        k_dot = load_rows(place, j, stride, rules.columns, BLOCK_N, FACTS.DK, FACTS.BLOCK_DK, not HIDES, FACTS.WIDE)
        z_dot = tl.dot(q, tl.trans(k_dot), z_dot, input_precision=FACTS.PRECISION, out_dtype=FACTS.ACC)
    return z_dot


@triton.jit
def _visit(state, q, q_dots, origins, keys, rules, tile, j, FACTS: tl.constexpr, HIDES: tl.constexpr):
    """Take in the tile of keys that begins at j; HIDES: whether some of it may not be visible, or not exist."""
    DK: tl.constexpr = FACTS.DK
    BLOCK_DK: tl.constexpr = FACTS.BLOCK_DK
    DV: tl.constexpr = FACTS.DV
    BLOCK_DV: tl.constexpr = FACTS.BLOCK_DV
    BLOCK_N: tl.constexpr = FACTS.BLOCK_N
    TANGENTS: tl.constexpr = FACTS.TANGENTS
    HAS_Q: tl.constexpr = FACTS.HAS_Q
    HAS_K: tl.constexpr = FACTS.HAS_K
    CAPPED: tl.constexpr = FACTS.CAPPED
    PRECISION: tl.constexpr = FACTS.PRECISION
    ACC: tl.constexpr = FACTS.ACC
    m, mass, o, moved, lse_dots = state
    column = (j + tl.arange(0, BLOCK_N))[None, :]
    tile = Tile(tile.row, column, tile.low, tile.high)
    k = tl.trans(load_rows(keys.k, j, keys.k_stride, rules.columns, BLOCK_N, DK, BLOCK_DK, not HIDES, FACTS.WIDE))
    z = tl.dot(q, k, input_precision=PRECISION, out_dtype=ACC)
    t = 0.0
    if FACTS.PLAIN:  # max and scale commute: one multiplication a row, and one fused multiply-add an element
        factor = rules.scale * LOG2E
        if HIDES:
            z = tl.where(visible(tile, False, FACTS.LEFT), z, -float("inf"))
        top = tl.maximum(m, tl.max(z, 1) * factor)
        base = tl.where(top == -float("inf"), 0.0, top)  # rows that have seen nothing yet
        p = tl.exp2(z * factor - base[:, None])
    else:
        s, t = scores(rules, z, tile, CAPPED, FACTS.WIDE)
        if HIDES:
            s = tl.where(visible(tile, False, FACTS.LEFT), s, -float("inf"))
        top = tl.maximum(m, tl.max(s, 1))
        base = tl.where(top == -float("inf"), 0.0, top)
        p = tl.exp2(s - base[:, None])
    fade = tl.exp2(m - base)
    mass = mass * fade + tl.sum(p, 1)
    kept = p
    if rules.seed is not None:
        drop = survival(rules, tile)
        kept = p * drop
    v = load_rows(keys.v, j, keys.v_stride, rules.columns, BLOCK_N, DV, BLOCK_DV, not HIDES, FACTS.WIDE)
    low = kept.to(v.dtype)
    o = tl.dot(low, v, o * fade[:, None], input_precision=PRECISION, out_dtype=ACC)
    new_moved = ()
    new_lse_dots = ()
    for i in tl.static_range(TANGENTS):
        a = moved[i] * fade[:, None]
        r = lse_dots[i] * fade
        if HAS_Q or HAS_K or FACTS.HAS_BIAS:
            z_dot = _tangent_products(q, q_dots, k, keys, rules, j, FACTS, HIDES, i)
            h = p * tangent_scores(rules, z_dot, t, tile, origins[i][:, None], CAPPED, FACTS.WIDE, i)
            r += tl.sum(h, 1)
            if rules.seed is not None:
                h *= drop
            a = tl.dot(h.to(v.dtype), v, a, input_precision=PRECISION, out_dtype=ACC)
        if FACTS.HAS_V:
            v_dot = load_rows(
                keys.v_dots[i], j, keys.v_dot_stride, rules.columns, BLOCK_N, DV, BLOCK_DV, not HIDES, FACTS.WIDE
            )
            a = tl.dot(low, v_dot, a, input_precision=PRECISION, out_dtype=ACC)
        new_moved = new_moved + (a,)
        new_lse_dots = new_lse_dots + (r,)
    return top, mass, o, new_moved, new_lse_dots


@triton.jit
def _origins(places, q_row, qd_row, keys, rules, tile, start, j, FACTS: tl.constexpr):
    """Return Σ P∘Ṡ over the tile of keys that begins at j, for every tangent: about ℓ̇, which is known at the end only.

    P∘Ṡ is rounded before it is multiplied, and what all keys of a row have in common in Ṡ takes no part in ȯ: it is
    subtracted before, or it would drown the rest where keys, or values, have a mean. Rows that see none of these keys
    take all of them.

    `places` are those of q and its tangents, which are loaded here again: used by loops as well, where they stand in
    shared memory would be kept in registers for the sake of this, and something else spilled.
    """
    BLOCK_M: tl.constexpr = FACTS.BLOCK_M
    BLOCK_N: tl.constexpr = FACTS.BLOCK_N
    TANGENTS: tl.constexpr = FACTS.TANGENTS
    q = load_rows(places[0], start, q_row, rules.rows, BLOCK_M, FACTS.DK, FACTS.BLOCK_DK, False, FACTS.WIDE)
    q_dots = ()
    for i in tl.static_range(TANGENTS):
        if FACTS.HAS_Q:
            q_dots = q_dots + (
                load_rows(
                    places[i + 1], start, qd_row, rules.rows, BLOCK_M, FACTS.DK, FACTS.BLOCK_DK, False, FACTS.WIDE
                ),
            )
    column = (j + tl.arange(0, BLOCK_N))[None, :]
    tile = Tile(tile.row, column, tile.low, tile.high)
    stride = keys.k_stride
    k = load_rows(keys.k, j, stride, rules.columns, BLOCK_N, FACTS.DK, FACTS.BLOCK_DK, False, FACTS.WIDE)
    k = tl.trans(k)
    z = tl.dot(q, k, input_precision=FACTS.PRECISION, out_dtype=FACTS.ACC)
    s, t = scores(rules, z, tile, FACTS.CAPPED, FACTS.WIDE)
    seen = tl.where(visible(tile, False, FACTS.LEFT), s, -float("inf"))
    top = tl.max(seen, 1)[:, None]
    blind = top == -float("inf")
    s = tl.where(blind, tl.zeros_like(s), seen - tl.where(blind, 0.0, top))
    p = tl.exp2(s)
    p /= tl.sum(p, 1)[:, None]
    origins = ()
    for i in tl.static_range(TANGENTS):
        if FACTS.HAS_Q or FACTS.HAS_K or FACTS.HAS_BIAS:
            z_dot = _tangent_products(q, q_dots, k, keys, rules, j, FACTS, True, i)
            s_dot = tangent_scores(rules, z_dot, t, tile, 0.0, FACTS.CAPPED, FACTS.WIDE, i)
            origins = origins + (tl.sum(p * s_dot, 1),)
        else:
            origins = origins + (tl.zeros([BLOCK_M], FACTS.ACC),)
    return origins


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
        origins = _origins(places, q_row, qd_row, keys, rules, tile, start, first * BLOCK_N, FACTS)
    if count_ptr is not None:
        place = b * list_b + h * list_h + block * BLOCK_M // LISTED_ROWS
        SPLIT: tl.constexpr = LISTED_COLUMNS // BLOCK_N
        for i in tl.range(0, tl.load(count_ptr + place) * SPLIT, num_stages=STAGES):
            listed_block = tl.load(index_ptr + place.to(tl.int64) * listed + i // SPLIT)
            j = listed_block * LISTED_COLUMNS + i % SPLIT * BLOCK_N
            state = _visit(state, q, q_dots, origins, keys, rules, tile, j, FACTS, True)
    else:
        for i in tl.range(first, shared, num_stages=STAGES):
            state = _visit(state, q, q_dots, origins, keys, rules, tile, i * BLOCK_N, FACTS, False)
        for i in tl.range(shared, last, num_stages=STAGES):
            state = _visit(state, q, q_dots, origins, keys, rules, tile, i * BLOCK_N, FACTS, True)

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
        lse = tl.where(empty, -float("inf"), (tl.where(empty, 0.0, m) + tl.log2(tl.where(empty, 1.0, mass))) * LN2)
        tl.store(lse_ptr + out * rows + index, lse.to(lse_ptr.dtype.element_ty), mask=index < rows)
    for i in tl.static_range(TANGENTS):
        at = line.to(tl.int64)
        if TANGENTS > 1:
            at = (line // heads_in_all * TANGENTS + i).to(tl.int64) * heads_in_all + line % heads_in_all
        r = lse_dots[i] * inverse
        tangent = moved[i] * inverse[:, None] - r[:, None] * o
        store_rows(o_dot_ptr + at * rows * DV, start, rows, tangent, BLOCK_M, DV, BLOCK_DV)
        r = tl.where(empty, 0.0, r + origins[i])
        tl.store(lse_dot_ptr + at * rows + index, r.to(lse_dot_ptr.dtype.element_ty), mask=index < rows)


def attention_forward(
    at: Operands, dots: Operands | None, options: Scores
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Value and tangents of attention, in one launch.

    Args:
        at: q (N, B, Hq, Lq, dk), k (N, B, Hk, Lk, dk), v (N, B, Hk, Lk, dv) and bias (N, B, Hq, Lq, Lk) with axes that
            are full or 1, or None; N may be 1 against others' N.
        dots: Their tangents, each of them or None; they may be K along the first axis if at's have 1 there.
        options: What is done to the scores.

    Returns:
        o (N, B, Hq, Lq, dv) in q's dtype, ℓ (N, B, Hq, Lq) in float32, or float64; and their tangents, or None.
    """
    q, k, v, q_dot, k_dot, v_dot = (unit_last(t) for t in (*at[:3], *(dots or Operands())[:3]))
    bias, bias_dot = at.bias, None if dots is None else dots.bias
    batch, heads, rows, dk = q.shape[1:]
    columns, dv = v.shape[-2:]
    n = shared_size(q, k, v, bias, options.mask, options.seed)
    moving = [t for t in (q_dot, k_dot, v_dot, bias_dot) if t is not None]
    count = max(n, shared_size(*moving))
    wide = partial_dtype(q.dtype)
    o = q.new_empty((n, batch, heads, rows, dv))
    lse = q.new_empty((n, batch, heads, rows), dtype=wide)
    o_dot = q.new_empty((count, batch, heads, rows, dv)) if moving else None
    lse_dot = q.new_empty((count, batch, heads, rows), dtype=wide) if moving else None
    results = (o, lse, o_dot, lse_dot)
    if o.numel() == 0 or columns == 0:
        return empty_results(results)
    each = tangents_of_program(count, max(dk, dv)) if moving and n == 1 else int(bool(moving))
    config = forward_config(max(dk, dv), q, each, options.blocks)
    row_blocks = -(-rows // config.block_m)
    groups = count // max(1, each) if moving else n
    rules = rule_arguments(options, bias, bias_dot)
    launch(
        _forward_kernel,
        row_blocks * heads * batch * groups,
        q,
        q,
        k,
        v,
        q_dot,
        k_dot,
        v_dot,
        bias,
        bias_dot,
        *rules.pointers,
        *rules.key_lists,
        *results,
        *(stride for t in (q, k, v, q_dot, k_dot, v_dot) for stride in head_strides(t)),
        *rules.strides,
        *rules.key_list_strides,
        batch,
        heads,
        heads // k.shape[2],
        rows,
        columns,
        *rules.window,
        row_blocks,
        *rules.numbers,
        SHARED=n == 1 and groups > 1,
        LISTED_ROWS=options.blocks.q_block if options.blocks else 1,
        LISTED_COLUMNS=options.blocks.kv_block if options.blocks else config.block_n,
        FACTS=Facts(
            dk,
            padded(dk),
            dv,
            padded(dv),
            config.block_m,
            config.block_n,
            each,
            q_dot is not None,
            k_dot is not None,
            v_dot is not None,
            bias_dot is not None,
            capped(options, q),
            options.left >= 0 or options.ranges is not None,
            options.scale > 0 and options.softcap <= 0 and bias is options.mask is options.slopes is None,
            is_wide(q, k, v, q_dot, k_dot, v_dot, bias, bias_dot, options.mask),
            are_alike(k, v, k_dot, v_dot),
            precision(q.dtype),
            accumulator(q.dtype),
        ),
        **config.options(),
    )
    return results


def empty_results(results: tuple[Any, ...]) -> tuple[Any, ...]:
    """Results where there is no row or no key: zeros, and −∞ for ℓ."""
    o, lse, o_dot, lse_dot = results
    for tensor in (o, o_dot, lse_dot):
        if tensor is not None:
            tensor.zero_()
    lse.fill_(-torch.inf)
    return results
