"""A program as the text of a Python function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..calls import ProgramCall
from .layout import Layout
from .overwriting import overwritten
from .spelling import spelled

Spelling = Callable[[ProgramCall, int], tuple[str, dict[str, Any]]]
"""From a call and its place to an expression, and to what the names in it stand for besides the values."""


def by_hand(calls: Sequence[ProgramCall], results: Sequence[int], layouts: Mapping[int, Layout]) -> Spelling:
    """Return the spelling of these calls that runs quickest, for values that lie in memory as given."""
    into = overwritten(calls, results, layouts)
    return lambda call, place: spelled(call, place, layouts, into.get(place))


def written(
    calls: Sequence[ProgramCall],
    inputs: Sequence[int],
    results: Sequence[int],
    spell: Spelling,
    clocks: Sequence[int] = (),
) -> tuple[str, dict[str, Any]]:
    """A program as Python.

    Args:
        calls: What is run, in order.
        inputs: The values that are the arguments.
        results: The values that are returned.
        spell: How a call is written.
        clocks: Places before which a clock ticks.

    Returns:
        The text, in which values are deleted after their last use, and what its names stand for.
    """
    ends = _last_uses(calls, inputs, results)
    scope: dict[str, Any] = {}
    lines = [f"def program({', '.join(f'v{index}' for index in inputs)}):"]
    for place, call in enumerate(calls):
        lines += ["    clock()"] * clocks.count(place)
        expression, names = spell(call, place)
        scope |= names
        made = ["_" if index is None else f"v{index}" for index in call.outputs]
        left = made[0] if len(made) == 1 and not call.lists else f"{', '.join(made)},"
        lines.append(f"    {left if made else '_'} = {expression}")
        if place in ends:
            lines.append(f"    del {', '.join(f'v{index}' for index in sorted(ends[place]))}")
    lines += ["    clock()"] * clocks.count(len(calls))
    lines.append(f"    return ({', '.join(f'v{index}' for index in results)},)")
    return "\n".join(lines) + "\n", scope


def _last_uses(calls: Sequence[ProgramCall], inputs: Sequence[int], results: Sequence[int]) -> dict[int, list[int]]:
    """Return the values that are used for the last time by the call at each place."""
    last: dict[int, int] = {}
    for place, call in enumerate(calls):
        last |= dict.fromkeys(call.operands, place)
        last |= {index: place for index in call.outputs if index is not None and index not in last}
    owned = {index for call in calls for index in call.outputs if index is not None} | set(inputs)
    ends: dict[int, list[int]] = {}
    for index, place in last.items():
        if index not in results and index in owned:
            ends.setdefault(place, []).append(index)
    return ends
