"""Ops whose results have sizes that depend on data, written with the indices that a mask selects at the point.

The entries x[x > 0] are as many as are positive. With the mask a condition of the recording, which entries these are is
known: x[index] with an index of whole numbers, whose Jacobian selects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_READS = frozenset({_aten.index.Tensor, _aten._unsafe_index.Tensor})
_WRITES = frozenset({_aten.index_put.default, _aten.index_put_.default})
_MASKS = frozenset({torch.bool, torch.uint8})


def is_sized_by_data(func: Any, args: Sequence[Any], *, seen: bool) -> bool:
    """Whether how many entries an op gives, or takes, depends on a mask.

    Args:
        func: The op.
        args: Its arguments.
        seen: Whether a mask may be looked at that depends on x; without it what is written is as many as it is.

    Returns:
        Whether it does.
    """
    if func in _READS:
        return any(map(_is_mask, args[1]))
    if func in _WRITES:
        return seen and any(map(_is_mask, args[1])) and _is_counted(*args[:3])
    return func in {_aten.nonzero.default, _aten.masked_select.default}


def _is_counted(x: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> bool:
    """Return whether values have one for each entry that a mask selects, and are not the same for all of them."""
    if values.numel() == 1:
        return False
    rest = x.dim() - sum(index.dim() if _is_mask(index) else 1 for index in indices if index is not None)
    in_front = all(index is not None for index in indices)
    return not in_front or (values.dim() > rest and values.shape[: values.dim() - rest].numel() != 1)


def without_masks(
    func: Any, args: Sequence[Any], nonzero: Callable[[Tensor], list[Tensor]], run: Callable[..., Any]
) -> tuple[Any, tuple[Any, ...]]:
    """An op with indices in the place of masks.

    Args:
        func: The op, which is sized by data.
        args: Its arguments.
        nonzero: Gives the indices that a mask selects, along each of its axes.
        run: Runs an op.

    Returns:
        The op that does the same, and its arguments.
    """
    if func is _aten.masked_select.default:
        shape = torch.broadcast_shapes(args[0].shape, args[1].shape)
        x, mask = (run(_aten.expand.default, one, list(shape)) for one in args)
        if not shape:
            x, mask = (run(_aten.unsqueeze.default, one, 0) for one in (x, mask))
        return _aten.index.Tensor, (x, nonzero(mask))
    indices: list[Tensor | None] = []
    for one in args[1]:
        indices += nonzero(one) if _is_mask(one) else [one]
    return func, (args[0], indices, *args[2:])


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in _MASKS and index.dim() > 0
