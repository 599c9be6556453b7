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
from .._launch import Prepared, launch_prepared
from ._forward_tiles import Facts, Keys, first_origins, visit
from ._scores import LN2, Rules, Tile, keys_seen
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
    with_front,
)
from .config import Config, circumstances, forward_config, precision, tangents_of_program

_NOTHING = Operands()


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


class _Call(NamedTuple):
    """All of a call that shapes, strides, dtypes and options determine.

    Attributes:
        results: Shapes and dtypes of o, ℓ and their tangents; None for one that there is not.
        copied: Which of the tensors kernels cannot read as they lie.
        launch: The rest of the launch; None if there is nothing to compute.
    """

    results: tuple[tuple[tuple[int, ...], torch.dtype] | None, ...]
    copied: tuple[int, ...] = ()
    launch: Prepared | None = None


_calls: dict[tuple[Any, ...], _Call] = {}
_MOST_CALLS = 1024


def attention_forward(
    at: Operands, dots: Operands | None, options: Scores
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Value and tangents of attention, in one launch.

    Args:
        at: q (N, B, Hq, Lq, dk), k (N, B, Hk, Lk, dk), v (N, B, Hk, Lk, dv) and bias (N, B, Hq, Lq, Lk) with axes that
            are full or 1, or None; N may be 1 against others' N, and each may lack that axis.
        dots: Their tangents, each of them or None; they may be K along the first axis if at's have 1 there, or none.
        options: What is done to the scores.

    Returns:
        o (N, B, Hq, Lq, dv) in q's dtype, ℓ (N, B, Hq, Lq) in float32, or float64; and their tangents, or None. The
        first axis is there where something that the result depends on has it.
    """
    q, k, v, bias = at
    q_dot, k_dot, v_dot, bias_dot = dots or _NOTHING
    blocks = options.blocks
    tensors = [q, k, v, q_dot, k_dot, v_dot, bias, bias_dot, options.mask, options.slopes, options.ranges]
    tensors += [options.seed if options.dropout_p > 0 else None, *((None, None) if blocks is None else blocks[:2])]
    key = (
        q.device,
        *circumstances(q.dtype),
        options.scale,
        options.left,
        options.right,
        options.offset,
        options.softcap,
        options.dropout_p,
        None if blocks is None else blocks[4:],
        *[None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors],
    )
    call = _calls.get(key)
    if call is None:
        if len(_calls) >= _MOST_CALLS:
            _calls.clear()
        call = _calls[key] = _call_of(tensors, options)
    for i in call.copied:
        tensors[i] = tensors[i].contiguous()
    results: Any = [None if like is None else q.new_empty(like[0], dtype=like[1]) for like in call.results]
    if call.launch is None:
        return empty_results(tuple(results))
    launch_prepared(call.launch, q, (*tensors, *results))
    return tuple(results)


def _call_of(tensors: list[Any], options: Scores) -> _Call:
    """What a call with tensors and options like these is."""
    lists = [t if t is None else t.contiguous() for t in tensors[9:]]
    ready = [*(unit_last(t) for t in tensors[:6]), *tensors[6:9], *lists]
    copied = tuple(i for i, (given, used) in enumerate(zip(tensors, ready, strict=True)) if given is not used)
    strided = [with_front(t) for t in ready[:9]]
    q, k, v, *moved, bias, bias_dot, mask = strided
    seed = tensors[11]
    moving = [t for t in (*moved, bias_dot) if t is not None]
    n = shared_size(q, k, v, bias, mask, seed)
    count = max(n, shared_size(*moving))
    has_front = [t is not None and t.dim() == (1 if t is seed else 5) for t in tensors]
    batched = any(has_front[i] for i in (0, 1, 2, 6, 8, 11))
    front, moved_front = (n,) if batched else (), (count,) if batched or any(has_front) else ()
    batch, heads, rows, dk = q.shape[1:]
    columns, dv = v.shape[-2:]
    results = tuple(
        None if lead is None else ((*lead, batch, heads, rows, *last), dtype)
        for lead in (front, moved_front if moving else None)
        for last, dtype in (((dv,), q.dtype), ((), partial_dtype(q.dtype)))
    )
    if 0 in (n, batch, heads, rows, dv, columns):
        return _Call(results)
    each = tangents_of_program(count, max(dk, dv)) if moving and n == 1 else int(bool(moving))
    facts, config = _facts_of(strided, options, each)
    row_blocks = -(-rows // config.block_m)
    groups = count // max(1, each) if moving else n
    rules = rule_arguments(options._replace(mask=mask), bias, bias_dot)
    numbers = (
        *(stride for t in strided[:6] for stride in head_strides(t)),
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
    )
    constants = {
        "SHARED": n == 1 and groups > 1,
        "LISTED_ROWS": options.blocks.q_block if options.blocks else 1,
        "LISTED_COLUMNS": options.blocks.kv_block if options.blocks else config.block_n,
        "FACTS": facts,
        **config.options(),
    }
    return _Call(results, copied, Prepared(_forward_kernel, row_blocks * heads * batch * groups, numbers, constants))


def _facts_of(strided: list[Any], options: Scores, each: int) -> tuple[Facts, Config]:
    """What the kernel is compiled for, with `each` tangents in a program."""
    q, k, v, q_dot, k_dot, v_dot, bias, bias_dot, mask = strided
    dk, dv = q.shape[-1], v.shape[-1]
    config = forward_config(max(dk, dv), q, each, options.blocks)
    facts = Facts(
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
        options.scale > 0 and options.softcap <= 0 and bias is mask is options.slopes is None,
        is_wide(*strided),
        are_alike(k, v, k_dot, v_dot),
        precision(q.dtype),
        accumulator(q.dtype),
    )
    return facts, config


def empty_results(results: tuple[Any, ...]) -> tuple[Any, ...]:
    """Results where there is no row or no key: zeros, and −∞ for ℓ."""
    o, lse, o_dot, lse_dot = results
    for tensor in (o, o_dot, lse_dot):
        if tensor is not None:
            tensor.zero_()
    lse.fill_(-torch.inf)
    return results
