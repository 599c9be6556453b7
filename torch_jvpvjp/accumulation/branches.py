"""The ways that a function goes by what it sees at a point, each recorded, and which of them is that of a call.

A recording notes what the function looked at, in order. Up to the first answer that is another one two recordings of a
function are the same ops, so where one is not for a point, its answers there tell which of the others may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .cache import Spent
from .conditions import sees_values

if TYPE_CHECKING:
    from ._torch_autograd import Recording
    from .tracings import Tracing

_MOST = 16  # ways that are kept
_HOPEFUL, _MOST_UNASKED = 8, 64  # after so many calls in a row in new ways up to so many are not asked
MOST_KEPT = 32  # recordings of a function, for tensors of other kinds each
_OF_ANY = 10.0  # ops that take as long to plan as what any plan takes
AT_ONCE = 2  # ways that are recorded beside the first before calls must have paid for one


class Branches:
    """The recordings of a function for tensors of one kind, the one that was used last in front.

    A new way is recorded once calls that are not have taken as long as the last recording with its plan did; twice as
    long each time where that was not used since, so that a function which never goes the same way twice takes hardly
    longer than as it stands. Where calls that are not recorded say what autograd has seen, those of one way alone pay
    for it: as with renting or buying, a function of a few ways takes at most about twice the best, and one that goes
    another way each time is recorded no more.

    Args:
        first: The first recording.
        record: Records the function at x, or says of it why it is called as it stands.
        at_once: How many ways are recorded beside the first before calls must have paid for one.
        apart: Whether calls in ways that are not recorded are not made here, but told by `went`.

    Attributes:
        unrecorded: The function as it stands, for ways that are not recorded.
    """

    def __init__(self, first: Tracing, record: Callable[..., Tracing], at_once: int, *, apart: bool = False) -> None:
        self._found: tuple[Tracing, ...] = (first,)
        self._apart, self._spent = apart, Spent()
        self._record, self._at_once = record, at_once
        self.unrecorded: Tracing | None = None
        self._made, self._last = 0, first
        self._used, self._patience = True, 1.0
        self._misses = self._unasked = 0  # calls in a row in new ways, and for how many more it is not asked which
        self.paid = 0.0  # seconds of calls in ways that are not recorded, since the last recording

    def of(self, x: Any) -> Tracing | None:
        """Return the function as it goes at x, which is recorded there if it is worth it; None if a call is apart."""
        if not sees_values([leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]):
            unseen = (one for one in self._found if one.traced.tape.looks_to_raise and one.holds())
            return next(unseen, None) or self.as_it_stands(x)
        if self._unasked:
            self._unasked -= 1
            return None if self._apart else self.as_it_stands(x)
        self._found = tuple(one for one in self._found if one.holds())
        found = self._at(x)
        self._used = self._used or found is self._last
        self._misses = self._misses + 1 if found is None else 0
        if found is None and self._affords:
            found = self._recorded(x)
            if found.traced.opaque and found.conditions is None:  # a way that cannot be recorded
                self.unrecorded = found
                return found
        if found is None:
            self._unasked = min(self._misses - _HOPEFUL, _MOST_UNASKED) if self._misses > _HOPEFUL else 0
            return None if self._apart else self.as_it_stands(x)
        self._put_in_front(found)
        return found

    def went(self, x: Any, recording: Recording, seconds: float) -> None:
        """Take note of a call at x that was made apart, and record the way that it went if calls have paid for it."""
        spent = self._spent.add(recording.way, seconds)
        # Beside what it takes for any way, planning takes more than in proportion to the ops.
        longer = max((recording.nodes + _OF_ANY) / (self._last.traced.tape.differentiated + _OF_ANY), 1.0)
        if spent > self._patience * longer**2 * self._last.seconds:
            self._spent.forget(recording.way)
            found = self._recorded(x)
            if not (found.traced.opaque and found.conditions is None):
                self._put_in_front(found)
                self._misses = self._unasked = 0

    def _recorded(self, x: Any) -> Tracing:
        self._patience = 1.0 if self._used else 2 * self._patience
        self._used = False
        self._last = self._record(x)
        self._made, self.paid = self._made + 1, 0.0
        return self._last

    def _put_in_front(self, found: Tracing) -> None:
        if self._found and self._found[0] is found:
            found.in_a_row += 1
        else:
            found.in_a_row = 0
            self._found = (found, *(one for one in self._found if one is not found))[:_MOST]

    @contextmanager
    def paying(self, tracing: Tracing) -> Iterator[None]:
        """Count the seconds of a call of the function as it stands, or of one that belongs to a recording."""
        begin, is_new = perf_counter(), tracing.program is None
        yield
        seconds = perf_counter() - begin
        if tracing is self.unrecorded:
            self.paid += seconds
        elif is_new:  # the first call records what later ones replay
            tracing.seconds += seconds

    @property
    def _affords(self) -> bool:
        if self._apart:  # what is called apart pays by its way
            return not self._found
        return not self._found or self._made < self._at_once or self.paid > self._patience * self._last.seconds

    def _at(self, x: Any) -> Tracing | None:
        if not self._found:
            return None
        left = list(self._found)
        leaves, extras = left[0].subject.bind_leaves(x)
        while left:
            tracing = left.pop(0)
            if tracing.conditions is None:  # it does not look at data any more
                return tracing
            seen = tracing.conditions.at(tracing, leaves, extras)
            if seen is None:
                continue
            place = tracing.conditions.differ_first(seen)
            if place is None:
                return tracing
            left = [one for one in left if _may_be(one, seen[: place + 1])]
        return None

    def as_it_stands(self, x: Any) -> Tracing:
        """Return the function as a black box."""
        if self.unrecorded is None or not self.unrecorded.holds():
            self.unrecorded = self._record(x, "it goes another way by what it sees in most calls")
        return self.unrecorded


def _may_be(tracing: Tracing, seen: Tensor) -> bool:
    known = tracing.conditions
    return known is None or torch.equal(known.outcome[: len(seen)], seen)


def kind_of(x: Any) -> Any:
    """Return what the recordings of a function are kept by: dtypes and devices of its arguments."""
    return tuple((leaf.dtype, leaf.device) for leaf in tree_leaves(x) if isinstance(leaf, Tensor))
