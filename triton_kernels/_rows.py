"""Pieces that row-wise kernels share: which rows a program owns, sums along a row, where a chunk's columns lie."""

from __future__ import annotations

import triton
import triton.language as tl

_LEAST_NORMAL = tl.constexpr(2.0**-126)  # of float32


@triton.jit
def program_block(groups, rows_per_program):
    """Return a program's number decoded into its group and its first row, both int64 so that offsets cannot overflow.

    Programs of different groups on the same rows are neighbours: what groups share they find in the cache.
    """
    return block_of(tl.program_id(0), groups, rows_per_program)


@triton.jit
def block_of(program, groups, rows_per_program):
    """Return `program_block` of any program number: a launch that serves two tensors counts each on its own."""
    group = (program % groups).to(tl.int64)
    first = (program // groups).to(tl.int64) * rows_per_program
    return group, first


@triton.jit
def row_numbers(first, BLOCK_M: tl.constexpr):
    """Return rows first, ..., first + BLOCK_M - 1 as a column (BLOCK_M, 1)."""
    return first + tl.arange(0, BLOCK_M)[:, None]


@triton.jit
def existing(row, rows, BLOCK_M: tl.constexpr):
    """Return which rows of a program exist: where it has one at a time, all do, and nothing is masked."""
    if BLOCK_M == 1:
        return tl.full(row.shape, True, tl.int1)
    else:
        return row < rows


@triton.jit
def column_numbers(start, BLOCK_N: tl.constexpr):
    """Return columns start, ..., start + BLOCK_N - 1 as a row (1, BLOCK_N)."""
    return start + tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def column_numbers_back(start, n, BLOCK_N: tl.constexpr, ONE_PASS: tl.constexpr):
    """Return the columns of a chunk counted from the row's end: a second pass meets first what the cache saw last."""
    if ONE_PASS:
        return column_numbers(start, BLOCK_N)
    else:
        return column_numbers((n - 1) // BLOCK_N * BLOCK_N - start, BLOCK_N)


@triton.jit
def rounding(a, b):
    """Return what a + b lacks of the sum of a and b (Knuth's two-sum); 0 where the sum is not finite."""
    total = a + b
    b_kept = total - a
    rest = (a - (total - b_kept)) + (b - b_kept)
    return tl.where(rest == rest, rest, 0.0)


@triton.jit
def row_sum(tile):
    """Return the sum along each row: (BLOCK_M, BLOCK_N) to (BLOCK_M, 1)."""
    return tl.sum(tile, axis=1, keep_dims=True)


@triton.jit
def row_sums(a, b):
    """Return the sums along each row of two tiles: warps meet once and not twice, as their sums travel as a pair."""
    sum_a, sum_b = tl.split(row_pairs(a, b))
    return sum_a[:, None], sum_b[:, None]


@triton.jit
def column_sums(a, b):
    """Return the sums along each column of two tiles, (1, BLOCK_N), see `row_sums`."""
    n: tl.constexpr = a.shape[1]  # pyright: ignore[reportAssignmentType]
    sum_a, sum_b = tl.split(tl.reshape(packed_sums(tl.permute(tl.join(a, b), (1, 2, 0))), (n, 2)))
    return sum_a[None, :], sum_b[None, :]


@triton.jit
def row_pairs(a, b):
    """Return `row_sums` as one tensor, (BLOCK_M, 2)."""
    m: tl.constexpr = a.shape[0]  # pyright: ignore[reportAssignmentType]
    return tl.reshape(packed_sums(tl.permute(tl.join(a, b), (0, 2, 1))), (m, 2))


@triton.jit
def four_row_sums(a, b, c, d):
    """Return `row_sums` of four tiles."""
    m: tl.constexpr = a.shape[0]  # pyright: ignore[reportAssignmentType]
    fours = tl.permute(tl.join(tl.join(a, c), tl.join(b, d)), (0, 2, 3, 1))
    sum_ac, sum_bd = tl.split(tl.reshape(packed_sums(fours), (m, 2, 2)))
    sum_a, sum_c = tl.split(sum_ac)
    sum_b, sum_d = tl.split(sum_bd)
    return sum_a[:, None], sum_b[:, None], sum_c[:, None], sum_d[:, None]


@triton.jit
def packed_sums(rows):
    """Return the sums along the last axis, as one axis.

    Once flat, rows are neighbours in memory in the interpreter, whose NumPy adds only such pairwise, as a GPU does; the
    compiler drops both shapes.
    """
    n: tl.constexpr = rows.shape[len(rows.shape) - 1]  # pyright: ignore[reportAssignmentType]
    return tl.sum(tl.reshape(tl.reshape(rows, (rows.numel,)), (rows.numel // n, n)), axis=1)


@triton.jit
def load_tile(pointers, inside, ACC: tl.constexpr):
    """Return a tile in the accumulation dtype, 0 where `inside` is false: such lanes add nothing to any sum."""
    return widened(tl.load(pointers, mask=inside, other=0.0), ACC)


@triton.jit
def load_ahead(pointers, inside, AHEAD: tl.constexpr, ACC: tl.constexpr):
    """Return `load_tile`; AHEAD: in a pipelined loop, where it comes from shared memory and is better converted."""
    if AHEAD:
        return tl.load(pointers, mask=inside, other=0.0).to(ACC)
    else:
        return load_tile(pointers, inside, ACC)


@triton.jit
def widened(tile, ACC: tl.constexpr):
    """Return a tile in the accumulation dtype.

    A bfloat16 is the upper half of a float32. Said so, two that share a register take two instructions; converted,
    they take three.
    """
    if tile.dtype == tl.bfloat16 and ACC == tl.float32:
        return (tile.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return tile.to(ACC)


@triton.jit
def load_weight(w_ptr, offset, col, n, absent, ACC: tl.constexpr):
    """Return columns of a weight as a row (1, BLOCK_N), or `absent` (1 is free once compiled)."""
    if w_ptr is None:
        return tl.full(col.shape, absent, ACC)
    else:
        return load_tile(w_ptr + offset + col, col < n, ACC)


@triton.jit
def part_number(groups):
    """Return where a program's partial sum goes in a buffer (groups, programs a group, n); see `program_block`."""
    return part_of(tl.program_id(0), tl.num_programs(0), groups)


@triton.jit
def part_of(program, programs, groups):
    """Return `part_number` of any program number out of `programs`."""
    return (program % groups).to(tl.int64) * (programs // groups) + program // groups


@triton.jit
def store_column_sum(ptr, part, col, n, tile):
    """Store ptr[part, col] = Σ of the tile's rows; rows past the end must hold zeros."""
    total = tl.sum(tile, axis=0, keep_dims=True)
    if ptr.dtype.element_ty == tl.bfloat16:
        total = total.to(tl.float32)  # the interpreter cannot round float64 to bfloat16
    tl.store(ptr + part * n + col, total.to(ptr.dtype.element_ty), mask=col < n)


@triton.jit
def inverse_rms(squares, n, eps):
    """Return r = (squares / n + eps)^(-1/2), in the dtype of squares; eps is exact in float64."""
    return inverse_root(squares / n + tl.full(squares.shape, eps, squares.dtype))


@triton.jit
def inverse_root(x):
    """Return x^(-1/2). What GPUs approximate it by takes subnormal numbers for 0, see `_normal`."""
    if x.dtype == tl.float64:
        return 1.0 / tl.sqrt(x)  # rsqrt is an approximation there
    else:
        return tl.rsqrt(_normal(x)) * tl.where(x < _LEAST_NORMAL, 16777216.0, 1.0)


@triton.jit
def root(x):
    """Return √x, of subnormal numbers too, see `_normal`."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt(_normal(x)) * tl.where(x < _LEAST_NORMAL, 1.0 / 16777216.0, 1.0)


@triton.jit
def _normal(x):
    """Return x, times 2⁴⁸ if it is subnormal."""
    return tl.where(x < _LEAST_NORMAL, x * 281474976710656.0, x)
