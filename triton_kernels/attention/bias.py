"""The gradient of an additive bias, and its tangent: sums of dS over all that the bias is broadcast over."""

# pyright: reportArgumentType=false, reportPossiblyUnboundVariable=false, reportOperatorIssue=false
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# Constexprs take plain values, may be tuples of named facts, and decide what is bound.

from __future__ import annotations

import triton
import triton.language as tl

from ._adjoint_tiles import known_of, known_rows
from ._scores import Rules, Tile, adjoints, keys_seen
from ._tiles import head_offset, load_rows
from .arguments import NOT_SPECIALIZED


@triton.jit(do_not_specialize=NOT_SPECIALIZED)
def _bias_kernel(
    q_ptr,  # (n, batch, heads, rows, DK)
    k_ptr,  # (n, batch, heads / group, columns, DK)
    v_ptr,  # (n, batch, heads / group, columns, DV)
    q_dot_ptr,  # tangents of those, or None
    k_dot_ptr,
    v_dot_ptr,
    w_ptr,  # (n, batch, heads, rows, DV), contiguous but for n, as the following: cotangents of o, or None
    u_ptr,  # their tangents, or None
    lse_ptr,  # (n, batch, heads, stored): what the kernel of row scalars left, see `Row`
    delta_ptr,
    lse_dot_ptr,
    delta_dot_ptr,
    rest_ptr,
    bias_ptr,  # (n, batch, heads, rows, columns) by its strides, or None
    bias_dot_ptr,
    mask_ptr,  # the same, bool
    slopes_ptr,  # (batch, heads)
    ranges_ptr,  # int32 (batch, 3, rows)
    seed_ptr,  # int64 (n)
    first_ptr,  # (n, bias_batch, bias_heads, rows or 1, columns or 1), contiguous: gradient of the bias, or None
    second_ptr,  # its tangent, or None
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
    w_n,
    u_n,
    stored,
    bias_n,
    bias_b_stride,
    bias_h_stride,
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
    batch,
    heads,
    group,
    rows,
    columns,
    left,
    right,
    offset,
    bias_batch,
    bias_heads,
    row_blocks,
    column_blocks,
    scale: tl.float64,
    softcap: tl.float64,
    dropout_p: tl.float64,
    SUMS_ROWS: tl.constexpr,
    SUMS_COLUMNS: tl.constexpr,
    FACTS: tl.constexpr,
):
    """One program: a tile of the gradient, and all batches, heads, rows and columns that it is summed over.

    2 products a tile for the gradient, up to 6 with its tangent, made again: no matrix of all scores is stored and no
    sum is shared between programs.
    """
    DK: tl.constexpr = FACTS.DK
    BLOCK_DK: tl.constexpr = FACTS.BLOCK_DK
    DV: tl.constexpr = FACTS.DV
    BLOCK_DV: tl.constexpr = FACTS.BLOCK_DV
    BLOCK_M: tl.constexpr = FACTS.BLOCK_M
    BLOCK_N: tl.constexpr = FACTS.BLOCK_N
    SECOND: tl.constexpr = FACTS.SECOND
    HAS_W: tl.constexpr = FACTS.HAS_W
    HAS_U: tl.constexpr = FACTS.HAS_U
    PRECISION: tl.constexpr = FACTS.PRECISION
    ACC: tl.constexpr = FACTS.ACC
    pid = tl.program_id(0)
    column_tiles = 1 if SUMS_COLUMNS else column_blocks
    row_tiles = 1 if SUMS_ROWS else row_blocks
    column_tile = pid % column_tiles
    row_tile = pid // column_tiles % row_tiles
    line = pid // column_tiles // row_tiles  # the number of n, batch and head
    bias_h = line % bias_heads
    bias_b = line // bias_heads % bias_batch
    n = line // bias_heads // bias_batch
    members_h = heads // bias_heads
    members = batch // bias_batch * members_h
    if FACTS.WIDE:  # 32 bits may be too few to count the tiles
        members = members.to(tl.int64)
    rows_summed = row_blocks if SUMS_ROWS else 1
    columns_summed = column_blocks if SUMS_COLUMNS else 1
    first = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    second = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for i in range(0, members * rows_summed * columns_summed):
        j = tl.cast(column_tile + i % columns_summed, tl.int32) * BLOCK_N
        block = tl.cast(row_tile + i // columns_summed % rows_summed, tl.int32)
        member = tl.cast(i // columns_summed // rows_summed, tl.int32)
        h = bias_h * (heads // bias_heads) + member % members_h
        b = bias_b * (batch // bias_batch) + member // members_h
        kv = h // group
        slope = None
        if slopes_ptr is not None:
            slope = tl.load(slopes_ptr + b * slopes_b + h).to(ACC)
        seed = None
        if seed_ptr is not None:
            seed = tl.load(seed_ptr + n * seed_n)
        ranges_here = None
        if ranges_ptr is not None:
            ranges_here = ranges_ptr + b.to(tl.int64) * ranges_b
        bias_dot_here = None
        if bias_dot_ptr is not None:
            bias_dot_here = bias_dot_ptr + head_offset(n, b, h, bd_n, bd_b, bd_h)
        mask_here = None
        if mask_ptr is not None:
            mask_here = mask_ptr + head_offset(n, b, h, mask_n, mask_b, mask_h)
        rules = Rules(
            tl.full([], scale, ACC),
            tl.full([], softcap, ACC),
            slope,
            tl.full([], dropout_p, ACC),
            seed,
            b * heads + h,
            bias_ptr + head_offset(n, b, h, bias_n, bias_b_stride, bias_h_stride),
            bias_row,
            bias_column,
            bias_dot_here,
            0,
            bd_row,
            bd_column,
            mask_here,
            mask_row,
            mask_column,
            ranges_here,
            left,
            right,
            offset,
            rows,
            columns,
        )
        index = block * BLOCK_M + tl.arange(0, BLOCK_M)
        key = j + tl.arange(0, BLOCK_N)
        head = (b * heads + h).to(tl.int64)
        out = n.to(tl.int64) * batch * heads + head
        here = head * rows
        known = known_of(lse_ptr, delta_ptr, lse_dot_ptr, delta_dot_ptr, rest_ptr, out, stored)
        known = known_rows(known, index, 1, SECOND, FACTS.FINE)
        begin, end = keys_seen(rules, index[:, None])
        tile = Tile(index[:, None], key[None, :], begin, end)
        q = load_rows(
            q_ptr + head_offset(n, b, h, q_n, q_b, q_h),
            block * BLOCK_M,
            q_row,
            rows,
            BLOCK_M,
            DK,
            BLOCK_DK,
            False,
            FACTS.WIDE,
        )
        k = load_rows(
            k_ptr + head_offset(n, b, kv, k_n, k_b, k_h), j, k_row, columns, BLOCK_N, DK, BLOCK_DK, False, FACTS.WIDE
        )
        v = load_rows(
            v_ptr + head_offset(n, b, kv, v_n, v_b, v_h), j, v_row, columns, BLOCK_N, DV, BLOCK_DV, False, FACTS.WIDE
        )
        z = tl.dot(q, tl.trans(k), input_precision=PRECISION, out_dtype=ACC)
        z_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
        w_v = tl.zeros([BLOCK_M, BLOCK_N], ACC)
        moved_v = tl.zeros([BLOCK_M, BLOCK_N], ACC)
        if HAS_W:
            w = load_rows(
                w_ptr + n.to(tl.int64) * w_n + here * DV,
                block * BLOCK_M,
                DV,
                rows,
                BLOCK_M,
                DV,
                BLOCK_DV,
                False,
                FACTS.WIDE,
            )
            w_v = tl.dot(w, tl.trans(v), w_v, input_precision=PRECISION, out_dtype=ACC)
        if SECOND:
            if q_dot_ptr is not None:
                place = q_dot_ptr + head_offset(n, b, h, qd_n, qd_b, qd_h)
                q_dot = load_rows(place, block * BLOCK_M, qd_row, rows, BLOCK_M, DK, BLOCK_DK, False, FACTS.WIDE)
                z_dot = tl.dot(q_dot, tl.trans(k), z_dot, input_precision=PRECISION, out_dtype=ACC)
            if k_dot_ptr is not None:
                place = k_dot_ptr + head_offset(n, b, kv, kd_n, kd_b, kd_h)
                k_dot = load_rows(place, j, kd_row, columns, BLOCK_N, DK, BLOCK_DK, False, FACTS.WIDE)
                z_dot = tl.dot(q, tl.trans(k_dot), z_dot, input_precision=PRECISION, out_dtype=ACC)
            if HAS_U:
                u = load_rows(
                    u_ptr + n.to(tl.int64) * u_n + here * DV,
                    block * BLOCK_M,
                    DV,
                    rows,
                    BLOCK_M,
                    DV,
                    BLOCK_DV,
                    False,
                    FACTS.WIDE,
                )
                moved_v = tl.dot(u, tl.trans(v), moved_v, input_precision=PRECISION, out_dtype=ACC)
            if (v_dot_ptr is not None) and HAS_W:
                place = v_dot_ptr + head_offset(n, b, kv, vd_n, vd_b, vd_h)
                v_dot = load_rows(place, j, vd_row, columns, BLOCK_N, DV, BLOCK_DV, False, FACTS.WIDE)
                moved_v = tl.dot(w, tl.trans(v_dot), moved_v, input_precision=PRECISION, out_dtype=ACC)
        _, _, ds, ds_dot, _, _ = adjoints(rules, known, tile, z, z_dot, w_v, moved_v, FACTS, True, False)
        first += ds
        second += ds_dot

    index = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    key = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    shown_rows = 1 if SUMS_ROWS else rows
    shown_columns = 1 if SUMS_COLUMNS else columns
    base = ((n.to(tl.int64) * bias_batch + bias_b) * bias_heads + bias_h) * shown_rows * shown_columns
    if first_ptr is not None:
        _store(first_ptr + base, first, index, key, shown_rows, shown_columns, SUMS_ROWS, SUMS_COLUMNS)
    if second_ptr is not None:
        _store(second_ptr + base, second, index, key, shown_rows, shown_columns, SUMS_ROWS, SUMS_COLUMNS)


@triton.jit
def _store(ptr, tile, index, key, rows, columns, SUMS_ROWS: tl.constexpr, SUMS_COLUMNS: tl.constexpr):
    """Store a tile, summed over its rows and columns where the bias has one for all."""
    row = index[:, None]
    column = key[None, :]
    if SUMS_ROWS:
        tile = tl.sum(tile, 0)[None, :]
        row = tl.zeros([1, 1], tl.int32)
    if SUMS_COLUMNS:
        tile = tl.sum(tile, 1)[:, None]
        column = tl.zeros([1, 1], tl.int32)
    inside = (row < rows) & (column < columns)
    tl.store(ptr + row.to(tl.int64) * columns + column, tile.to(ptr.dtype.element_ty), mask=inside)
