"""Entries of mappings that must stay what they are, looked at in every call."""

from __future__ import annotations

from collections.abc import Mapping, ValuesView
from itertools import chain
from operator import is_
from typing import Any

from ._torch import dict_versions


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
                mapping.clear()
                mapping.update(zip(self._keys[begin:end], self._values[begin:end], strict=True))


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
