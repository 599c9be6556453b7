"""What decides which way a function goes, computed anew at a point to tell whether a recording is for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._torch import inside_transform, is_fake, wraps_transform
from .program import Program, ProgramRecorder
from .tracing.checks import goes_the_same_way, looks_up, values_of
from .tracing.tape import Tape
from .tracing.values import encoded

if TYPE_CHECKING:
    from .tracings import Tracing


def sees_values(tensors: Sequence[Tensor]) -> bool:
    """Return whether the values of some tensors are there and may be looked at."""
    return not inside_transform() and not any(wraps_transform(one) or is_fake(one) for one in tensors)


class Conditions:
    """The conditions of a recording: it is for those points alone where all of them are what they were.

    They are computed by a straight line of ATen calls without the Jacobian, recorded when they are first asked, and
    come as one vector of whole numbers, so that a device is waited for once. A program of the Jacobian may compute them
    beside it.

    On another way an op may not take what it gets, and raise; a GPU that is made to look something up where nothing is
    cannot be used any more. There, such recordings are asked one condition after another.

    Args:
        tape: The recording.
    """

    def __init__(self, tape: Tape) -> None:
        self.outcome = encoded(tape.outcome).cpu()
        self.one_by_one = tape.metas[tape.source].device.type != "cpu" and looks_up(tape)
        self._program: Program | None = None
        self._recorded = False

    def at(self, tracing: Tracing, leaves: Sequence[Tensor], extras: Sequence[Tensor]) -> Tensor | None:
        """What they are at a point.

        Args:
            tracing: The function.
            leaves: The tensors that the Jacobian is taken in.
            extras: The others.

        Returns:
            What they are; None if one is not what it was, and what the others are cannot be told.
        """
        try:
            return self._at(tracing, leaves, extras)
        except (RuntimeError, IndexError):  # of an op on another way; on its own way, f raises it when it is called
            return None

    def _at(self, tracing: Tracing, leaves: Sequence[Tensor], extras: Sequence[Tensor]) -> Tensor | None:
        with torch.no_grad(), torch.inference_mode(mode=False):
            given = [_own(one) for one in (*leaves, *extras)]
            if self.one_by_one:
                source = tracing.subject.source_of(given[: len(leaves)]).contiguous()
                constants = tracing.constants | tracing.given(given[len(leaves) :])
                return self.outcome if goes_the_same_way(tracing.traced.tape, source, constants) else None
            inputs = [*given, *tracing.constants.values()]
            if self._program is not None:
                (found,) = self._program(*inputs)
                return found.cpu()
            if self._recorded:
                return self.computed(tracing, given, len(leaves)).cpu()
            recorder = ProgramRecorder(inputs)
            with recorder:
                found = self.computed(tracing, given, len(leaves))
            if not any(op.opaque for op in tracing.traced.tape.checks):  # whose ops are those of one point
                self._program = recorder.program(recorder.numbers([found]), exact=True)
            self._recorded = True
            return found.cpu()

    @staticmethod
    def computed(tracing: Tracing, given: Sequence[Tensor], count: int) -> Tensor:
        """Return what they are for so many leaves with extras behind them, op by op."""
        tape, source = tracing.traced.tape, tracing.subject.source_of(given[:count])
        constants = tracing.constants | tracing.given(given[count:])
        return encoded(values_of(tape, tape.conditions, source.contiguous(), constants))

    def differ_first(self, found: Tensor) -> int | None:
        """Return the first of them that is not what it was; None if there is none."""
        if torch.equal(found, self.outcome):
            return None
        return int((found != self.outcome).to(torch.uint8).argmax())


def _own(tensor: Tensor) -> Tensor:
    """Return a tensor as the recording takes it, one of its own where it is given twice."""
    tensor = tensor.detach().contiguous()
    return tensor.clone() if tensor.is_inference() else tensor.view_as(tensor)
