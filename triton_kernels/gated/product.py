"""y = f(g) u, its tangents, and what is pulled back through value and tangent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._dtypes import accumulator
from .._elements import direction_chunks, element_config
from .._jets import jet
from .._launch import launch, multiprocessors
from .._layout import RowLayout, group_count, group_stride, lay_out, unit_columns
from .._rows import block_of, column_numbers, load_tile, row_numbers

_MOST_NARROW = 2**31 - 1  # columns that are counted in 32 bits, where counting in 64 would be more instructions


# One group, and one column of tiles, are compiled for: no division, which is a quarter of a thread's instructions.
@triton.jit(
    do_not_specialize=["directions", "per_program", "rows"], do_not_specialize_on_alignment=["groups", "column_blocks"]
)
def _gated_kernel(
    g_ptr,  # (groups, rows, n)
    u_ptr,  # (groups, rows, n)
    g_dot_ptr,  # (groups, rows, n) or None, like the next three
    u_dot_ptr,
    a_ptr,
    b_ptr,
    y_ptr,  # (groups, rows, n), contiguous, or None, like the next
    y_dot_ptr,
    g_first_ptr,  # (groups, rows, n) with rows pair_row apart, or None, like the next three
    u_first_ptr,
    g_second_ptr,
    u_second_ptr,
    groups,
    directions,
    per_program,
    rows,
    column_blocks,
    n,
    pair_row,
    g_group,
    g_row,
    u_group,
    u_row,
    g_dot_group,
    g_dot_row,
    u_dot_group,
    u_dot_row,
    a_group,
    a_row,
    b_group,
    b_row,
    FUNCTION: tl.constexpr,
    MANY: tl.constexpr,
    WIDE: tl.constexpr,
    ACC: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Any of y = f u, y_dot = f′ġu + fu̇, first = (f′ua, fa), second = (f′ub + a(f″ġu + f′u̇), fb + af′ġ).

    One program: a tile of BLOCK_M by BLOCK_N of one group or, if MANY, of the g and u that all directions share, and
    per_program of these. Moves (operands + results)·size bytes an element; if MANY, g, u and y once, all else once a
    direction.
    """
    program = tl.program_id(0)
    group, first_row = block_of(program // column_blocks, groups, BLOCK_M)
    row = row_numbers(first_row, BLOCK_M)
    column_block = (program % column_blocks).to(tl.int64) if WIDE else program % column_blocks
    col = column_numbers(column_block * BLOCK_N, BLOCK_N)
    inside = (row < rows) & (col < n)
    lowest = group * per_program if MANY else group
    stop = tl.minimum(lowest + per_program, directions) if MANY else lowest + 1
    own = group * 0 if MANY else group
    g = load_tile(g_ptr + own * g_group + row * g_row + col, inside, ACC)
    u = load_tile(u_ptr + own * u_group + row * u_row + col, inside, ACC)
    f, f1, f2, _ = jet(g, 1.0, 20.0, FUNCTION, g_ptr.dtype.element_ty.primitive_bitwidth == 16)
    if y_ptr is not None:
        last = tl.where(lowest == 0, n, 0) if MANY else n  # the first chunk of directions writes y
        y_rows = y_ptr + (own * rows + row) * n
        tl.store(y_rows + col, (f * u).to(y_ptr.dtype.element_ty), mask=(row < rows) & (col < last))

    g_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    u_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    a = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    b = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for k in range(lowest, stop):
        out = (k * rows + row) * n + col
        pair = (k * rows + row) * pair_row + col
        if g_dot_ptr is not None:
            g_dot = load_tile(g_dot_ptr + k * g_dot_group + row * g_dot_row + col, inside, ACC)
        if u_dot_ptr is not None:
            u_dot = load_tile(u_dot_ptr + k * u_dot_group + row * u_dot_row + col, inside, ACC)
        if a_ptr is not None:
            a = load_tile(a_ptr + k * a_group + row * a_row + col, inside, ACC)
        if b_ptr is not None:
            b = load_tile(b_ptr + k * b_group + row * b_row + col, inside, ACC)
        if y_dot_ptr is not None:
            y_dot = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            if g_dot_ptr is not None:
                y_dot += f1 * g_dot * u
            if u_dot_ptr is not None:
                y_dot += f * u_dot
            tl.store(y_dot_ptr + out, y_dot.to(y_dot_ptr.dtype.element_ty), mask=inside)
        if g_first_ptr is not None:
            tl.store(g_first_ptr + pair, (f1 * u * a).to(g_first_ptr.dtype.element_ty), mask=inside)
        if u_first_ptr is not None:
            tl.store(u_first_ptr + pair, (f * a).to(u_first_ptr.dtype.element_ty), mask=inside)
        if g_second_ptr is not None:
            g_second = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            if b_ptr is not None:
                g_second += f1 * u * b
            if g_dot_ptr is not None:
                g_second += a * (f2 * g_dot * u)
            if u_dot_ptr is not None:
                g_second += a * (f1 * u_dot)
            tl.store(g_second_ptr + pair, g_second.to(g_second_ptr.dtype.element_ty), mask=inside)
        if u_second_ptr is not None:
            u_second = tl.zeros([BLOCK_M, BLOCK_N], ACC)
            if b_ptr is not None:
                u_second += f * b
            if g_dot_ptr is not None:
                u_second += a * (f1 * g_dot)
            tl.store(u_second_ptr + pair, u_second.to(u_second_ptr.dtype.element_ty), mask=inside)


Pair = tuple[Tensor | None, Tensor | None]


class GatedResults(NamedTuple):
    """What `gated_product` computes; None where not wanted.

    Attributes:
        y: f u, (K or 1, M, N).
        y_dot: f′ ġ u + f u̇, (K, M, N).
        first: Jᵀa, the parts of gate and up, (K, M, N) each; halves of `packed_first` if that is there.
        second: Jᵀb + S, likewise.
        packed_first: Both parts of `first` side by side, (K, M, 2N).
        packed_second: Both parts of `second`.
    """

    y: Tensor | None
    y_dot: Tensor | None
    first: Pair
    second: Pair
    packed_first: Tensor | None
    packed_second: Tensor | None


def gated_product(
    function: str,
    gate: Tensor,
    up: Tensor,
    gate_dot: Tensor | None = None,
    up_dot: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    wants_y: bool = False,
    wants_y_dot: bool = False,
    wants_first: tuple[bool, bool] = (False, False),
    wants_second: tuple[bool, bool] = (False, False),
    packed: str | None = None,
    block_limit: int | None = None,
) -> GatedResults:
    """Compute any of y, J(ġ, u̇), Jᵀa and Jᵀb + S(ġ, u̇; a), one launch.

    Serves every point of the tower up to the second order. JVP: y and y_dot. VJP: a = ȳ, first. VJP of the JVP: a and b
    the cotangents of ẏ and y, first and second. JVP of the VJP: a = ȳ, b its tangent, first and second. VJP of the VJP:
    tangents are the cotangents of ḡ and ū, a = ȳ, y_dot and second.

    Args:
        function: Name of f in `_jets.jet`, one without options.
        gate: (K or 1, M, N), any strides, like all operands.
        up: (K or 1, M, N).
        gate_dot: (K or 1, M, N), or None for zero.
        up_dot: (K or 1, M, N), or None for zero.
        a: (K or 1, M, N), or None for zero.
        b: (K or 1, M, N), or None for zero.
        wants_y: Whether to compute y.
        wants_y_dot: Whether to compute y_dot.
        wants_first: Which parts of Jᵀa to compute.
        wants_second: Which parts of Jᵀb + S to compute.
        packed: "gate first" or "gate last" to write both parts of a pair into one tensor, wanted both or none.
        block_limit: Elements of a tile at most, for tests.

    Returns:
        The results, dtype of gate. y has as many groups as gate and up; if those share their memory, so do y's.
    """
    rows, n = gate.shape[1:]
    k = group_count(gate, up, gate_dot, up_dot, a, b)
    own = group_count(gate, up)
    if k == 0 and own and wants_y:  # no directions, but the primal all the same
        rest = gated_product(function, gate, up, gate_dot, up_dot, a, b, wants_y_dot=wants_y_dot, packed=packed)
        return rest._replace(y=gated_product(function, gate, up, wants_y=True, block_limit=block_limit).y)
    shared = group_stride(gate) == 0 and group_stride(up) == 0

    def empty(wanted: bool, groups: int, columns: int) -> Tensor | None:
        return torch.empty((groups, rows, columns), dtype=gate.dtype, device=gate.device) if wanted else None

    y, y_dot = empty(wants_y, 1 if shared else k, n), empty(wants_y_dot, k, n)
    pairs, buffers = [], []
    for wants in (wants_first, wants_second):
        buffer = empty(packed is not None and any(wants), k, 2 * n)
        if buffer is not None:
            halves = (buffer[..., :n], buffer[..., n:])
            pairs.append(halves if packed == "gate first" else halves[::-1])
        else:
            pairs.append((empty(wants[0], k, n), empty(wants[1], k, n)))
        buffers.append(buffer)
    results = (y, y_dot, *pairs[0], *pairs[1])
    if k * rows * n and any(result is not None for result in results):
        operands = [unit_columns(t) for t in (gate, up, gate_dot, up_dot, a, b)]
        _launch(function, operands, results, k, shared and k > 1, packed is not None, block_limit)
    y = None if y is None else y.expand(own, rows, n)
    return GatedResults(y, y_dot, pairs[0], pairs[1], buffers[0], buffers[1])


def _launch(
    function: str,
    operands: Sequence[Tensor | None],
    results: Sequence[Tensor | None],
    k: int,
    many: bool,
    packed: bool,
    block_limit: int | None,
) -> None:
    """Choose tiles and strides, and launch."""
    gate = operands[0]
    assert gate is not None
    n = gate.shape[2]
    layout = lay_out(operands, k, gate.shape[1], fold=not many)
    rows, columns = _one_row(layout, operands, n) if not packed else (layout.rows, n)
    count = sum(t is not None for t in (*operands, *results))
    config = element_config(8 if count > 6 else gate.element_size(), block_limit)
    block_n = min(config.block, triton.next_power_of_2(columns))
    block_m = config.block // block_n
    column_blocks = -(-columns // block_n)
    blocks = -(-rows // block_m) * column_blocks
    chunks, per_program = direction_chunks(k, blocks, multiprocessors(gate.device)) if many else (layout.groups, 1)
    options = config.tiling()
    del options["BLOCK"]
    launch(
        _gated_kernel,
        chunks * blocks,
        gate,
        *operands,
        *results,
        chunks,
        k,
        per_program,
        rows,
        column_blocks,
        columns,
        2 * columns if packed else columns,
        *(stride for pair in layout.strides for stride in pair),
        FUNCTION=function,
        MANY=many,
        WIDE=columns > _MOST_NARROW,
        ACC=accumulator(gate.dtype),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        **options,
    )


def _one_row(layout: RowLayout, operands: Sequence[Tensor | None], n: int) -> tuple[int, int]:
    """Return rows and columns: one long row where the rows of every operand follow one another in memory."""
    dense = all(row == n for operand, (_, row) in zip(operands, layout.strides, strict=True) if operand is not None)
    return (1, layout.rows * n) if dense else (layout.rows, n)
