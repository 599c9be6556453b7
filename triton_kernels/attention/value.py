"""Launcher of value and tangents of attention; what a call needs is worked out once for its shapes and options."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._dtypes import accumulator, partial_dtype
from .._launch import Prepared, launch_prepared
from ._forward_tiles import Facts
from .arguments import (
    Operands,
    Scores,
    are_alike,
    capped,
    check_counted,
    head_strides,
    is_fine,
    is_wide,
    padded,
    rule_arguments,
    shared_size,
    unit_last,
    with_front,
)
from .config import Config, call_key, forward_config, precision, tangents_of_program
from .forward import _forward_kernel

_NOTHING = Operands()


class _Call(NamedTuple):
    """All of a call that shapes, strides, dtypes and options determine.

    Attributes:
        results: Shapes and dtypes of o, ℓ, their tangents and the rest of ℓ; None for one that there is not.
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
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """Value and tangents of attention, in one launch.

    Args:
        at: q (N, B, Hq, Lq, dk), k (N, B, Hk, Lk, dk), v (N, B, Hk, Lk, dv) and bias (N, B, Hq, Lq, Lk) with axes that
            are full or 1, or None; N may be 1 against others' N, and each may lack that axis.
        dots: Their tangents, each of them or None; they may be K along the first axis if at's have 1 there, or none.
        options: What is done to the scores.

    Returns:
        o (N, B, Hq, Lq, dv) in q's dtype, ℓ (N, B, Hq, Lq) in float32, or float64; their tangents, or None; and what ℓ
        as rounded lacks, of ℓ's shape, 0 for operands of 16 bits. The first axis is there where something that the
        result depends on has it.
    """
    q, k, v, bias = at
    q_dot, k_dot, v_dot, bias_dot = dots or _NOTHING
    blocks = options.blocks
    tensors = [q, k, v, q_dot, k_dot, v_dot, bias, bias_dot, options.mask, options.slopes, options.ranges]
    tensors += [options.seed if options.dropout_p > 0 else None, *((None, None) if blocks is None else blocks[:2])]
    key = call_key(q, options, tensors)
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
    check_counted(rows, columns)
    pairs = tuple(
        None if lead is None else ((*lead, batch, heads, rows, *last), dtype)
        for lead in (front, moved_front if moving else None)
        for last, dtype in (((dv,), q.dtype), ((), partial_dtype(q.dtype)))
    )
    results = (*pairs, pairs[1])
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
    config = forward_config(max(dk, dv), q, bias, each, options.blocks)
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
        is_fine(q),
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
    o, lse, *zero = results
    for tensor in (o, *zero):
        if tensor is not None:
            tensor.zero_()
    lse.fill_(-torch.inf)
    return results
