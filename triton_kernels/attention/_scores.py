"""What all attention kernels do with a tile of scores: cap, bias, ALiBi, visibility, dropout, and their derivatives.

A tile is rows by columns or, in the kernel that sums over rows, columns by rows: `row` and `column` are index tensors
that broadcast to it, and whatever belongs to a row has the axes of `row`.
"""

# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false, reportAttributeAccessIssue=false
# Constexprs decide what is bound.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .._jets import tanh_jet

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOWEST = tl.constexpr(-2e38)  # of what is added to scores, but for −∞
EXACTLY = tl.constexpr(2)  # what CAPPED is where cap and scores are of float32 or wider, so that κ tanh shows roundings
_UNIT = tl.constexpr(4.6566127342e-10)


class Rules(NamedTuple):
    """What is done to the scores of one head; pointers are those of its matrices, None where there is nothing.

    Attributes:
        scale: Factor of the scores, a scalar of the accumulator's type, as the following four.
        softcap: κ; read if CAPPED.
        slope: ALiBi's, or None.
        dropout_p: Probability of dropout; read if there is a seed.
        seed: int64, or None.
        stream: Number of batch and head, the third counter of dropout.
        bias_ptr: Added to the scores.
        bias_row: Its elements between rows, 0 where broadcast.
        bias_column: Its elements between columns.
        bias_dot_ptr: Tangent of the bias, with `dot_row` and `dot_column`; `dot_next` elements behind it the next.
        dot_next: See bias_dot_ptr.
        dot_row: See bias_row.
        dot_column: See bias_column.
        mask_ptr: bool, what is visible, with `mask_row` and `mask_column`.
        mask_row: See bias_row.
        mask_column: See bias_column.
        ranges_ptr: int32 (3, rows): first key, end of keys and position of each row; in place of the following three.
        left: How many keys before its position a row sees.
        right: How many after.
        offset: Position of row 0.
        rows: Number of rows.
        columns: Number of columns.
    """

    scale: Any
    softcap: Any
    slope: Any
    dropout_p: Any
    seed: Any
    stream: Any
    bias_ptr: Any
    bias_row: Any
    bias_column: Any
    bias_dot_ptr: Any
    dot_next: Any
    dot_row: Any
    dot_column: Any
    mask_ptr: Any
    mask_row: Any
    mask_column: Any
    ranges_ptr: Any
    left: Any
    right: Any
    offset: Any
    rows: Any
    columns: Any


class Tile(NamedTuple):
    """Where a tile stands, and what of it is visible.

    Attributes:
        row: Numbers of its rows, with an axis for columns.
        column: Numbers of its columns, with an axis for rows.
        low: What of it is visible lies between: first key of each row or, by columns, first row of each key.
        high: The end of those.
    """

    row: Any
    column: Any
    low: Any
    high: Any


@triton.jit
def keys_seen(rules, row):
    """Return first key and end of keys of rows; of given ends, which nobody has looked at, none is behind the keys."""
    if rules.ranges_ptr is not None:
        inside = row < rules.rows
        begin = tl.load(rules.ranges_ptr + row, mask=inside, other=0)
        end = tl.minimum(tl.load(rules.ranges_ptr + rules.rows + row, mask=inside, other=0), rules.columns)
    else:
        position = row + rules.offset
        begin = tl.maximum(position - rules.left, 0)
        end = tl.minimum(position + rules.right + 1, rules.columns)
    return begin, end


@triton.jit
def visible(tile, BY_COLUMNS: tl.constexpr, LEFT: tl.constexpr):
    """Return what of a tile is visible. Without LEFT nothing is hidden before a row's keys or behind a key's rows."""
    if BY_COLUMNS:
        seen = tile.row >= tile.low
        if LEFT:
            seen = seen & (tile.row < tile.high)
    else:
        seen = tile.column < tile.high
        if LEFT:
            seen = seen & (tile.column >= tile.low)
    return seen


@triton.jit
def _place(tile, row_stride, column_stride, WIDE: tl.constexpr):
    """Return where the elements of a tile stand in a matrix; WIDE: where 32 bits may be too few."""
    if WIDE:
        place = tile.row.to(tl.int64) * row_stride + tile.column.to(tl.int64) * column_stride
    else:
        place = tile.row * row_stride + tile.column * column_stride
    return place


@triton.jit
def _inside(rules, tile):
    return (tile.row < rules.rows) & (tile.column < rules.columns)


@triton.jit
def _tanh(x, CAPPED: tl.constexpr):
    """Return tanh x with a relative error of a rounding or, where products are of 16 bits, an absolute one."""
    if CAPPED == EXACTLY:
        t, _, _, _ = tanh_jet(x, False)
    else:  # tanh x = 1 − 2 / (1 + exp 2x), with neither overflow nor a library call
        t = 1.0 - 2.0 / (1.0 + tl.exp2(x * (2.0 * LOG2E)))
    return t


@triton.jit
def in_unit(x, FINE: tl.constexpr):
    """Return numbers of scores in the unit that kernels compute these in: S itself if FINE, else S · log₂e.

    Times log₂e a score of 100 is rounded by 100 eps, absolutely, and so is P, relatively: in float32 that is more than
    all else, beside 16 bits nothing. There it saves the multiplication of `powers`.
    """
    if FINE:
        return x
    else:
        return x * LOG2E


@triton.jit
def powers(x, FINE: tl.constexpr):
    """Return exp of differences of scores, in their unit."""
    if FINE:
        return tl.exp2(x * LOG2E)
    else:
        return tl.exp2(x)


