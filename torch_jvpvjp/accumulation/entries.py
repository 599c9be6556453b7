"""Entries of mappings, and facts of objects, that must stay what they are, looked at in every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, ValuesView
from itertools import chain, repeat
from operator import attrgetter, is_
from typing import Any

from ._torch import dict_versions
from .places import GONE, put_entry, refill_dict


class Entries:
    """All entries of some mappings, compared in one go, without a step of Python for each."""

    def __init__(self) -> None:
        self._mappings: list[Mapping[Any, Any]] = []
        self._sizes: list[int] = []
        self._keys: list[Any] = []
        self._entries: list[ValuesView[Any]] = []
        self._values: list[Any] = []

    def add(self, mapping: Mapping[Any, Any]) -> None:
        """Add a mapping, with what it holds now."""
        self._mappings.append(mapping)
        self._sizes.append(len(mapping))
        self._keys += mapping
        self._entries.append(mapping.values())  # a view, which shows later values as well
        self._values += mapping.values()

    def hold(self) -> bool:
        """Return whether all mappings hold the very objects that they held, in the same order."""
        return (
            list(map(len, self._mappings)) == self._sizes
            and list(chain.from_iterable(self._mappings)) == self._keys
            and all(map(is_, chain.from_iterable(self._entries), self._values))
        )

    def restore(self) -> None:
        """Put back what stood in those that can be written into."""
        end = 0
        for mapping, size in zip(self._mappings, self._sizes, strict=True):
            begin, end = end, end + size
            if isinstance(mapping, dict):
                refill_dict(mapping, dict(zip(self._keys[begin:end], self._values[begin:end], strict=True)))


class DictEntries(Entries):
    """The same for plain dicts, which nobody has written into as long as their versions are the same."""

    def __init__(self) -> None:
        super().__init__()
        self._known: list[int] | None = None  # their versions when they were last found to hold what they held

    def hold(self) -> bool:
        """Return whether all dicts hold the very objects that they held, in the same order."""
        versions = dict_versions(self._mappings)
        if versions is not None and versions == self._known:
            return True
        same = super().hold()
        self._known = versions if same else None
        return same


class Names:
    """Some names of plain dicts that others write into as well, such as the globals of a module."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._scopes: list[dict[str, Any]] = []
        self._known: list[int] | None = None  # the versions of the scopes when they were last found to hold

    def add(self, scope: dict[str, Any], name: str) -> bool:
        """Add what stands under a name, or that nothing does; return whether that is new."""
        if id(scope) not in self._entries:
            self._entries[id(scope)] = scope, {}
            self._scopes.append(scope)
        names = self._entries[id(scope)][1]
        if name in names:
            return False
        names[name] = scope.get(name, GONE)
        return True

    def has(self, scope: dict[str, Any], name: str) -> bool:
        """Return whether a name of a scope is among them."""
        return id(scope) in self._entries and name in self._entries[id(scope)][1]

    def hold(self) -> bool:
        """Return whether the very objects stand under the names that stood there."""
        versions = dict_versions(self._scopes)
        if versions is not None and versions == self._known:
            return True
        same = all(
            all(map(is_, map(scope.get, names, repeat(GONE)), names.values()))
            for scope, names in self._entries.values()
        )
        self._known = versions if same else None
        return same

    def restore(self) -> None:
        """Put back what stood under the names."""
        for scope, names in self._entries.values():
            for name, value in names.items():
                put_entry(scope, name, value)


class Facts:
    """What some objects of one kind must still say of themselves.

    Args:
        getters: What gives it of an object; the same object each time.
    """

    def __init__(self, *getters: Callable[[Any], Any]) -> None:
        self._getters, self._objects = getters, list[Any]()
        self._found: list[list[Any]] = [[] for _ in getters]

    def add(self, value: Any) -> None:
        """Add an object with what it says now."""
        self._objects.append(value)
        for getter, found in zip(self._getters, self._found, strict=True):
            found.append(getter(value))

    def hold(self) -> bool:
        """Return whether all objects say what they said."""
        return all(
            all(map(is_, map(getter, self._objects), found))
            for getter, found in zip(self._getters, self._found, strict=True)
        )


OF_FUNCTIONS = tuple(map(attrgetter, ("__code__", "__defaults__", "__kwdefaults__")))
"""What functions are made of."""
