"""The (groups, rows, columns) layout that launchers take, brought to what kernels can address.

Every operand of a row-wise kernel is (K, M, N) (weights: (K, N)), where K may be 1 against the others' K. That closes
the ops under vmap: a batch axis of any operand becomes its K axis, and an operand without it has K = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, overload

from torch import Tensor


class RowLayout(NamedTuple):
    """Grid geometry, and per operand its strides (group, row) in elements; an operand shared by groups has stride 0."""

    groups: int
    rows: int
    strides: Sequence[tuple[int, int]]


@overload
def unit_columns(tensor: Tensor) -> Tensor: ...
@overload
def unit_columns(tensor: None) -> None: ...
def unit_columns(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor, copied only if its columns are not adjacent in memory."""
    if tensor is None or tensor.stride(-1) == 1 or tensor.shape[-1] <= 1:
        return tensor
    return tensor.contiguous()


def group_count(*tensors: Tensor | None) -> int:
    """Return K, the size of the first axis after broadcasting ones, None counting as one."""
    for tensor in tensors:
        if tensor is not None and tensor.shape[0] != 1:
            return tensor.shape[0]
    return 1


def group_stride(tensor: Tensor | None) -> int:
    """Return the elements between two groups: 0 where they share their memory."""
    return 0 if tensor is None or tensor.shape[0] == 1 else tensor.stride(0)


def lay_out(operands: Sequence[Tensor | None], groups: int, rows: int, *, fold: bool) -> RowLayout:
    """Strides of row operands; with `fold`, all groups become rows of one group wherever the strides allow it.

    Folding fills a block of rows where each group has few. It is right when groups differ in nothing but row operands.

    Args:
        operands: Tensors (K or 1, M, N), or None.
        groups: K.
        rows: M.
        fold: Whether weights, and results summed over rows, are shared by all groups.

    Returns:
        The layout: groups and rows as the kernel shall see them, and one pair of strides per operand.
    """
    if fold and groups > 1:
        folded = tuple(_folded_strides(operand, groups, rows) for operand in operands)
        if None not in folded:
            return RowLayout(1, groups * rows, folded)  # pyright: ignore[reportArgumentType]
    strides = []  # a loop, because this runs at every launch
    for operand in operands:
        if operand is None:
            strides.append((0, 0))
        else:
            group, row, _ = operand.stride()
            strides.append((0 if operand.shape[0] == 1 else group, row))
    return RowLayout(groups, rows, strides)


def _folded_strides(operand: Tensor | None, groups: int, rows: int) -> tuple[int, int] | None:
    """Return the strides of an operand whose groups follow one another like rows, None if they do not."""
    if operand is None:
        return (0, 0)
    if operand.shape[0] == groups:
        if rows == 1:
            return (0, operand.stride(0))
        if operand.stride(0) == rows * operand.stride(1):
            return (0, operand.stride(1))
    return None
