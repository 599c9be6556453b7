"""Views and copies that change nothing, taken out of a program that writes into no tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..calls import ProgramCall, shown
from .layout import Layout, Layouts
from .relaid import laid_out, looks_at_memory

_aten = torch.ops.aten
_COPIES = frozenset({_aten.clone.default, _aten._to_copy.default})
_PARTS_BY_SELECT = 4  # parts that a tensor is taken apart into in the time that one of them is taken in


def without_idle_moves(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts
) -> tuple[list[ProgramCall], list[int]]:
    """Return calls and results in which a value that holds what an earlier one holds, where it holds it, is that value.

    Such are a transpose of a transpose, an expansion to the same size, a slice of everything, and a copy into the
    layout that the values had before. Of what is returned, a copy stays one unless it is of memory that the program
    has made and that nothing else of it is left in: a result never shares memory with what is not its own.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory; those of values that lie otherwise now are put right.

    Returns:
        The calls, and the results.
    """
    after, same = Layouts(layouts), dict[int, int]()
    try:
        found = _without_moves(calls, results, after, same)
    except RuntimeError:  # an op that does not run without data
        return list(calls), list(results)
    layouts.update(after)
    return found, [same.get(index, index) for index in results]


def _without_moves(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, same: dict[int, int]
) -> list[ProgramCall]:
    """Return the calls; `same` learns which value takes the place of which."""
    returned, by_memory = _returned(calls, results), any(map(looks_at_memory, calls))
    moved: set[int] = set()  # values that lie otherwise than they did, as what is taken of a piece and not of a copy
    roots: dict[int, int] = {}  # whose memory a view looks at
    made: set[int] = set()  # values whose memory the program has made
    known: dict[Any, int] = {}
    kept: list[ProgramCall] = []
    for call in calls:
        call = call.renamed(same)
        if not moved.isdisjoint(call.operands):
            call = laid_out(call, layouts, moved)
        out = call.outputs[0] if len(call.outputs) == 1 else None
        operands = call.operands
        if call.target.is_view:
            root = roots.get(operands[0], operands[0])
            roots |= {index: root for index in call.outputs if index is not None}
            if out is not None and not layouts[out].repeats:
                known.setdefault((root, layouts[root].key), root)
                first = known.setdefault((root, layouts[out].key), out)
                if first != out:
                    same[out] = first
                    continue
        elif out is not None and call.target in _COPIES and _idle(layouts[operands[0]], layouts[out]):
            root = roots.get(operands[0], operands[0])
            elsewhere = layouts[operands[0]] != layouts[out]
            free = out not in returned or (root in made and layouts[root].numel == layouts[out].numel)
            if free and not (elsewhere and by_memory):
                same[out] = operands[0]
                if elsewhere:
                    moved.add(operands[0])
                continue
        if not call.target.is_view:
            made.update(index for index in call.outputs if index is not None)
        kept.append(call)
    return kept


def without_idle_parts(calls: Sequence[ProgramCall], results: Sequence[int]) -> list[ProgramCall]:
    """Return calls in which a tensor of which few parts are used is not taken apart whole, but each of these taken.

    Args:
        calls: A straight line of calls.
        results: The values that are returned.
    """
    used = {index for call in calls for index in call.operands} | set(results)
    found: list[ProgramCall] = []
    for call in calls:
        parts = [(place, index) for place, index in enumerate(call.outputs) if index in used]
        if call.target is not _aten.unbind.int or call.kwargs or _PARTS_BY_SELECT * len(parts) > len(call.outputs):
            found.append(call)
            continue
        value, axis = call.args[0], (call.args[1:] or (0,))[0]
        found += [ProgramCall(_aten.select.int, (value, axis, at), {}, [part], call.segment) for at, part in parts]
    return found


def _idle(before: Layout, after: Layout) -> bool:
    """Return whether a copy lies as what it is a copy of."""
    kept = (before.dtype, before.device, before.shape, before.twisted) == (
        after.dtype, after.device, after.shape, after.twisted,
    )  # fmt: skip
    return kept and before.contiguous and after.contiguous


def _returned(calls: Sequence[ProgramCall], results: Sequence[int]) -> set[int]:
    """Return the values whose memory the results may share once copies are taken out."""
    found = shown(calls, results)
    for call in reversed(calls):
        if call.target in _COPIES and not found.isdisjoint(call.outputs):
            found = shown(calls, [*found, *call.operands])
    return found
