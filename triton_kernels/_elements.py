"""How elementwise kernels cut their work: blocks of elements, and chunks of the directions that share a primal."""

from __future__ import annotations

from typing import NamedTuple


class ElementConfig(NamedTuple):
    """How an elementwise kernel cuts its elements.

    Attributes:
        block: Elements of a program, a power of two.
        num_warps: Warps per program.
    """

    block: int
    num_warps: int

    def tiling(self) -> dict[str, int | bool]:
        """Return the constexpr and the options of a launch that every elementwise kernel has."""
        return {
            "BLOCK": self.block,
            "num_warps": self.num_warps,
            "num_stages": 1,
            "enable_fp_fusion": True,  # said, because the default differs between Triton versions
        }


def element_config(itemsize: int, limit: int | None = None) -> ElementConfig:
    """Configuration for elements of a size.

    Args:
        itemsize: Bytes of an element; 8 computes in float64, whose temporaries are twice as wide.
        limit: Elements of a program at most, for tests; a power of two.

    Returns:
        The configuration: eight elements a thread, four in float64.
    """
    block = 512 if itemsize == 8 else 1024
    return ElementConfig(block if limit is None else min(block, limit), 4)


def direction_chunks(directions: int, blocks: int, processors: int) -> tuple[int, int]:
    """Split directions that share a primal: a program that does all of them reads it once, many programs fill a device.

    Args:
        directions: How many there are, at least 1.
        blocks: Blocks of elements.
        processors: Multiprocessors of the device.

    Returns:
        Number of chunks, and directions of a chunk.
    """
    wanted = max(1, 16 * processors // blocks)  # 16 programs of 4 warps a multiprocessor
    per_chunk = -(-directions // min(directions, wanted))
    return -(-directions // per_chunk), per_chunk
