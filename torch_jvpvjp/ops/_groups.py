"""Between tensors that broadcast from the right and the (groups, rows, columns) that row-wise kernels take.

A normalised tensor is (*lead, *normalized) and a weight (*lead_w, *normalized); their leads broadcast. vmap puts
batch axes in front, so a lead splits into group axes, over which an operand varies or is shared as a whole, and row
axes, over which every row operand varies and no weight does.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._shapes import broadcast


class Grouped(NamedTuple):
    """Operands as launchers take them, and the way back.

    Attributes:
        rows: Row operands, (K or 1, M, N) each, or None.
        weights: Weights, (K or 1, N) each, or None.
        group_shape: The axes that make up K.
        row_shape: The axes that make up M.
        column_shape: The axes that make up N.
    """

    rows: list[Any]
    weights: list[Any]
    group_shape: tuple[int, ...]
    row_shape: tuple[int, ...]
    column_shape: tuple[int, ...]

    def row_result(self, result: Tensor, like: Tensor | None = None) -> Tensor:
        """Shape a launcher's (K or 1, M, N) as the tensor it stands for.

        Args:
            result: What a launcher returned.
            like: The argument whose shape the result must have, summed over the axes along which that was broadcast;
                None leaves the full shape.

        Returns:
            The shaped result.
        """
        groups = self.group_shape if result.shape[0] == prod(self.group_shape) else (1,) * len(self.group_shape)
        full = result.reshape((*groups, *self.row_shape, *self.column_shape))
        return full if like is None else sum_to(full, like.shape)

    def shared_result(self, result: Tensor, shape: Sequence[int]) -> Tensor:
        """Shape a launcher's (K or 1, M, N) that is equal along the axes over which it was broadcast.

        Args:
            result: What a launcher returned.
            shape: The shape without that broadcasting.

        Returns:
            The shaped result, taken once along those axes.
        """
        full = self.row_result(result)
        extra = full.dim() - len(shape)
        for axis in range(full.dim()):
            if full.shape[axis] != 1 and (axis < extra or shape[axis - extra] == 1):
                full = full.narrow(axis, 0, 1)
        return full.reshape(shape)

    def weight_result(self, result: Tensor, like: Tensor) -> Tensor:
        """Shape a launcher's (K or 1, N) as the weight it is the gradient of.

        Args:
            result: What a launcher returned.
            like: The weight.

        Returns:
            The shaped result.
        """
        groups = self.group_shape if result.shape[0] == prod(self.group_shape) else (1,) * len(self.group_shape)
        return sum_to(result.reshape((*groups, *(1,) * len(self.row_shape), *self.column_shape)), like.shape)


def group(rows: Sequence[Tensor | None], weights: Sequence[Tensor | None], normalized_ndim: int) -> Grouped:
    """Bring operands to (groups, rows, columns), without a copy where strides allow.

    Args:
        rows: Row operands (*lead, *normalized), or None; the first is a tensor.
        weights: Weights (*lead, *normalized), or None.
        normalized_ndim: Number of normalised axes.

    Returns:
        The operands in the layout of the launchers.
    """
    first = rows[0]
    assert first is not None
    cut = first.dim() - normalized_ndim
    columns = tuple(first.shape[cut:])
    n = prod(columns)
    alike = all(t is None or t.shape == first.shape for t in rows)
    if alike and all(w is None or w.dim() == len(columns) for w in weights):  # the common case: nothing is batched
        m = prod(first.shape[:cut])
        return Grouped(
            [None if t is None else t.reshape(1, m, n) for t in rows],
            [None if w is None else w.reshape(1, n) for w in weights],
            (),
            tuple(first.shape[:cut]),
            columns,
        )
    present = [t for t in (*rows, *weights) if t is not None]
    rank = max(t.dim() for t in present) - normalized_ndim
    lead_of = {id(t): _padded(t.shape[: t.dim() - normalized_ndim], rank) for t in present}
    full = broadcast(*lead_of.values())
    split = rank
    while (
        split
        and all(t is None or lead_of[id(t)][split - 1] == full[split - 1] for t in rows)
        and all(w is None or lead_of[id(w)][split - 1] == 1 for w in weights)
    ):
        split -= 1
    group_shape, row_shape = tuple(full[:split]), tuple(full[split:])
    m = prod(row_shape)

    def grouped(tensor: Tensor | None, inner: Sequence[int], tail: Sequence[int]) -> Tensor | None:
        if tensor is None:
            return None
        shared = prod(lead_of[id(tensor)][:split]) == 1
        groups = (1,) * split if shared else group_shape
        padded = tensor.reshape((*lead_of[id(tensor)], *columns)).expand((*groups, *inner, *columns))
        return padded.reshape(1 if shared else prod(groups), *tail)

    return Grouped(
        [grouped(t, row_shape, (m, n)) for t in rows],
        [grouped(w, (1,) * len(row_shape), (n,)) for w in weights],
        group_shape,
        row_shape,
        columns,
    )


def sum_to(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum over the axes along which ``shape`` was broadcast to the tensor's.

    Args:
        tensor: Any tensor.
        shape: A shape that broadcasts to the tensor's.

    Returns:
        A tensor of that shape.
    """
    if tensor.shape == torch.Size(shape):
        return tensor
    extra = tensor.dim() - len(shape)
    # An axis of one is not summed: that would be a kernel, and a copy.
    axes = [i for i, n in enumerate(tensor.shape) if n != 1 and (i < extra or shape[i - extra] == 1)]
    return (tensor.sum(axes, keepdim=True) if axes else tensor).reshape(shape)


def _padded(lead: Sequence[int], rank: int) -> tuple[int, ...]:
    return (*(1,) * (rank - len(lead)), *lead)
