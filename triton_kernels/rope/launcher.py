"""Rotary position embedding: the launcher of both kernels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .._dtypes import accumulator, partial_dtype
from .._launch import launch
from .._layout import unit_columns
from .kernel import _pull_kernel, _turn_kernel

_LONGEST_BLOCK = 128  # pairs of a head in a tile
_TILE_PAIRS = 1024  # of a head block: 8 a thread
_SUM_TILE_PAIRS = 512  # where four sums are kept besides


class Heads(NamedTuple):
    """A row operand, or a result like one: q and k, (G, B, heads, tokens, d) each, or None."""

    q: Tensor | None = None
    k: Tensor | None = None


class Angles(NamedTuple):
    """cos and sin, or sums like them, (G, B, tokens or table rows, c) each, or None."""

    cos: Tensor | None = None
    sin: Tensor | None = None


class Turned(NamedTuple):
    """What `rope_turn` returns; None where not asked for."""

    first: Heads
    second: Heads
    first_sum: Angles
    second_sum: Angles


def rope_turn(
    a: Heads,
    angles: Angles,
    *,
    b: Heads = Heads(),  # noqa: B008 -- immutable
    dots: Angles = Angles(),  # noqa: B008
    x: Heads = Heads(),  # noqa: B008
    x_dot: Heads = Heads(),  # noqa: B008
    positions: Tensor | None = None,
    inverse: bool = False,
    interleaved: bool = False,
    heads_last: bool = False,
    wants_first: bool = True,
    wants_second: bool = False,
    wants_first_sum: bool = False,
    wants_second_sum: bool = False,
    block_limit: int | None = None,
) -> Turned:
    """Compute first = a e, second = b e + a ė, Σ x̄ a and Σ (ẋ̄ a + x̄ b), those that are wanted, in one launch.

    Where all groups share e, a program reads it once for all of them; where they share a too, `first` is computed once.

    Args:
        a: (G, B, heads, tokens, d) of q and k.
        angles: e, (G, B, tokens or table rows, c).
        b: Like a; None is zero.
        dots: ė, like e.
        x: Like a; None is zero.
        x_dot: Like a; None is zero.
        positions: (G, B, tokens), rows of e and ė as integers; None for row t at token t. NaN comes of a row that is
            not there.
        inverse: Whether e and ė are conjugated.
        interleaved: Whether the halves of a pair are neighbours.
        heads_last: Whether results lie in memory as (G, B, tokens, heads, d).
        wants_first: Whether `first` is wanted; it is given where a is.
        wants_second: Whether `second` is wanted; it is given where b is, or a and ė.
        wants_first_sum: Whether Σ x̄ a is wanted.
        wants_second_sum: Whether Σ (ẋ̄ a + x̄ b) is wanted.
        block_limit: Longest tile of pairs, for tests.

    Returns:
        The results: heads in the dtype of a or b, sums (G, B, tokens, c) in float32 (float64 for float64 operands);
        G is 1 for `first` where a and e are shared by all groups.
    """
    rows = [unit_columns(t) for t in (*a, *b, *x, *x_dot)]
    like = next(t for t in rows if t is not None)
    cos, sin = _alike(*angles)
    cos_dot, sin_dot = _alike(*dots)
    every = [t for t in (*rows, cos, sin, cos_dot, sin_dot, positions) if t is not None]
    groups, batches = _broadcast(every, 0), _broadcast(every, 1)
    tokens, d = like.shape[-2:]
    table = next((t for t in (cos, sin, cos_dot, sin_dot) if t is not None), None)
    c, table_rows = (0, 0) if table is None else (table.shape[-1], table.shape[-2])

    once = all(_shared(t) for t in (*a, cos, sin, positions))
    results: list[Tensor | None] = []
    for (q_like, k_like), wanted, g in (
        (a, wants_first, 1 if once else groups),
        (_seconds(a, b, dots), wants_second, groups),
    ):
        for source in (q_like, k_like):
            results.append(None if source is None or not wanted else _empty(source, g, batches, heads_last))
    sums: list[Tensor | None] = []
    for wanted in (wants_first_sum, wants_second_sum):
        shape, dtype = (groups, batches, tokens, c), partial_dtype(like.dtype)
        sums += [torch.empty(shape, dtype=dtype, device=like.device) if wanted else None for _ in range(2)]
    turned = Turned(Heads(*results[:2]), Heads(*results[2:]), Angles(*sums[:2]), Angles(*sums[2:]))
    if groups * batches * tokens == 0 or (d == 0 and c == 0) or all(t is None for t in (*results, *sums)):
        return turned
    q_heads, k_heads = (max((t.shape[2] for t in rows[i::2] if t is not None), default=0) for i in (0, 1))
    summing = wants_first_sum or wants_second_sum
    block_c, block_h, num_warps = _tile(c or d // 2, max(q_heads, k_heads), like.element_size(), summing, block_limit)
    turning = -(-c // block_c)
    moves = any(t is not None for t in results)
    blocks = turning + (-(-(d - 2 * c) // (2 * block_c)) if moves else 0)
    if not summing:
        rows = rows[:4]
    many = groups > 1 and all(_shared(t) for t in (cos, sin, positions))
    strides = [s for t in rows for s in _strides(t, 4)]
    strides += [*_strides(sin if cos is None else cos, 3), *_strides(sin_dot if cos_dot is None else cos_dot, 3)]
    launch(
        _pull_kernel if summing else _turn_kernel,
        (1 if many else groups) * batches * tokens * blocks,
        like,
        *rows,
        cos,
        sin,
        cos_dot,
        sin_dot,
        positions,
        *results,
        *(sums if summing else ()),
        groups,
        batches,
        tokens,
        table_rows,
        blocks,
        turning,
        q_heads,
        k_heads,
        c,
        d,
        *strides,
        *_strides(positions, 3),
        MANY=many,
        FIRST_ONCE=many and once,
        INVERSE=inverse,
        INTERLEAVED=interleaved,
        HEADS_LAST=heads_last,
        ACC=accumulator(like.dtype),
        BLOCK_H=block_h,
        BLOCK_C=block_c,
        num_warps=num_warps,
        num_stages=1,
        enable_fp_fusion=True,
    )
    return turned


def _tile(pairs: int, heads: int, itemsize: int, summing: bool, limit: int | None) -> tuple[int, int, int]:
    """Pairs and heads of a tile, powers of two, and warps: 8 pairs a thread, 4 in float64 and where sums are kept."""
    block_c = min(_LONGEST_BLOCK if limit is None else limit, 1 << max(0, pairs - 1).bit_length())
    size = (_SUM_TILE_PAIRS if summing else _TILE_PAIRS) // (2 if itemsize == 8 else 1)
    block_h = max(1, min(size // block_c, 1 << max(0, heads - 1).bit_length()))
    per_thread = 4 if summing or itemsize == 8 else 8
    return block_c, block_h, max(1, min(8, block_c * block_h // (32 * per_thread)))


def _seconds(a: Heads, b: Heads, dots: Angles) -> Heads:
    """What the results b e + a ė are like."""
    turns = dots.cos is not None or dots.sin is not None
    return Heads(*(s if s is not None else r if turns else None for r, s in zip(a, b, strict=True)))


def _alike(cos: Tensor | None, sin: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """cos and sin with adjacent columns and the same strides, which a copy gives them where they differ."""
    cos, sin = unit_columns(cos), unit_columns(sin)
    if cos is not None and sin is not None and (cos.shape != sin.shape or _strides(cos, 3) != _strides(sin, 3)):
        shape = torch.broadcast_shapes(cos.shape, sin.shape)
        cos, sin = cos.expand(shape).contiguous(), sin.expand(shape).contiguous()
    return cos, sin


def _shared(tensor: Tensor | None) -> bool:
    """Whether groups share the tensor's memory."""
    return tensor is None or tensor.shape[0] == 1 or tensor.stride(0) == 0


def _broadcast(tensors: list[Tensor], axis: int) -> int:
    return next((t.shape[axis] for t in tensors if t.shape[axis] != 1), 1)


def _strides(tensor: Tensor | None, count: int) -> tuple[int, ...]:
    """Strides of the first axes, 0 along those that broadcast: batches and groups (and for nothing else matter)."""
    if tensor is None:
        return (0,) * count
    return tuple(0 if size == 1 else step for size, step in zip(tensor.shape[:count], tensor.stride(), strict=False))


def _empty(like: Tensor, groups: int, batches: int, heads_last: bool) -> Tensor:
    _, _, heads, tokens, d = like.shape
    if heads_last:
        return torch.empty((groups, batches, tokens, heads, d), dtype=like.dtype, device=like.device).transpose(2, 3)
    return torch.empty((groups, batches, heads, tokens, d), dtype=like.dtype, device=like.device)
