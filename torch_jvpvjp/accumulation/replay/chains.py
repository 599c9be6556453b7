"""What each value of a program is a view of, and whether it is there for that alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from ..calls import ProgramCall
from .axes import RESHAPING, TURNING, Form, moved, whole
from .layout import Layout


class Chains:
    """The values of a program, by what they are views of.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory.

    Attributes:
        makers: The call that makes a value.
        places: Where it is among the calls.
        uses: How often a value is used or returned.
    """

    def __init__(self, calls: Sequence[ProgramCall], results: Sequence[int], layouts: Mapping[int, Layout]) -> None:
        self._layouts = layouts
        self.uses = Counter(index for call in calls for index in call.operands) + Counter(results)
        self.makers: dict[int, ProgramCall] = {}
        self.places: dict[int, int] = {}
        for place, call in enumerate(calls):
            for index in call.outputs:
                if index is not None:
                    self.makers[index], self.places[index] = call, place

    def below(self, index: int) -> Form:
        """Return the form of a value as a view of one that is none; of the value itself where axes do not tell."""
        call = self.makers.get(index)
        form = None
        if call is not None and call.target in RESHAPING | TURNING:
            form = moved(self.below(call.operands[0]), call, self._layouts[index].shape)
        return whole(index, self._layouts[index].shape) if form is None else form

    def alone(self, index: int) -> ProgramCall | None:
        """Return what makes the value that another is a view of; None if anything else needs that value."""
        base = self.below(index).values[0]
        while self.uses[index] == 1 and index in self.makers:
            if index == base:
                return self.makers[index]
            (index,) = self.makers[index].operands
        return None
