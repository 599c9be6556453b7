"""Views and copies that change nothing, taken out of a program that writes into no tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..calls import ProgramCall, shown
from .layout import Layout

_aten = torch.ops.aten
_COPIES = frozenset({_aten.clone.default, _aten._to_copy.default})


def without_idle_moves(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Mapping[int, Layout]
) -> tuple[list[ProgramCall], list[int]]:
    """Return calls and results in which a value that holds what an earlier one holds, where it holds it, is that value.

    Such are a transpose of a transpose, an expansion to the same size, a slice of everything, and a copy into the
    layout that the values had before. Of what is returned, a copy stays one unless it is of memory that the program
    has made and that nothing else of it is left in: a result never shares memory with what is not its own.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory.

    Returns:
        The calls, and the results.
    """
    returned = _returned(calls, results)
    same: dict[int, int] = {}
    roots: dict[int, int] = {}  # whose memory a view looks at
    made: set[int] = set()  # values whose memory the program has made
    known: dict[Any, int] = {}
    kept: list[ProgramCall] = []
    for call in calls:
        call = call.renamed(same)
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
            if out not in returned or (root in made and layouts[root].numel == layouts[out].numel):
                same[out] = operands[0]
                continue
        if not call.target.is_view:
            made.update(index for index in call.outputs if index is not None)
        kept.append(call)
    return kept, [same.get(index, index) for index in results]


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
