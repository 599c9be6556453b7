"""What a program of attention does with one tile of keys: it takes in the tile's part of the value and the tangents."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false
# Constexprs take plain values, may be tuples of named facts, and decide what is bound.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ._scores import Tile, in_unit, powers, scores, survival, tangent_scores, visible
from ._tiles import load_rows


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
    its last. PLAIN: whether scores are q·k by a positive factor. FINE, WIDE, ALIKE: see the facts of pullbacks.
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
    FINE: bool
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
def visit(state, q, q_dots, origins, keys, rules, tile, j, FACTS: tl.constexpr, HIDES: tl.constexpr):
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
    FINE: tl.constexpr = FACTS.FINE
    ACC: tl.constexpr = FACTS.ACC
    m, mass, o, moved, lse_dots = state
    column = (j + tl.arange(0, BLOCK_N))[None, :]
    tile = Tile(tile.row, column, tile.low, tile.high)
    k = tl.trans(load_rows(keys.k, j, keys.k_stride, rules.columns, BLOCK_N, DK, BLOCK_DK, not HIDES, FACTS.WIDE))
    z = tl.dot(q, k, input_precision=PRECISION, out_dtype=ACC)
    t = 0.0
    if FACTS.PLAIN:  # max and scale commute: one multiplication a row, and one fused multiply-add an element
        factor = in_unit(rules.scale, FINE)
        if HIDES:
            z = tl.where(visible(tile, False, FACTS.LEFT), z, -float("inf"))
        top = tl.maximum(m, tl.max(z, 1) * factor)
        base = tl.where(top == -float("inf"), 0.0, top)  # rows that have seen nothing yet
        p = powers(z * factor - base[:, None], FINE)
    else:
        s, t = scores(rules, z, tile, CAPPED, FACTS.WIDE, FINE)
        if HIDES:
            s = tl.where(visible(tile, False, FACTS.LEFT), s, -float("inf"))
        top = tl.maximum(m, tl.max(s, 1))
        base = tl.where(top == -float("inf"), 0.0, top)
        p = powers(s - base[:, None], FINE)
    fade = powers(m - base, FINE)
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
def first_origins(places, q_row, qd_row, keys, rules, tile, start, j, FACTS: tl.constexpr):
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
    s, t = scores(rules, z, tile, FACTS.CAPPED, FACTS.WIDE, FACTS.FINE)
    seen = tl.where(visible(tile, False, FACTS.LEFT), s, -float("inf"))
    top = tl.max(seen, 1)[:, None]
    blind = top == -float("inf")
    s = tl.where(blind, tl.zeros_like(s), seen - tl.where(blind, 0.0, top))
    p = powers(s, FACTS.FINE)
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
