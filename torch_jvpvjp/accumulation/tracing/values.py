"""What values of a tape are at the point of its recording, for a function that looks at them on its way.

The recording runs on tensors without data. Where f asks for a value (`if y.norm() > 1`, `while`, `int(n)`), the ops
that make it are run at the point, once each; the answer is a condition of the recording: it is true where the same
question has the same answer, which every call asks anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._torch import is_fake, wraps_transform
from ..rules.indexing import unrecorded
from .intercepted import NotRecordable
from .tape import Tape, TapeOp


class Answers:
    """Answers what a function asks for while it is recorded, and notes it on the tape.

    Args:
        tape: The tape, which grows.
        point: The value of its source.
        varying: Tensors from outside that are others in each call.
    """

    def __init__(self, tape: Tape, point: Tensor, varying: Sequence[Tensor]) -> None:
        self._tape, self._other = tape, {id(tensor) for tensor in varying}
        self._values: dict[int, Tensor] = {tape.source: point}
        self._varies = {tape.source}
        self._makers: dict[int, int] = {}  # the places of the ops that make values
        self._seen = 0  # ops of the tape
        self._asked: set[int] = set()

    def number(self, index: int) -> int | float | complex | bool:
        """The one number that a value holds at the point.

        Args:
            index: The value.

        Returns:
            The number; from now on the recording is for points where it is the same.

        Raises:
            NotRecordable: If it is a fraction that depends on the point, and so another one in each call, or cannot be
                told.
        """
        value = self.value(index)
        whole = not value.is_floating_point() and not value.is_complex()
        if not whole and index in self._varies:
            raise NotRecordable("it hands a fraction that depends on x to Python, as float() does")
        self._note(index, value)
        with unrecorded():
            return value.item()

    def truths(self, index: int) -> Tensor:
        """Where a value is not 0 at the point.

        Args:
            index: The value.

        Returns:
            The value itself; from now on the recording is for points where it is the same.

        Raises:
            NotRecordable: If it is made of fractions, or has more entries than are looked at in each call.
        """
        value = self.value(index)
        if value.is_floating_point() or value.is_complex() or value.numel() > _MOST_TRUTHS:
            raise NotRecordable("it selects entries by fractions, or by too large a mask")
        self._note(index, value)
        return value

    def _note(self, index: int, value: Tensor) -> None:
        if index not in self._asked:
            self._asked.add(index)
            self._tape.conditions.append(index)
            self._tape.outcome.append(value)

    def value(self, index: int) -> Tensor:
        """Return a value at the point."""
        with unrecorded():
            for op in self._missing(index):
                self._run(op)
            return self._values[index]

    def _missing(self, index: int) -> list[TapeOp]:
        """Return the ops that are still to be run for a value, in order."""
        ops = self._tape.ops
        for place in range(self._seen, len(ops)):
            self._makers.update((output, place) for output in ops[place].outputs if output is not None)
        self._seen = len(ops)
        places: set[int] = set()
        stack = [index]
        while stack:
            wanted = stack.pop()
            if wanted in self._values:
                continue
            if wanted in self._tape.constants:
                self._take(wanted)
            elif self._makers[wanted] not in places:
                places.add(self._makers[wanted])
                stack += ops[self._makers[wanted]].operands
        return [ops[place] for place in sorted(places)]

    def _take(self, index: int) -> None:
        constant = self._tape.constants[index]
        if wraps_transform(constant) or is_fake(constant):
            raise NotRecordable("it looks at data, of a tensor whose values are not to be seen")
        self._values[index] = constant.detach()
        if id(constant) in self._other:
            self._varies.add(index)

    def _run(self, op: TapeOp) -> None:
        if op.draws:
            raise NotRecordable("it looks at random numbers")
        varies = not self._varies.isdisjoint(op.operands)
        for index, result in zip(op.outputs, op.call(self._values.__getitem__), strict=True):
            if index is not None and result is not None:
                self._values[index] = result
                if varies:
                    self._varies.add(index)


_MOST_TRUTHS = 100_000


def where_true(mask: Tensor) -> Tensor:
    """Return the indices of the entries of a tensor with data that are not 0, one row for each."""
    with unrecorded():
        return mask.nonzero()


def columns_where_true(mask: Tensor) -> list[Tensor]:
    """Return the same, those along each axis of the mask as a tensor of its own."""
    with unrecorded():
        return [column.contiguous() for column in mask.nonzero().unbind(1)]


def encoded(values: Sequence[Tensor]) -> Tensor:
    """Return whole numbers, and the bits of fractions, as one vector."""
    device = values[0].device
    return torch.cat([_encoded(value).reshape(-1).to(device) for value in values])


def _encoded(value: Tensor) -> Tensor:
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    if not value.is_floating_point():
        return value.to(torch.int64)
    return value.to(torch.float64).contiguous().view(torch.int64)
