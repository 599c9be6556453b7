"""What all attention kernels do with a tile of scores: cap, bias, ALiBi, visibility, dropout, and their derivatives.

A tile is rows by columns or, in the kernel that sums over rows, columns by rows: `row` and `column` are index tensors
that broadcast to it, and whatever belongs to a row has the axes of `row`.
"""

# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false, reportArgumentType=false
# Constexprs decide what is bound.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
_UNIT = tl.constexpr(4.6566127342e-10)


class Rules(NamedTuple):
    """What is done to the scores of one head; pointers are those of its matrices, None where there is nothing.

    Attributes:
        scale: Factor of the scores, float of the accumulator's type, as the following four.
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


@triton.jit
def limits(rules, row):
    """Return first key, end of keys and position of rows."""
    if rules.ranges_ptr is not None:
        inside = row < rules.rows
        begin = tl.load(rules.ranges_ptr + row, mask=inside, other=0)
        end = tl.load(rules.ranges_ptr + rules.rows + row, mask=inside, other=0)
        position = tl.load(rules.ranges_ptr + 2 * rules.rows + row, mask=inside, other=0)
    else:
        position = row + rules.offset
        begin = tl.maximum(position - rules.left, 0)
        end = tl.minimum(position + rules.right + 1, rules.columns)
    return begin, end, position


@triton.jit
def scores(rules, z, row, column, begin, end, position, CAPPED: tl.constexpr, MASKED: tl.constexpr):
    """Return S · log₂e of a tile of q·k, −∞ where not visible, and tanh(z / κ).

    With MASKED, columns outside of [begin, end) are hidden; else the tile is known to lie inside.
    """
    t = 0.0
    if CAPPED:
        # tanh x = 1 − 2 / (1 + exp 2x), with neither overflow nor a library call
        t = 1.0 - 2.0 / (1.0 + tl.exp2(z * (rules.scale / rules.softcap * 2.0 * LOG2E)))
        s = t * (rules.softcap * LOG2E)
    else:
        s = z * (rules.scale * LOG2E)
    if MASKED:
        visible = (column >= begin) & (column < end)
    if rules.bias_ptr is not None:
        place = row.to(tl.int64) * rules.bias_row + column.to(tl.int64) * rules.bias_column
        inside = (row < rules.rows) & (column < rules.columns)
        s += tl.load(rules.bias_ptr + place, mask=inside, other=0.0).to(z.dtype) * LOG2E
    if rules.slope is not None:
        s -= tl.abs(position - column).to(z.dtype) * (rules.slope * LOG2E)
    if rules.mask_ptr is not None:
        place = row.to(tl.int64) * rules.mask_row + column.to(tl.int64) * rules.mask_column
        inside = (row < rules.rows) & (column < rules.columns)
        s = tl.where(tl.load(rules.mask_ptr + place, mask=inside, other=0) != 0, s, -float("inf"))
    if MASKED:
        s = tl.where(visible, s, -float("inf"))
    return s, t


@triton.jit
def tangent_scores(rules, z_dot, t, row, column, CAPPED: tl.constexpr, WHICH: tl.constexpr):
    """Return Ṡ of a tile from q̇·k + q·k̇ and tanh(z / κ), for one of several tangents."""
    s_dot = z_dot * rules.scale
    if CAPPED:
        s_dot *= 1.0 - t * t
    if rules.bias_dot_ptr is not None:
        place = row.to(tl.int64) * rules.dot_row + column.to(tl.int64) * rules.dot_column + WHICH * rules.dot_next
        inside = (row < rules.rows) & (column < rules.columns)
        s_dot += tl.load(rules.bias_dot_ptr + place, mask=inside, other=0.0).to(s_dot.dtype)
    return s_dot


@triton.jit
def survival(rules, row, column):
    """Return the mask of dropout over 1 − p: Philox 4x32-10 of the seed at (column, row, stream)."""
    c0 = column + 0 * row
    c1 = row + 0 * column
    word, _, _, _ = tl.philox(rules.seed, c0, c1, 0 * c0 + rules.stream, 0 * c0)
    signed = word.to(tl.int32, bitcast=True)
    uniform = tl.where(signed < 0, -signed - 1, signed).to(tl.float32) * _UNIT
    kept = uniform >= rules.dropout_p.to(tl.float32)
    return tl.where(kept, 1.0 / (1.0 - rules.dropout_p), 0.0)


class Row(NamedTuple):
    """What pullbacks know of rows, with the axes of `row`.

    Attributes:
        index: Numbers of the rows.
        lse: ℓ · log₂e, +∞ where nothing is visible.
        delta: D = w·o − λ.
        delta_dot: u·o + w·ȯ − μ, if SECOND.
        lse_dot: ℓ̇, if SECOND.
        begin: First key.
        end: End of keys.
        position: Position among the keys.
    """

    index: Any
    lse: Any
    delta: Any
    delta_dot: Any
    lse_dot: Any
    begin: Any
    end: Any
    position: Any


@triton.jit
def adjoints(
    rules, rows, column, z, z_dot, w_v, moved_v, CAPPED: tl.constexpr, SECOND: tl.constexpr, MASKED: tl.constexpr
):
    """Return P∘M, Ṗ∘M, dS, dṠ, dz and dż of a tile.

    From q·k, q̇·k + q·k̇, w·v and u·v + w·v̇. Without SECOND the dotted ones are zeros that nobody reads.
    """
    s, t = scores(rules, z, rows.index, column, rows.begin, rows.end, rows.position, CAPPED, MASKED)
    p = tl.exp2(s - rows.lse)
    kept = p
    moved_kept = p
    if rules.seed is not None:
        drop = survival(rules, rows.index, column)
        kept = p * drop
        w_v = w_v * drop
        moved_v = moved_v * drop
    inner = w_v - rows.delta
    ds = p * inner
    ds_dot = ds
    dz = ds
    dz_dot = ds
    if CAPPED:
        dz = ds * (1.0 - t * t)
    if SECOND:
        s_dot = tangent_scores(rules, z_dot, t, rows.index, column, CAPPED, 0)
        p_dot = p * (s_dot - rows.lse_dot)
        ds_dot = p_dot * inner + p * (moved_v - rows.delta_dot)
        dz_dot = ds_dot
        if CAPPED:
            g = 1.0 - t * t
            dz_dot = ds_dot * g - 2.0 * t * g * (z_dot * rules.scale / rules.softcap) * ds
        moved_kept = p_dot
        if rules.seed is not None:
            moved_kept = p_dot * drop
    return kept, moved_kept, ds, ds_dot, dz, dz_dot
