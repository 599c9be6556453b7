"""Between tensors that broadcast from the right and the (groups, outer, columns, inner) that softmax kernels take."""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

from torch import Tensor

from .._groups import Grouped, group


class Lines(NamedTuple):
    """Operands as launchers take them, and the way back.

    Attributes:
        tensors: Operands with columns, (K or 1, O, n, I) each, or None.
        mask: The mask's layout.
        grouped: The axes that make up K, O and (n, I).
    """

    tensors: list[Any]
    mask: Any
    grouped: Grouped

    def result(self, result: Tensor | None, like: Tensor) -> Tensor | None:
        """Shape a launcher's (K or 1, O, n, I) as `like`, summed over the axes along which that was broadcast."""
        if result is None:
            return None
        return self.grouped.row_result(result.flatten(2), like)

    def shared(self, result: Tensor, shape: Sequence[int]) -> Tensor:
        """Shape a launcher's (K or 1, O, n, I) that is equal along the axes over which it was broadcast."""
        return self.grouped.shared_result(result.flatten(2), shape)

    def numbers(self, tensor: Tensor | None) -> Tensor | None:
        """Bring one number for each line, (*lead, 1, *inner), to (K or 1, O, I)."""
        if tensor is None:
            return None
        groups, rows, columns = self.grouped.group_shape, self.grouped.row_shape, self.grouped.column_shape
        rank = len(groups) + len(rows)
        lead = tensor.shape[: tensor.dim() - len(columns)]
        padded = tensor.reshape((*(1,) * (rank - len(lead)), *lead, *columns[1:]))
        shared = prod(padded.shape[: len(groups)]) == 1
        full = padded.expand((*((1,) * len(groups) if shared else groups), *rows, *columns[1:]))
        return full.reshape(1 if shared else prod(groups), prod(rows), prod(columns[1:])).contiguous()

    def number_result(self, result: Tensor, like: Tensor) -> Tensor:
        """Shape a launcher's (K or 1, O, I) as `like` with size 1 at the axis, taken once where that was broadcast."""
        columns = self.grouped.column_shape
        reduced = self.grouped._replace(column_shape=(1, *columns[1:]))
        sizes = (*like.shape[: like.dim() - len(columns)], 1, *columns[1:])
        return reduced.shared_result(result, sizes)


def lines(tensors: Sequence[Tensor | None], mask: Tensor | None, dim: int) -> Lines:
    """Bring operands to (groups, outer, columns, inner), without a copy where strides allow.

    Args:
        tensors: Operands of the input's shape, with more axes in front or without; or None. The first is a tensor.
        mask: What is kept, broadcasting to the input's shape; or None.
        dim: The axis of the columns, counted from the end.

    Returns:
        The operands in the layout of the launchers.
    """
    from ...triton_kernels.softmax._tiles import NO_MASK

    grouped = group(tensors, [], -dim)
    n, inner = grouped.column_shape[0], prod(grouped.column_shape[1:])
    split = [None if t is None else t.reshape((*t.shape[:2], n, inner)) for t in grouped.rows]
    return Lines(split, NO_MASK if mask is None else _mask_layout(grouped, mask), grouped)


def _mask_layout(grouped: Grouped, mask: Tensor) -> Any:
    from ...triton_kernels.softmax._tiles import lay_out_mask

    lead = len(grouped.group_shape) + len(grouped.row_shape)
    padded = mask.reshape((*(1,) * (lead + len(grouped.column_shape) - mask.dim()), *mask.shape))
    count = len(grouped.group_shape)
    shared = prod(padded.shape[:count]) == 1
    if shared:
        padded = padded[(0,) * count] if count else padded
        lead -= count
    sizes = (*(() if shared else grouped.group_shape), *grouped.row_shape, *grouped.column_shape)
    view = padded.expand(sizes)
    view = view.unsqueeze(-1) if len(grouped.column_shape) == 1 else view.flatten(lead + 1)
    return lay_out_mask(view, lead, 1 if shared else prod(grouped.group_shape))
