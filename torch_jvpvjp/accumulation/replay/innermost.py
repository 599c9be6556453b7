"""Constants of many short rows laid out column by column, so that what is made of them entry by entry runs along them.

The rows that adjoints of a batch begin with, (samples, rows, 1) or (rows, 1), meet one number of each sample,
(samples, 1, 1). Where the rows of a sample lie one behind another, an op goes through them in a loop of its own, of as
many turns as there are rows: for a few of them that takes two to four times what one loop over all samples takes for
each row. Results of such ops lie as their operands do, so that it is enough to lay out what they begin with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..calls import ProgramCall
from .layout import Layout, Layouts, layout_of
from .relaid import laid_out, looks_at_memory

_aten = torch.ops.aten
_MOST_ROWS, _LEAST_SAMPLES = 8, 64
# Ops that lay their results out anew, and read their operands entry by entry however these lie.
_COLLECTING = frozenset({_aten.stack.default, _aten.cat.default, _aten.clone.default, _aten._to_copy.default})


def with_samples_innermost(
    calls: Sequence[ProgramCall],
    fixed: Mapping[int, Tensor],
    own: Collection[int],
    results: Sequence[int],
    layouts: Layouts,
    new_value: Callable[[], int],
) -> tuple[list[ProgramCall], dict[int, Tensor]]:
    """Return calls and constants, rows of many samples laid out by columns if all that is made of them is pointwise.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        fixed: Values that are the same in every run.
        own: Which of these the program has made, so that nobody else sees how they lie.
        results: The values that are returned, which lie as before.
        layouts: How each value lies in memory; those of values that lie otherwise now are put right.
        new_value: Makes the number of another value.
    """
    as_before = list(calls), dict(fixed)
    if any(map(looks_at_memory, calls)):
        return as_before
    rows = _Rows({index: fixed[index] for index in own}, new_value)
    after, moved = Layouts(layouts), set[int]()
    found: list[ProgramCall] = []
    try:
        for call in calls:
            again = rows.in_place_of_constants(call, layouts)
            for index in rows.relaid.keys() & set(again.operands) - moved:
                after[index] = layout_of(rows.relaid[index])
                moved.add(index)
            if not moved.isdisjoint(again.operands):
                put = laid_out(again, after, moved)
                if put is not again or not _goes_by_entries(again):
                    return as_before
            found.append(again)
    except RuntimeError:  # an op that does not run without data
        return as_before
    if not moved or not moved.isdisjoint(results):
        return as_before
    layouts.update(after)
    return found, {**fixed, **rows.relaid}


class _Rows:
    """Constants as columns, each made once.

    Args:
        constants: What the program has made itself.
        new_value: Makes the number of another value.
    """

    def __init__(self, constants: Mapping[int, Tensor], new_value: Callable[[], int]) -> None:
        self._constants, self._new_value = constants, new_value
        self._known: dict[tuple[int, int], int] = {}
        self.relaid: dict[int, Tensor] = {}

    def in_place_of_constants(self, call: ProgramCall, layouts: Mapping[int, Layout]) -> ProgramCall:
        """Return the call, whose constants of short rows are columns if its result is of such rows."""
        (out,) = call.outputs if len(call.outputs) == 1 else (None,)
        if out is None or torch.Tag.pointwise not in call.target.tags or not _has_short_rows(layouts[out]):
            return call
        shape = layouts[out].shape
        alike = (index for index in call.distinct if index in self._constants)
        fitting = [index for index in alike if self._constants[index].shape in {shape, shape[1:]}]
        return call.renamed({index: self._by_columns(index, shape) for index in fitting})

    def _by_columns(self, index: int, shape: torch.Size) -> int:
        key = index, shape[0]
        if key not in self._known:
            self._known[key] = number = self._new_value()
            self.relaid[number] = self._constants[index].expand(shape).movedim(0, -1).contiguous().movedim(-1, 0)
        return self._known[key]


def _has_short_rows(layout: Layout) -> bool:
    if len(layout.shape) < 2 or not layout.contiguous:
        return False
    samples = layout.shape[0]
    return samples >= _LEAST_SAMPLES and 1 < layout.numel // samples <= _MOST_ROWS


def _goes_by_entries(call: ProgramCall) -> bool:
    return torch.Tag.pointwise in call.target.tags or call.target.is_view or call.target in _COLLECTING
