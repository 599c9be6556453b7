"""Launch configurations of row-wise kernels, chosen from sizes alone: no autotuner, no timing, no device query."""

from __future__ import annotations

import functools
from typing import NamedTuple

# Registers (32 bits) that the tiles of a thread may take. A program has at most 16 warps: 512 threads of 128 registers.
_TILE_REGISTERS = 96
_MAX_WARPS = 16
_LONGEST_BLOCK = 16384
_LONG_ROW = 1024
# A block smaller than this leaves a warp idle or its loads too short; narrow rows share a program until they fill it.
_SMALLEST_TILE = 2048
# Shared memory a pipelined loop may take: it must fit the 64 KiB of gfx942, and four programs the 163 KiB of sm_80.
_PIPELINE_BYTES = 40 * 1024


class Config(NamedTuple):
    """How a row-wise kernel cuts its rows.

    Attributes:
        block_m: Rows in a tile.
        block_n: Columns in a tile, a power of two.
        one_pass: Whether a tile holds whole rows; if not, the kernel loops over column chunks twice.
        num_warps: Warps per program.
        stages: Depth of the pipeline over a program's rows; 1 is none.
    """

    block_m: int
    block_n: int
    one_pass: bool
    num_warps: int
    stages: int = 1

    def tiling(self) -> dict[str, int | bool]:
        """Return the constexprs and options of a launch that every row-wise kernel has."""
        return {
            "ONE_PASS": self.one_pass,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
            "num_warps": self.num_warps,
            "num_stages": 1,  # of loops that ask for none of their own
            "enable_fp_fusion": True,  # said, because the default differs between Triton versions
        }

    def row_tiling(self, n: int) -> dict[str, int | bool]:
        """Return `tiling` for kernels that are told whether rows of n columns fill their tile: these need no masks."""
        return {"FULL": self.one_pass and n == self.block_n, **self.tiling()}


@functools.cache
def row_config(
    n: int, itemsize: int, tiles: int, limit: int | None = None, loop_rows: int = 1, *, many: bool = False
) -> Config:
    """Configuration for rows of n columns.

    Args:
        n: Columns.
        itemsize: Bytes of an element of the row operands; 8 computes in float64: tiles and temporaries twice as wide.
        tiles: How many row-shaped values a program keeps in registers at once: operands, weights, running sums.
        limit: Longest row taken in one pass, and length of a chunk beyond; for tests, a power of two.
        loop_rows: Rows of a tile where rows are too long for one pass.
        many: Whether a program loops over directions of its rows, which takes registers too.

    Returns:
        The configuration; equal for all n between two powers of two.
    """
    words = tiles * (3 if itemsize == 8 else 1)
    longest = min(_LONGEST_BLOCK, _power_of_two_below(_TILE_REGISTERS * 32 * _MAX_WARPS // words))
    if limit is not None:
        longest = min(longest, limit)
    per_thread = 16 if words <= 3 else 8 if words <= 12 else 4  # elements: loads in flight against registers
    block_n = _power_of_two_above(n)
    if block_n >= _LONG_ROW:  # as measured on an H200: few warps, which wait less for each other when they add up
        per_thread = 32 if words <= 6 and not many else 16 if words <= 12 else 4
    one_pass = block_n <= longest
    if one_pass:
        block_m = max(1, _SMALLEST_TILE // (1 if per_thread > 4 else 2) // block_n)
    else:
        block_m, block_n = loop_rows, limit or longest // 2 // loop_rows
    num_warps = min(_MAX_WARPS, max(1, block_m * block_n // (32 * per_thread)))
    return Config(block_m, block_n, one_pass, num_warps)


@functools.cache
def accumulating_config(n: int, itemsize: int, tiles: int, streams: int, limit: int | None, loop_rows: int) -> Config:
    """`row_config` for a program that walks over rows and keeps a sum over them.

    Its loop is pipelined: the next rows travel to shared memory while the present ones are worked on.

    Args:
        n: Columns.
        itemsize: Bytes of an element of the row operands.
        tiles: Values a program keeps in registers, the running sums among them.
        streams: Row operands read per row.
        limit: As in `row_config`.
        loop_rows: As in `row_config`.

    Returns:
        The configuration with its `stages`.
    """
    config = row_config(n, itemsize, tiles, limit, loop_rows)
    if not config.one_pass:
        return config  # one tile per program: nothing to run ahead for
    if config.block_n >= _LONG_ROW:  # sums over rows take registers too
        config = config._replace(num_warps=min(_MAX_WARPS, 2 * config.num_warps))
    ahead = _PIPELINE_BYTES // (config.block_m * config.block_n * itemsize * streams)
    return config._replace(stages=1 + min(2, ahead))


def rows_of_long_tile(rows: int, processors: int) -> int:
    """Return how many long rows share a tile when summed: many save partial sums, few keep all processors busy."""
    return 16 if rows >= 32 * processors else 4


def row_blocks(rows: int, groups: int, config: Config, processors: int) -> tuple[int, int]:
    """Split the rows of each group into contiguous blocks, one program each, a few programs per multiprocessor.

    Depends on sizes and the device only, never on timing: sums over rows come out the same every time.

    Args:
        rows: Rows of a group, at least 1.
        groups: Groups, at least 1.
        config: The kernel's configuration; rows longer than a block give one tile per program.
        processors: Multiprocessors of the device.

    Returns:
        Blocks per group, and rows per block (a multiple of block_m).
    """
    tiles = -(-rows // config.block_m)
    if not config.one_pass:
        return tiles, config.block_m
    resident = processors * max(1, 32 // config.num_warps)  # 32 warps a multiprocessor
    tiles_per_block = -(-tiles // max(1, min(tiles, resident // groups)))
    return -(-tiles // tiles_per_block), tiles_per_block * config.block_m


def _power_of_two_above(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def _power_of_two_below(n: int) -> int:
    return 1 << (n.bit_length() - 1)
