"""What objects keep and do: their slots, whether there is anything besides, and the methods that a call may use."""

from __future__ import annotations

import struct
from types import FunctionType, MemberDescriptorType
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


def is_used(name: str, value: Any) -> bool:
    """Return whether a recording may have used this attribute of a class by any object of it.

    A method with a name of Python's own, such as `__getitem__`, is called by what code does not name.
    """
    if not name.startswith("__"):
        return True
    return name not in _OF_MAKING and isinstance(value, (FunctionType, staticmethod, classmethod))


# Methods that make, copy, show or end an object, which a call of a function does not do with one that was there before.
_OF_MAKING = frozenset({
    "__new__", "__init__", "__post_init__", "__init_subclass__", "__class_getitem__", "__del__", "__copy__",
    "__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__repr__", "__sizeof__", "__dir__",
})  # fmt: skip
