"""What the kernels of pullbacks share: compile-time facts, what is known of rows, and the row scalars."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexprs take plain values, may be tuples of named facts, and decide what is bound.

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from ._scores import LOG2E, Row, limits
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
        HAS_Q: Whether there are tangents of queries, of keys, of values.
        HAS_K: See HAS_Q.
        HAS_V: See HAS_Q.
        HAS_W: Whether there is a cotangent of o, and a tangent of it.
        HAS_U: See HAS_W.
        CAPPED: Whether there is a softcap.
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
    HAS_Q: bool
    HAS_K: bool
    HAS_V: bool
    HAS_W: bool
    HAS_U: bool
    CAPPED: bool
    PRECISION: str
    ACC: tl.dtype


@triton.jit
def known_rows(rules, index, lse_ptr, delta_ptr, lse_dot_ptr, delta_dot_ptr, AXIS: tl.constexpr, SECOND: tl.constexpr):
    """Return what is known of rows; those that do not exist see nothing. AXIS: where columns stand in the tile."""
    exists = index < rules.rows
    lse = tl.load(lse_ptr + index, mask=exists, other=-float("inf"))
    lse = tl.where(lse == -float("inf"), float("inf"), lse * LOG2E)
    delta = tl.load(delta_ptr + index, mask=exists, other=0.0)
    lse_dot = delta
    delta_dot = delta
    if SECOND:
        lse_dot = tl.load(lse_dot_ptr + index, mask=exists, other=0.0)
        delta_dot = tl.load(delta_dot_ptr + index, mask=exists, other=0.0)
    begin, end, position = limits(rules, index)
    return Row(
        tl.expand_dims(index, AXIS),
        tl.expand_dims(lse, AXIS),
        tl.expand_dims(delta, AXIS),
        tl.expand_dims(delta_dot, AXIS),
        tl.expand_dims(lse_dot, AXIS),
        tl.expand_dims(begin, AXIS),
        tl.expand_dims(end, AXIS),
        tl.expand_dims(position, AXIS),
    )


@triton.jit(do_not_specialize=["rows", "row_blocks", "heads"])
def _delta_kernel(
    o_ptr,  # (n, heads, rows, DV), contiguous but for n, as all here; heads of all the batch
    o_dot_ptr,  # its tangent, or None
    w_ptr,  # cotangents of o, or None
    u_ptr,  # their tangents, or None
    lse_bar_ptr,  # (n, heads, rows): cotangents of ℓ, or None
    lse_bar_dot_ptr,
    delta_ptr,  # (n, heads, rows)
    delta_dot_ptr,  # the same, or None
    o_n,
    od_n,
    w_n,
    u_n,
    lb_n,
    lbd_n,
    rows,
    row_blocks,
    heads,
    DV: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACC: tl.constexpr,
):
    """One program: D = w·o − λ and Ḋ = u·o + w·ȯ − μ of BLOCK_M rows; reads up to four rows, stores two numbers."""
    pid = tl.program_id(0)
    start = pid % row_blocks * BLOCK_M
    index = start + tl.arange(0, BLOCK_M)
    head = (pid // row_blocks % heads).to(tl.int64)
    n = (pid // row_blocks // heads).to(tl.int64)
    here = head * rows
    delta = tl.zeros([BLOCK_M], ACC)
    delta_dot = tl.zeros([BLOCK_M], ACC)
    o = load_rows(o_ptr + n * o_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False).to(ACC)
    if w_ptr is not None:
        w = load_rows(w_ptr + n * w_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False).to(ACC)
        delta += tl.sum(w * o, 1)
        if o_dot_ptr is not None:
            o_dot = load_rows(o_dot_ptr + n * od_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False).to(ACC)
            delta_dot += tl.sum(w * o_dot, 1)
    if u_ptr is not None:
        u = load_rows(u_ptr + n * u_n + here * DV, start, DV, rows, BLOCK_M, DV, BLOCK_DV, False).to(ACC)
        delta_dot += tl.sum(u * o, 1)
    exists = index < rows
    if lse_bar_ptr is not None:
        delta -= tl.load(lse_bar_ptr + n * lb_n + here + index, mask=exists, other=0.0).to(ACC)
    if lse_bar_dot_ptr is not None:
        delta_dot -= tl.load(lse_bar_dot_ptr + n * lbd_n + here + index, mask=exists, other=0.0).to(ACC)
    out = (n * heads + head) * rows + index
    tl.store(delta_ptr + out, delta, mask=exists)
    if delta_dot_ptr is not None:
        tl.store(delta_dot_ptr + out, delta_dot, mask=exists)
