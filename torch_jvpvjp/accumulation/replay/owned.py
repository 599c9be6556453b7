"""Results that are the caller's own: none shares memory with another one, or with what a program is given or keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layouts

_aten = torch.ops.aten
_VIEWS = frozenset({_aten.reshape.default, _aten._unsafe_view.default})  # that count as no views, and may be some


def with_own_results(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
) -> tuple[list[ProgramCall], list[int]]:
    """Return calls and results with a copy in the place of each result that shares memory with anything else.

    Pieces that a tensor was split into share none with one another, and stay as they are.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
    """
    makers = {index: call for call in calls for index in call.outputs if index is not None}
    found, owned = list(calls), list[int]()
    claimed: list[_Way] = []  # of each result that is handed out as it is, its way to its memory
    for index in results:
        way = _way(index, makers)
        root = next(reversed(way)) if way else index
        free = root in makers and not layouts[index].repeats
        if not free or any(_meet(way, other) for other in claimed):
            segment = calls[-1].segment if calls else 0
            kwargs = {"memory_format": torch.contiguous_format}
            found.append(ProgramCall(_aten.clone.default, (Ref(index),), kwargs, [new_value()], segment))
            layouts.add(found[-1])
            owned.append(found[-1].outputs[0] or 0)
            continue
        claimed.append(way)
        owned.append(index)
    return found, owned


_Way = dict[int, tuple[int | None, int]]
"""The values that a value is a view of, to the one whose memory it is: by which call each is seen, and which piece."""


def _way(index: int, makers: Mapping[int, ProgramCall]) -> _Way:
    """Return the way of a value to its memory."""
    way: _Way = {index: (None, 0)}
    call = makers.get(index)
    while call is not None and (call.target.is_view or call.target in _VIEWS):
        (below,) = call.operands
        way[below] = call.outputs[0], call.outputs.index(index)
        index, call = below, makers.get(below)
    return way


def _meet(one: _Way, other: _Way) -> bool:
    """Return whether two values may share memory: one tensor is below both, and was not split between them."""
    common = [(one[index], other[index]) for index in one if index in other]
    return bool(common) and not any(ours[0] == theirs[0] and ours[1] != theirs[1] for ours, theirs in common)
