"""Programs and configuration of elementwise kernels over (outer, rows, columns) whose weights lie along columns.

A program owns some columns and a run of rows, so weights are read once and sums over rows stay in registers.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def column_program(row_blocks, column_blocks, rows_per_program, BLOCK_N: tl.constexpr):
    """Return a program's number decoded into (outer, row block, its first row, its columns (1, BLOCK_N)).

    All are int64 but the columns: counted so, they would make some kernels spill.
    """
    program = tl.program_id(0)
    cols = (program % column_blocks) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    block = (program // column_blocks % row_blocks).to(tl.int64)
    outer = (program // column_blocks // row_blocks).to(tl.int64)
    return outer, block, block * rows_per_program, cols


class ColumnConfig(NamedTuple):
    """How a kernel cuts (outer, rows, columns).

    Attributes:
        row_blocks: Programs along the rows of an outer index.
        column_blocks: Programs along the columns.
        rows_per_program: Rows of a program, a multiple of the tile's.
        options: Constexprs and options of the launch.
    """

    row_blocks: int
    column_blocks: int
    rows_per_program: int
    options: dict[str, int | bool]

    @property
    def blocks(self) -> int:
        """Programs of one outer index."""
        return self.row_blocks * self.column_blocks


@functools.cache
def column_config(
    outer: int, rows: int, n: int, itemsize: int, processors: int | None = None, limit: int | None = None
) -> ColumnConfig:
    """Configuration from sizes and the device alone, never from timing: sums come out the same every time.

    Args:
        outer: Outer indices, at least 1.
        rows: Rows of each, at least 1.
        n: Columns, at least 1.
        itemsize: Bytes of an element; 8 computes in float64.
        processors: Multiprocessors, where a program sums over rows and shall have many; None gives it one tile.
        limit: Columns and rows of a tile at most, for tests; a power of two.

    Returns:
        The configuration.

    Raises:
        ValueError: If there are more columns than 32 bits count.
    """
    if n > 2**31 - 1:
        raise ValueError(
            f"a kernel counts at most {2**31 - 1} columns, got {n}; split the tensors along their last axes."
        )
    tile = 2048 if itemsize < 8 else 1024
    block_n = min(triton.next_power_of_2(n), 512, limit or 512)
    block_m = min(triton.next_power_of_2(rows), tile // block_n, limit or tile)
    column_blocks, tiles = -(-n // block_n), -(-rows // block_m)
    tiles_per_program = 1
    if processors is not None:
        wanted = max(1, 8 * processors // (outer * column_blocks))  # 8 programs of 8 warps a multiprocessor
        tiles_per_program = -(-tiles // min(tiles, wanted))
    options = {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": max(1, block_m * block_n // 256),
        "num_stages": 1,
        "enable_fp_fusion": True,  # said, because the default differs between Triton versions
    }
    return ColumnConfig(-(-tiles // tiles_per_program), column_blocks, tiles_per_program * block_m, options)


def axis_stride(tensor: Tensor | None, axis: int) -> int:
    """Return the stride of an axis in elements, 0 where it is broadcast or the operand absent."""
    return 0 if tensor is None or tensor.shape[axis] == 1 else tensor.stride(axis)
