"""Entries of mappings, cells, and facts of objects, that must stay what they are, looked at in every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, ValuesView
from itertools import chain, repeat
from operator import attrgetter, is_
from types import CellType, FunctionType
from typing import Any

from ._torch import dict_versions
from .places import GONE, cell_value, keep_only, put_cell, put_entry, refill_dict


class Entries:
    """All entries of some mappings, compared in one go, without a step of Python for each.

    Attributes:
        mappings: The mappings.
    """

    def __init__(self) -> None:
        self.mappings: list[Mapping[Any, Any]] = []
        self._sizes: list[int] = []
        self._keys: list[Any] = []
        self._entries: list[ValuesView[Any]] = []
        self._values: list[Any] = []

    def add(self, mapping: Mapping[Any, Any]) -> None:
        """Add a mapping, with what it holds now."""
        self.mappings.append(mapping)
        self._sizes.append(len(mapping))
        self._keys += mapping
        self._entries.append(mapping.values())  # a view, which shows later values as well
        self._values += mapping.values()

    def hold(self) -> bool:
        """Return whether all mappings hold the very objects that they held, in the same order."""
        return (
            list(map(len, self.mappings)) == self._sizes
            and list(chain.from_iterable(self.mappings)) == self._keys
            and all(map(is_, chain.from_iterable(self._entries), self._values))
        )

    def restore(self) -> None:
        """Put back what stood in those that can be written into."""
        end = 0
        for mapping, size in zip(self.mappings, self._sizes, strict=True):
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
        versions = dict_versions(self.mappings)
        if versions is not None and versions == self._known:
            return True
        same = super().hold()
        self._known = versions if same else None
        return same


class Names:
    """Some names of plain dicts that others write into as well, such as the globals of a module.

    Attributes:
        scopes: The dicts.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.scopes: list[dict[str, Any]] = []
        self._known: list[int] | None = None  # the versions of the scopes when they were last found to hold

    def add(self, scope: dict[str, Any], name: str) -> bool:
        """Add what stands under a name, or that nothing does; return whether that is new."""
        if id(scope) not in self._entries:
            self._entries[id(scope)] = scope, {}
            self.scopes.append(scope)
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
        versions = dict_versions(self.scopes)
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


class Attributes:
    """All attributes of some objects, but for names that come and go.

    Attributes:
        dicts: The dicts in which they stand.
    """

    def __init__(self) -> None:
        self.dicts: list[dict[str, Any]] = []
        self._found: list[tuple[dict[str, Any], frozenset[str]]] = []  # what stands there, and the names that pass
        self._known: list[int] | None = None  # the versions of the dicts when they were last found to hold

    def add(self, attributes: dict[str, Any], passing: frozenset[str]) -> list[Any]:
        """Add the attributes that an object has now but for some names; return them."""
        found = {name: value for name, value in attributes.items() if name not in passing}
        self.dicts.append(attributes)
        self._found.append((found, passing))
        return list(found.values())

    def hold(self) -> bool:
        """Return whether the very objects stand under the names that stood there, and no others under others."""
        versions = dict_versions(self.dicts)
        if versions is not None and versions == self._known:
            return True
        same = all(
            len(attributes) - sum(map(attributes.__contains__, passing)) == len(found)
            and all(map(is_, map(attributes.get, found, repeat(GONE)), found.values()))
            for attributes, (found, passing) in zip(self.dicts, self._found, strict=True)
        )
        self._known = versions if same else None
        return same

    def restore(self) -> None:
        """Put back what stood there."""
        for attributes, (found, passing) in zip(self.dicts, self._found, strict=True):
            keep_only(attributes, {*found, *passing})
            for name, value in found.items():
                put_entry(attributes, name, value)


class Facts:
    """What some objects of one kind must still say of themselves.

    Args:
        getters: What gives it of an object; the same object each time.

    Attributes:
        objects: The objects.
    """

    def __init__(self, *getters: Callable[[Any], Any]) -> None:
        self._getters, self.objects = getters, list[Any]()
        self._found: list[list[Any]] = [[] for _ in getters]

    def add(self, value: Any) -> None:
        """Add an object with what it says now."""
        self.objects.append(value)
        for getter, found in zip(self._getters, self._found, strict=True):
            found.append(getter(value))

    def hold(self) -> bool:
        """Return whether all objects say what they said."""
        for getter, found in zip(self._getters, self._found):  # noqa: B905, SIM110 (a generator is a frame more)
            if not all(map(is_, map(getter, self.objects), found)):
                return False
        return True


_CODE, _CONTENTS = attrgetter("__code__"), attrgetter("cell_contents")
_DEFAULTS = tuple(map(attrgetter, ("__defaults__", "__kwdefaults__")))


class Functions:
    """Functions that must keep their code and the defaults of those arguments that the code has.

    Code that is equal does the same; defaults are compared by identity, and most are None.

    Attributes:
        functions: The functions.
    """

    def __init__(self) -> None:
        self.functions: list[FunctionType] = []
        self._codes: list[Any] = []
        self._without: list[list[FunctionType]] = [[] for _ in _DEFAULTS]  # those that could have defaults, and do not
        self._given = [Facts(defaults) for defaults in _DEFAULTS]

    def add(self, function: FunctionType) -> None:
        """Add a function as it is now."""
        code = function.__code__
        self.functions.append(function)
        self._codes.append(code)
        counts = code.co_argcount, code.co_kwonlyargcount
        for defaults, count, without, given in zip(_DEFAULTS, counts, self._without, self._given, strict=True):
            if defaults(function) is not None:
                given.add(function)
            elif count:
                without.append(function)

    def hold(self) -> bool:
        """Return whether all functions are as they were."""
        if list(map(_CODE, self.functions)) != self._codes:
            return False
        for defaults, without, given in zip(_DEFAULTS, self._without, self._given):  # noqa: B905 (a look less)
            if list(map(defaults, without)).count(None) != len(without) or (given.objects and not given.hold()):
                return False
        return True


class Cells:
    """Cells of closures, each of which must hold what it held, or still be empty.

    Attributes:
        cells: The cells.
    """

    def __init__(self) -> None:
        self.cells: list[CellType] = []
        self._values: list[Any] = []

    def add(self, cell: CellType) -> Any:
        """Add a cell; return what it holds, GONE if it is empty."""
        value = cell_value(cell)
        self.cells.append(cell)
        self._values.append(value)
        return value

    def hold(self) -> bool:
        """Return whether all cells hold the very objects that they held."""
        try:
            return all(map(is_, map(_CONTENTS, self.cells), self._values))
        except ValueError:  # one is empty
            return all(map(is_, map(cell_value, self.cells), self._values))

    def restore(self) -> None:
        """Put back what the cells held."""
        for cell, value in zip(self.cells, self._values, strict=True):
            put_cell(cell, value)
