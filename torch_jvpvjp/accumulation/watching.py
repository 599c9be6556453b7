"""Places that are watched: looked at in every call, and put back as they were."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from operator import attrgetter, is_
from types import CellType
from typing import Any

from . import places
from ._torch import dict_versions
from .arrays import MOST_BYTES, Arrays
from .cache import ATTRIBUTE
from .entries import Attributes, Cells, DictEntries, Entries, Facts, Functions, Names
from .places import GONE, refill

_MOST_PLACES = 50_000


class Opaque(Exception):  # noqa: N818 (an answer, not an error)
    """A function refers to something that no guard can watch; the message says what."""


class Watching:
    """Places of several kinds, by how they are looked at in every call, with what stands there now.

    They are entries of a dict, all or those of some names, of a mapping of another kind, arrays, and anything else.
    """

    def __init__(self) -> None:
        self._dicts, self._fixed, self._mappings = DictEntries(), DictEntries(), Entries()  # fixed: only read by us
        self._attributes, self._names, self._cells = Attributes(), Names(), Cells()
        self._functions, self._arrays = Functions(), Arrays()
        self._kinds, self._lineages = Facts(type), Facts(attrgetter("__mro__"))
        self._puts: list[Callable[[], object]] = []  # what puts back what stood in other places
        self._looks: list[tuple[Callable[[], Any], Any]] = []
        self._empty: list[Any] = []  # containers that were empty, as most of a module's are
        self._known: list[int] | None = None  # the versions of all plain dicts when they were last found to hold
        self._count = 0

    def hold(self) -> bool:
        """Return whether everything is as it was.

        A frame of Python takes as long as ten comparisons in C where other work ran before: nothing is asked in vain.
        """
        if any(self._empty) or not self._dicts_hold():
            return False
        if (self._cells.cells and not self._cells.hold()) or (self._functions.functions and not self._functions.hold()):
            return False
        if (self._kinds.objects and not self._kinds.hold()) or (self._lineages.objects and not self._lineages.hold()):
            return False
        if (self._mappings.mappings and not self._mappings.hold()) or (self._arrays.arrays and not self._arrays.hold()):
            return False
        for look, before in self._looks:  # noqa: SIM110 (a generator is a frame more)
            if look() is not before:
                return False
        return True

    def _dicts_hold(self) -> bool:
        """Return whether all plain dicts hold what they held, as they do where nobody has written into any."""
        versions = dict_versions(
            self._dicts.mappings + self._attributes.dicts + self._names.scopes + self._fixed.mappings
        )
        if versions is not None and versions == self._known:
            return True
        same = self._dicts.hold() and self._attributes.hold() and self._names.hold() and self._fixed.hold()
        self._known = versions if same else None
        return same

    def restore(self) -> None:
        """Put back what stood in all places that can be written into."""
        for container in self._empty:
            if isinstance(container, (dict, list, set, deque)):
                container.clear()
        self._dicts.restore()
        self._attributes.restore()
        self._names.restore()
        self._cells.restore()
        self._mappings.restore()
        self._arrays.restore()
        for put in self._puts:
            put()

    def __len__(self) -> int:
        return self._count

    def _visit(self, value: Any) -> None:
        """Watch what a value refers to."""
        raise NotImplementedError

    def _counted(self, more: int) -> None:
        self._count += more
        if self._count > _MOST_PLACES:
            raise Opaque("more than a guard can watch")

    def _look(self, look: Callable[[], Any], put: Callable[[Any], object] | None = None) -> Any:
        """Watch a place, and return what stands there."""
        value = look()
        self._looks.append((look, value))
        if put is not None:
            self._puts.append(partial(put, value))
        self._counted(1)
        return value

    def _look_once(self, look: Callable[[], Any]) -> None:
        if not any(known is look for known, _ in self._looks):
            self._looks.append((look, look()))

    def _watch(self, look: Callable[[], Any], put: Callable[[Any], object] | None = None) -> None:
        """Watch a place, and visit what stands there."""
        self._visit(self._look(look, put))

    def _watch_mapping(self, mapping: Mapping[Any, Any], visited: Iterable[Any] | None = None) -> None:
        """Watch all entries of a mapping, and visit the values of all or some."""
        if not mapping:
            self._empty.append(mapping)
            return
        (self._dicts if type(mapping) is dict else self._mappings).add(mapping)
        self._counted(len(mapping))
        for key in mapping if visited is None else visited:
            self._visit(key)
            self._visit(mapping[key])

    def _watch_class(self, kind: type, visited: Iterable[str]) -> None:
        """Watch all attributes of a class, and visit some."""
        members = vars(kind)
        self._puts.append(partial(places.put_class, kind, dict(members)))
        self._fixed.add(places.dict_behind(members))
        self._lineages.add(kind)
        self._counted(len(members))
        for name in visited:
            self._visit(members[name])

    def _watch_attributes(self, attributes: dict[str, Any], others: frozenset[str] = frozenset()) -> None:
        """Watch attributes, but for some that come and go: plans that are kept among them, and others."""
        values = self._attributes.add(attributes, others | {ATTRIBUTE})
        self._counted(len(values))
        for value in values:
            self._visit(value)

    def _watch_container(self, container: Any) -> None:
        """Watch the members of a container, and visit them."""
        if not container:
            if not isinstance(container, (tuple, frozenset)):
                self._empty.append(container)
            return
        members = list(container)
        if isinstance(container, (list, set, deque)):
            self._looks.append((lambda: len(container) == len(members) and all(map(is_, container, members)), True))
            self._puts.append(partial(refill, container, members))
        self._counted(len(members))
        for member in members:
            self._visit(member)

    def _watch_array(self, array: Any) -> None:
        if self._arrays.size + array.nbytes > MOST_BYTES:
            raise Opaque(f"NumPy arrays of more than {MOST_BYTES:,} bytes")
        self._arrays.add(array)

    def _watch_cached(self, cached: Any) -> None:
        """Watch what an `lru_cache` has computed; its results are those that it had, until it computes one anew."""
        self._look(partial(places.misses, cached), partial(places.forget, cached))
        kept, results = places.results_of(cached)
        self._looks.append((partial(places.holds_entries, kept, dict(kept)), True))
        self._counted(len(kept))
        for result in results:
            self._visit(result)
        self._visit(cached.__wrapped__)

    def _look_into(self, cell: CellType) -> Any:
        """Watch what a cell holds; return it."""
        self._counted(1)
        return self._cells.add(cell)

    def _look_up(self, scope: Any, name: str) -> Any:
        """Watch what stands under a name, or that nothing does; return it."""
        if self._names.add(scope, name):
            self._counted(1)
        return scope.get(name, GONE)
