"""What the kernels of pullbacks share: compile-time facts, what is known of rows, and the row scalars."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexprs take plain values, may be tuples of named facts, and decide what is bound.

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from ._scores import LOG2E, Row, in_unit
from ._tiles import load_rows


class Facts(NamedTuple):
    """Compile-time facts of pullbacks.

    Attributes:
        DK: Head size of queries and keys, and its block.
        BLOCK_DK: See DK.
        DV: Head size of values, and its block.
        BLOCK_DV: See DV.
        BLOCK_M: Rows of a tile.
        BLOCK_N: Columns of a tile.
        FIRST: Whether cotangents are stored.
        SECOND: Whether their tangents are.
        KEYS: Whether those of keys are, where keys and values are summed.
        VALUES: Whether those of values are, likewise.
        HAS_Q: Whether there are tangents of queries, of keys, of values.
        HAS_K: See HAS_Q.
        HAS_V: See HAS_Q.
        HAS_W: Whether there is a cotangent of o, and a tangent of it.
        HAS_U: See HAS_W.
        CAPPED: Whether there is a softcap, 0 or 1; 2 where tanh has to be exact.
        FINE: Whether operands are of float32 or wider, see `in_unit`.
        LEFT: Whether a row may not see a key before its last.
        WIDE: Whether a matrix has elements 2³¹ or more behind its first.
        ALIKE: Whether k, v and their tangents have the same stride between vectors, and q and its tangent.
        PRECISION: How float32 is multiplied.
        ACC: What is computed in.
    """

    DK: int
    BLOCK_DK: int
    DV: int
    BLOCK_DV: int
    BLOCK_M: int
    BLOCK_N: int
    FIRST: bool
    SECOND: bool
    KEYS: bool
    VALUES: bool
    HAS_Q: bool
    HAS_K: bool
    HAS_V: bool
    HAS_W: bool
    HAS_U: bool
    CAPPED: int
    FINE: bool
    LEFT: bool
    WIDE: bool
    ALIKE: bool
    PRECISION: str
    ACC: tl.dtype


class Known(NamedTuple):
    """Pointers to what is known of the rows of one head, as the kernel below leaves it: `Row`, one number each."""

    lse: Any
    delta: Any
    lse_dot: Any
    delta_dot: Any
    rest: Any


@triton.jit
def known_of(lse_ptr, delta_ptr, lse_dot_ptr, delta_dot_ptr, rest_ptr, head, stored):
    """Return the pointers of a head, by its number among those of all n and batches.

    Those that there are not are others, that nobody reads: Triton 3.6 does not let a function return None.
    """
    if lse_dot_ptr is None:
        lse_dot_ptr = lse_ptr
        delta_dot_ptr = delta_ptr
    if rest_ptr is None:
        rest_ptr = lse_ptr
    here = head * stored
    return Known(lse_ptr + here, delta_ptr + here, lse_dot_ptr + here, delta_dot_ptr + here, rest_ptr + here)


@triton.jit
def known_rows(known, index, AXIS: tl.constexpr, SECOND: tl.constexpr, FINE: tl.constexpr):
    """Return what is known of rows, with an axis for columns; whole tiles are stored."""
    lse = tl.expand_dims(tl.load(known.lse + index), AXIS)
    delta = tl.expand_dims(tl.load(known.delta + index), AXIS)
    lse_dot = delta
    delta_dot = delta
    if SECOND:
        lse_dot = tl.expand_dims(tl.load(known.lse_dot + index), AXIS)
        delta_dot = tl.expand_dims(tl.load(known.delta_dot + index), AXIS)
    rest = lse
    if FINE:
        rest = tl.expand_dims(tl.load(known.rest + index), AXIS)
    return Row(lse, delta, lse_dot, delta_dot, rest)


@triton.jit(do_not_specialize=["rows", "stored", "row_blocks", "heads", "lse_n", "ld_n", "lb_n", "lbd_n", "rest_n"])
def _delta_kernel(
    o_ptr,  # (n, heads, rows, DV), contiguous but for n, as all here; heads of all the batch
    o_dot_ptr,  # its tangent, or None
    w_ptr,  # cotangents of o, or None
    u_ptr,  # their tangents, or None
    lse_ptr,  # (n, heads, rows): ℓ
    lse_dot_ptr,  # its tangent, or None
    lse_bar_ptr,  # (n, heads, rows): cotangents of ℓ, or None
    lse_bar_dot_ptr,
    rest_ptr,  # (n, heads, rows): what ℓ as rounded lacks, or None
    known_ptr,  # (n, heads, stored): ℓ in the unit of scores
    delta_ptr,  # the same, D
    known_dot_ptr,  # the same, ℓ̇, or None
    delta_dot_ptr,  # the same, Ḋ, or None
    known_rest_ptr,  # the same, what ℓ lacks times log₂e, or None
    o_n,
    od_n,
    w_n,
    u_n,
    lse_n,
    ld_n,
    lb_n,
    lbd_n,
    rest_n,
    rows,
    stored,
    row_blocks,
    heads,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program: ℓ and its rest, D = w·o − λ, ℓ̇ and Ḋ = u·o + w·ȯ − μ of BLOCK_M rows.

    Reads up to four rows and five numbers each, stores up to five. Rows that see nothing or do not exist get
    ℓ = ∞ and zeros, hence P = 0: tiles need not ask whether a row exists. Their λ and μ are not read: where ℓ is −∞
    whatever the arguments, a cotangent of it may be infinite or NaN.
    """
    pid = tl.program_id(0)
    start = pid % row_blocks * BLOCK_M
    index = start + tl.arange(0, BLOCK_M)
    head = (pid // row_blocks % heads).to(tl.int64)
    n = (pid // row_blocks // heads).to(tl.int64)
    here = head * rows
    exists = index < rows
    out = (n * heads + head) * stored + index
    lse = tl.load(lse_ptr + n * lse_n + here + index, mask=exists, other=-float("inf"))
    sees = lse != -float("inf")
    tl.store(known_ptr + out, tl.where(sees, in_unit(lse, known_rest_ptr is not None), float("inf")))
    if known_rest_ptr is not None:
        rest = tl.zeros([BLOCK_M], ACC)
        if rest_ptr is not None:
            rest = tl.load(rest_ptr + n * rest_n + here + index, mask=exists, other=0.0).to(ACC)
        tl.store(known_rest_ptr + out, rest * LOG2E)
    if known_dot_ptr is not None:
        tl.store(known_dot_ptr + out, tl.load(lse_dot_ptr + n * ld_n + here + index, mask=exists, other=0.0))
    delta = tl.zeros([BLOCK_M], ACC)
    delta_dot = tl.zeros([BLOCK_M], ACC)
    o = load_rows(o_ptr + n * o_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False, True).to(ACC)
    if w_ptr is not None:
        w = load_rows(w_ptr + n * w_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False, True).to(ACC)
        delta += tl.sum(w * o, 1)
        if o_dot_ptr is not None:
            o_dot = load_rows(o_dot_ptr + n * od_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False, True).to(
                ACC
            )
            delta_dot += tl.sum(w * o_dot, 1)
    if u_ptr is not None:
        u = load_rows(u_ptr + n * u_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False, True).to(ACC)
        delta_dot += tl.sum(u * o, 1)
    if lse_bar_ptr is not None:
        delta -= tl.load(lse_bar_ptr + n * lb_n + here + index, mask=sees, other=0.0).to(ACC)
    if lse_bar_dot_ptr is not None:
        delta_dot -= tl.load(lse_bar_dot_ptr + n * lbd_n + here + index, mask=sees, other=0.0).to(ACC)
    tl.store(delta_ptr + out, delta)
    if delta_dot_ptr is not None:
        tl.store(delta_dot_ptr + out, delta_dot)
