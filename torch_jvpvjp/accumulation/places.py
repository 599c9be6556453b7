"""Places where a function finds what it refers to: how they are read, and how what stood there is put back."""

from __future__ import annotations

import gc
import types
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any

GONE = object()


def cell_value(cell: types.CellType) -> Any:
    """Return what a cell holds; GONE if it is empty."""
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return GONE


def put_cell(cell: types.CellType, value: Any) -> None:
    """Put a value back into a cell, or empty it."""
    if value is not GONE:
        cell.cell_contents = value
    elif cell_value(cell) is not GONE:
        del cell.cell_contents


def put_entry(entries: dict[str, Any], name: str, value: Any) -> None:
    """Put a value back under a name, or take out what was not there."""
    if value is GONE:
        entries.pop(name, None)
    elif entries.get(name, GONE) is not value:
        entries[name] = value


def keep_only(entries: dict[str, Any], names: set[str]) -> None:
    """Take out what stands under other names."""
    for name in entries.keys() - names:
        del entries[name]


def refill(container: Any, members: Sequence[Any]) -> None:
    """Put members back into a list, set or deque."""
    if len(container) != len(members) or not all(map(is_, container, members)):
        container.clear()
        (container.update if isinstance(container, set) else container.extend)(members)


def refill_dict(entries: dict[Any, Any], before: Mapping[Any, Any]) -> None:
    """Put entries back into a dict, whatever a class of the user's says about writing into it."""
    if list(entries) == list(before) and all(map(is_, entries.values(), before.values())):
        return
    kind: Any = OrderedDict if isinstance(entries, OrderedDict) else dict
    kind.clear(entries)
    for key, value in before.items():
        kind.__setitem__(entries, key, value)


def dict_behind(members: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the dict that the attributes of a class stand in, to be read alone: its version tells of any write."""
    behind = gc.get_referents(members)
    return behind[0] if len(behind) == 1 and type(behind[0]) is dict else members


def put_class(kind: type, before: Mapping[str, Any]) -> None:
    """Put attributes back into a class."""
    for name in vars(kind).keys() - before.keys():
        delattr(kind, name)
    for name, value in before.items():
        if vars(kind).get(name, GONE) is not value:
            setattr(kind, name, value)


def slot_value(slot: Any, owner: Any) -> Any:
    """Return what a slot of an object holds; GONE if it is empty."""
    try:
        return slot.__get__(owner)
    except AttributeError:  # still empty
        return GONE


def put_slot(slot: Any, owner: Any, value: Any) -> None:
    """Put a value back into a slot."""
    before = slot_value(slot, owner)
    if value is GONE and before is not GONE:
        slot.__delete__(owner)
    elif before is not value:
        slot.__set__(owner, value)


def misses(cached: Any) -> int:
    """Return how many results an `lru_cache` has computed."""
    return cached.cache_info().misses


def results_of(cached: Any) -> tuple[dict[Any, Any], list[Any]]:
    """Return what an `lru_cache` keeps by its arguments, and its results, with what else it refers to."""
    inside = [one for one in gc.get_referents(cached) if one is not vars(cached)]
    size = cached.cache_info().currsize
    if cached.cache_parameters()["maxsize"] is None:
        kept = next(one for one in inside if type(one) is dict and len(one) == size)
        return kept, list(kept.values())
    # Each result stands in a link of a list, to which the dict leads.
    kept = next(one for one in inside if type(one) is dict and len(one) == size and all(map(_is_link, one.values())))
    return kept, [one for one in inside if one is not kept]


def _is_link(value: Any) -> bool:
    return type(value).__name__ == "_lru_list_elem"


def holds_entries(entries: Mapping[Any, Any], before: Mapping[Any, Any]) -> bool:
    """Return whether a mapping still holds some entries."""
    return all(map(is_, map(entries.get, before), before.values()))


def forget(cached: Any, before: int) -> None:
    """Clear an `lru_cache` that has computed more, which may be tensors without data."""
    if misses(cached) != before:
        cached.cache_clear()
