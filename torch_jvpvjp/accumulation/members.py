"""The slots of an object, and whether it keeps anything besides them and its `__dict__`."""

from __future__ import annotations

import struct
from types import MemberDescriptorType
from typing import Any

_POINTER = struct.calcsize("P")


def slots_of(kind: type) -> dict[str, Any] | None:
    """The slots of the objects of a class.

    Python gives each slot, the `__dict__` and the list of weak references a pointer in the memory of an object. What
    takes more keeps something that Python does not show, as a deque, a random generator or a lock does.

    Args:
        kind: The class.

    Returns:
        The descriptors by class and name; None if the objects keep something else besides.
    """
    found: dict[str, Any] = {}
    if kind.__itemsize__:
        return None
    while kind is not object:
        base = kind.__base__
        assert base is not None
        own = {name: value for name, value in vars(kind).items() if isinstance(value, MemberDescriptorType)}
        slots = {f"{kind.__qualname__}.{name}": value for name, value in own.items() if name != "__dict__"}
        pointers = len(slots) + ("__dict__" in vars(kind)) + ("__weakref__" in vars(kind))
        if kind.__basicsize__ - base.__basicsize__ > _POINTER * pointers:
            return None
        found |= slots
        kind = base
    return found
