"""Which calls of a program are alike and independent of one another, and an order in which each such group is one.

Calls are alike that run one op with the same options on operands of the same sizes. Of these, the generation of a call
is the length of the longest way to it through calls alike: two of one generation cannot need each other. A group is a
generation. Where two groups need parts of each other, one of them is dissolved.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from ..calls import RANDOM, ProgramCall
from .layout import Layout
from .side_by_side import has_rule

Group = tuple[int, ...]
"""Places of calls in a program."""


def alike_groups(
    calls: Sequence[ProgramCall], layouts: Mapping[int, Layout], least: int, most_bytes: float
) -> list[Group]:
    """The groups of a program.

    Args:
        calls: The program.
        layouts: How its values lie in memory.
        least: Calls that make a group.
        most_bytes: A call that reads and writes more is left alone: its launch is not what it takes.

    Returns:
        The places of the calls of each group.
    """
    kinds = _kinds(calls, layouts, least, most_bytes)
    generations: dict[int, dict[Any, int]] = {}  # of each value, the longest way to it through each kind
    found: dict[tuple[Any, int], list[int]] = defaultdict(list)
    for place, call in enumerate(calls):
        longest: dict[Any, int] = {}
        for index in call.distinct:
            for kind, length in generations.get(index, {}).items():
                if longest.get(kind, 0) < length:
                    longest[kind] = length
        kind = kinds.get(place)
        if kind is not None:
            longest[kind] = longest.get(kind, 0) + 1
            found[kind, longest[kind]].append(place)
        generations |= {index: longest for index in call.outputs if index is not None}
    return [tuple(places) for places in found.values() if len(places) >= least]


def _kinds(
    calls: Sequence[ProgramCall], layouts: Mapping[int, Layout], least: int, most_bytes: float
) -> dict[int, int]:
    """Return the kind of each call that has enough others like it.

    Calls of one weight are a kind, if there are enough: the weight is then shared, and not copied for each of them.
    """
    made = {index for call in calls for index in call.outputs if index is not None}
    loose: dict[int, Any] = {}
    strict: dict[int, Any] = {}
    counts = Counter(_rough_kind(call, layouts) for call in calls)
    for place, call in enumerate(calls):
        if counts[_rough_kind(call, layouts)] < least or not _can_join(call, layouts, most_bytes):
            continue
        key = call.pattern.key
        if key is None:
            continue
        operands = call.distinct
        sizes = tuple((layouts[index].shape, layouts[index].dtype) for index in operands)
        loose[place] = key, sizes
        strict[place] = key, sizes, tuple(None if index in made else index for index in operands)
    enough = Counter(strict.values())
    chosen = {place: strict[place] if enough[strict[place]] >= least else loose[place] for place in strict}
    enough = Counter(chosen.values())
    numbers: dict[Any, int] = {}
    return {place: numbers.setdefault(key, len(numbers)) for place, key in chosen.items() if enough[key] >= least}


def _rough_kind(call: ProgramCall, layouts: Mapping[int, Layout]) -> Any:
    """Return what calls of one kind have in common, and is known at once."""
    made = layouts.get(call.outputs[0]) if len(call.outputs) == 1 and call.outputs[0] is not None else None
    return call.target, None if made is None else made.shape


def _can_join(call: ProgramCall, layouts: Mapping[int, Layout], most_bytes: float) -> bool:
    if RANDOM in call.target.tags or call.lists or len(call.outputs) != 1 or not has_rule(call.target):
        return False
    touched = [*call.distinct, call.outputs[0]]
    if any(index not in layouts for index in touched):
        return False
    sides = [layouts[index] for index in touched if index is not None]
    out = sides[-1]
    # A tensor of no axes, or of another dtype, may count for less in what dtype comes out.
    alike = all(side.dtype in {out.dtype, torch.bool} and not any(side.twisted) for side in sides)
    return (
        alike
        and len({side.device for side in sides}) == 1
        and (sum(side.numel * side.dtype.itemsize for side in sides) <= most_bytes)
    )


def in_order(calls: Sequence[ProgramCall], groups: Collection[Group]) -> list[Group]:
    """An order of all calls in which those of a group stand together.

    Args:
        calls: The program.
        groups: Its groups.

    Returns:
        Groups, and lone calls as groups of one, each after what it needs. Groups that need parts of each other are
        dissolved, the smallest first.
    """
    groups = set(groups)
    while True:
        order, stuck = _sorted(calls, groups)
        if not stuck:
            return order
        groups -= {min(stuck, key=lambda group: (len(group), group))}


def _sorted(calls: Sequence[ProgramCall], groups: Collection[Group]) -> tuple[list[Group], list[Group]]:
    """Return an order as far as there is one, and the groups that are left."""
    group_of = {place: group for group in groups for place in group}
    maker = {index: place for place, call in enumerate(calls) for index in call.outputs if index is not None}
    items = [group_of.get(place, (place,)) for place in range(len(calls))]
    waits: dict[Group, int] = {}
    users: dict[Group, list[Group]] = defaultdict(list)
    for item in dict.fromkeys(items):
        needed = {items[maker[index]] for place in item for index in calls[place].operands if index in maker}
        waits[item] = len(needed)
        for other in needed:
            users[other].append(item)
    ready = [item for item, count in waits.items() if not count]
    heapq.heapify(ready)
    order: list[Group] = []
    while ready:
        item = heapq.heappop(ready)
        order.append(item)
        for user in users[item]:
            waits[user] -= 1
            if not waits[user]:
                heapq.heappush(ready, user)
    return order, [item for item in _in_circles(waits, users) if len(item) > 1]


def _in_circles(waits: Mapping[Group, int], users: Mapping[Group, Sequence[Group]]) -> set[Group]:
    """Return what is left on circles, and between them: not what only waits for them."""
    left = {item for item, count in waits.items() if count}
    while True:
        ends = {item for item in left if left.isdisjoint(users.get(item, ()))}
        if not ends:
            return left
        left -= ends
