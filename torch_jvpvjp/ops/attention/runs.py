"""Runs of rows that see the same keys, or one more each: PyTorch's kernel takes such a run without a matrix to add."""

from typing import NamedTuple

import torch
from torch import Tensor

from .maps import Window

_ROWS_IN_RUN = 8  # fewer on average, and the calls cost more than the scores that a matrix hides


class Run(NamedTuple):
    """Neighbouring rows.

    Attributes:
        window: They, and all keys that one of them sees.
        causal: Whether row i of them sees keys 0 to i of these alone.
    """

    window: Window
    causal: bool


def runs_of(ranges: Tensor) -> list[Run] | None:
    """What packed sequences consist of, seen whole or causally.

    Args:
        ranges: First key, end of keys and position of every row, (1, 3, rows), on the CPU.

    Returns:
        Runs of all rows, in order; None if a row sees keys in another way, or there are too many runs.
    """
    first, end = ranges[0, 0], ranges[0, 1]
    together, longer = first[1:] == first[:-1], end[1:] - end[:-1]
    kind = torch.where(together & (longer >= 0) & (longer <= 1), longer, -1)  # how a row differs from the last
    changes = kind < 0
    changes[1:] |= (kind[1:] != kind[:-1]) & (kind[:-1] >= 0)
    starts = [0, *(changes.nonzero().flatten() + 1).tolist()]
    rows = first.shape[0]
    if len(starts) * _ROWS_IN_RUN > rows:
        return None
    runs = []
    for a, b in zip(starts, [*starts[1:], rows], strict=True):
        c, d, causal = int(first[a]), int(end[b - 1]), b > a + 1 and int(kind[a]) == 1
        if causal and d != c + b - a:
            return None
        runs.append(Run(Window(a, b, c, d), causal))
    return runs
