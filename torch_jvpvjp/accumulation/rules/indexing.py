"""Index arrays of structures: which entry of an operand an entry of the output reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.utils._python_dispatch import _disable_current_modes

from .arguments import TooManyEntries

MOST_INDICES = 20_000_000
MOST_VALUES = 4_000_000  # of blocks
MOST_PATTERN = 2_000_000  # of a general sparsity pattern

Index = npt.NDArray[np.int64]


@contextmanager
def unrecorded() -> Iterator[None]:
    """Run plain ops, whatever modes and transforms the caller is in: indices are numbers, never part of a tape."""
    with _disable_current_modes(), temporarily_clear_interpreter_stack(), torch.no_grad():
        yield


def check_indices(count: int) -> None:
    """Check that an index array is not too long.

    Args:
        count: Its length.

    Raises:
        TooManyEntries: If it is.
    """
    if count > MOST_INDICES:
        raise TooManyEntries


def check_values(count: int, most: int = MOST_VALUES) -> None:
    """Check that the values are not too many to be worth computing.

    Args:
        count: Their number.
        most: The most there may be.

    Raises:
        TooManyEntries: If there are more.
    """
    if count > most:
        raise TooManyEntries


def broadcast_index(shape: torch.Size, output: torch.Size) -> Index | None:
    """Return which entry of a broadcast operand each entry of the output reads; None where each reads its own."""
    if shape.numel() == output.numel():
        return None
    check_indices(output.numel())
    return np.broadcast_to(np.arange(shape.numel()).reshape(shape), output).reshape(-1)


def reduced_index(shape: torch.Size, dims: set[int]) -> Index:
    """Return into which entry of the output each entry of an operand falls that is reduced over `dims`."""
    check_indices(shape.numel())
    kept = [1 if dim in dims else size for dim, size in enumerate(shape)]
    output = np.arange(int(np.prod(kept, dtype=np.int64))).reshape(kept)
    return np.broadcast_to(output, tuple(shape)).reshape(-1)