@triton.jit
def scores(rules, z, tile, CAPPED: tl.constexpr, WIDE: tl.constexpr, FINE: tl.constexpr):
    """Return S of a tile of q·k in its unit, −∞ where a mask hides it, and tanh(z / κ)."""
    t = 0.0
    if CAPPED:
        t = _tanh(z * (rules.scale / rules.softcap), CAPPED)
        s = t * in_unit(rules.softcap, FINE)
    else:
        s = z * in_unit(rules.scale, FINE)
    if rules.bias_ptr is not None:
        place = rules.bias_ptr + _place(tile, rules.bias_row, rules.bias_column, WIDE)
        bias = tl.load(place, mask=_inside(rules, tile), other=0.0).to(z.dtype)
        if FINE:
            s += bias
        else:  # the lowest number, which hides keys softly, times log₂e would be −∞, which hides them altogether
            low = (bias < LOWEST) & (bias > -float("inf"))
            s += tl.where(low, LOWEST, bias) * LOG2E
    if rules.slope is not None:
        if rules.ranges_ptr is not None:
            inside = tile.row < rules.rows
            position = tl.load(rules.ranges_ptr + 2 * rules.rows + tile.row, mask=inside, other=0)
        else:
            position = tile.row + rules.offset
        s -= tl.abs(position - tile.column).to(z.dtype) * in_unit(rules.slope, FINE)
    if rules.mask_ptr is not None:
        place = rules.mask_ptr + _place(tile, rules.mask_row, rules.mask_column, WIDE)
        shown = tl.load(place, mask=_inside(rules, tile), other=0)
        s = tl.where(shown != 0, s, -float("inf"))
    return s, t


@triton.jit
def tangent_scores(rules, z_dot, t, tile, origin, CAPPED: tl.constexpr, WIDE: tl.constexpr, WHICH: tl.constexpr):
    """Return Ṡ of a tile minus `origin`, from q̇·k + q·k̇ and tanh(z / κ), for one of several tangents."""
    s_dot = z_dot * rules.scale
    if CAPPED:
        s_dot *= 1.0 - t * t
    if rules.bias_dot_ptr is not None:
        place = rules.bias_dot_ptr + WHICH * tl.cast(rules.dot_next, tl.int64)
        place += _place(tile, rules.dot_row, rules.dot_column, WIDE)
        s_dot += tl.load(place, mask=_inside(rules, tile), other=0.0).to(s_dot.dtype)
    return s_dot - origin


@triton.jit
def survival(rules, tile):
    """Return the mask of dropout over 1 − p: Philox 4x32-10 of the seed at (column, row, stream)."""
    c0 = tile.column + 0 * tile.row
    c1 = tile.row + 0 * tile.column
    word, _, _, _ = tl.philox(rules.seed, c0, c1, 0 * c0 + rules.stream, 0 * c0)
    signed = word.to(tl.int32, bitcast=True)
    uniform = tl.where(signed < 0, -signed - 1, signed).to(tl.float32) * _UNIT
    kept = uniform >= rules.dropout_p.to(tl.float32)
    return tl.where(kept, 1.0 / (1.0 - rules.dropout_p), 0.0)


class Row(NamedTuple):
    """What pullbacks know of rows, with the axes of `Tile.row`.

    Attributes:
        lse: ℓ in the unit of scores, +∞ where nothing is visible.
        delta: D = w·o − λ.
        lse_dot: ℓ̇, if SECOND.
        delta_dot: u·o + w·ȯ − μ, if SECOND.
        rest: What ℓ lacks, times log₂e, if FINE.
    """

    lse: Any
    delta: Any
    lse_dot: Any
    delta_dot: Any
    rest: Any


@triton.jit
def adjoints(rules, known, tile, z, z_dot, w_v, moved_v, FACTS: tl.constexpr, HIDES: tl.constexpr, BY: tl.constexpr):
    """Return P∘M, Ṗ∘M, dS, dṠ, dz and dż of a tile; BY columns: of one whose first axis they are.

    From q·k, q̇·k + q·k̇, w·v and u·v + w·v̇. HIDES: whether some of it is not visible. Without SECOND the dotted ones
    are others, that nobody reads.
    """
    CAPPED: tl.constexpr = FACTS.CAPPED
    SECOND: tl.constexpr = FACTS.SECOND
    s, t = scores(rules, z, tile, CAPPED, FACTS.WIDE, FACTS.FINE)
    power = s - known.lse
    if rules.bias_ptr is not None:
        # A row of padding, all of it at −1e9 or lower, has an ℓ whose rounding is many powers of two: P would overflow,
        # and make NaN of a cotangent of zero.
        power = tl.where(power > 0, 0.0, power)
    if FACTS.FINE:
        power = power * LOG2E - known.rest
    p = tl.exp2(power)
    if HIDES:
        p = tl.where(visible(tile, BY, FACTS.LEFT), p, 0.0)
    kept = p
    moved_kept = p
    if rules.seed is not None:
        drop = survival(rules, tile)
        kept = p * drop
        w_v = w_v * drop
        moved_v = moved_v * drop
    inner = w_v - known.delta
    ds = p * inner
    ds_dot = ds
    dz = ds
    dz_dot = ds
    if CAPPED:
        dz = ds * (1.0 - t * t)
    if SECOND:
        p_dot = p * tangent_scores(rules, z_dot, t, tile, known.lse_dot, CAPPED, FACTS.WIDE, 0)
        ds_dot = p_dot * inner + p * (moved_v - known.delta_dot)
        dz_dot = ds_dot
        if CAPPED:
            g = 1.0 - t * t
            dz_dot = ds_dot * g - 2.0 * t * g * (z_dot * rules.scale / rules.softcap) * ds
        moved_kept = p_dot
        if rules.seed is not None:
            moved_kept = p_dot * drop
    return kept, moved_kept, ds, ds_dot, dz, dz_dot
