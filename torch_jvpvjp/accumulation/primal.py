"""The one primal run of a tape, advanced as far as the derivatives need it, and freed behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._torch import inside_transform
from .bracket import Mode
from .linear_map import LinearMap
from .stages import BlackBox
from .structure import Block, Values
from .tracing.parts import Arc
from .tracing.region import Region
from .tracing.tape import Tape, TapeOp


class OtherValue(ValueError):  # noqa: N818 (an answer, if somebody asks)
    """A black box has returned a tensor of another shape or dtype than where the function was taken apart."""


class PrimalRun:
    """Values of a tape at one point.

    Args:
        tape: The tape.
        regions: Its regions, in order.
        modes: How the derivative of each region will be used.
        x: The point.
        constants: The tensors from outside.
    """

    def __init__(
        self,
        tape: Tape,
        regions: Sequence[Region],
        modes: Sequence[Mode],
        x: Tensor,
        constants: Mapping[int, Tensor],
        *,
        live: bool = False,
    ) -> None:
        self.tape, self.regions, self.modes, self.live = tape, regions, modes, live
        self._values: dict[int, Tensor] = {**constants, tape.source: x}
        self._entries: dict[Arc, Values] = {}
        self._maps: dict[int, LinearMap] = {}
        self._next = 0  # the next op to run
        self._after = layout(tape, regions)
        self._touching = _touching(tape, self._after)
        self._users = Counter(index for touched in self._touching for index in touched)
        self._reached = 0  # regions that were run

    def value(self, index: int) -> Tensor:
        """Return a value that the run has passed."""
        return self._values[index]

    def entries(self, arc: Arc) -> Values:
        """Return the stored entries of a local Jacobian, computed once."""
        if arc not in self._entries:
            self._entries[arc] = arc.local.values(*self._of_call(arc))
        return self._entries[arc]

    def carried(self, arc: Arc, vectors: Tensor, *, forwards: bool) -> Tensor:
        """Return vectors (c, ·) that were pushed, or pulled, through a local Jacobian without its entries."""
        through = arc.local.through
        assert through is not None
        chosen = through if through.final is None or self.live or inside_transform() else through.final
        return (chosen.push if forwards else chosen.pull)(*self._of_call(arc), vectors)

    def _of_call(self, arc: Arc) -> tuple[list[Tensor], list[Tensor]]:
        """Return operands and outputs of the op of a local Jacobian."""
        operands = [self.value(index) for index in arc.op.operands]
        outputs: Any = [self._values.get(index) if index is not None else None for index in arc.op.outputs]
        return operands, outputs

    def advance(self, count: int) -> None:
        """Run up to the end of the first `count` regions."""
        while self._reached < count:
            place = self._reached
            for op in self.tape.ops[self._next : self._after[place]]:
                self._run(op, self.modes[place], place)
            self._next, self._reached = self._after[place], place + 1

    def finish(self) -> Tensor:
        """Return the value y, once the rest was run."""
        self.advance(len(self.regions))
        for op in self.tape.ops[self._next :]:
            self._run(op, Mode.TANGENT, None)
        self._next = len(self.tape.ops)
        return self.value(self.tape.result)

    def push_through(self, place: int, block: Block) -> Block | None:
        """Push a block through a black box that the run has just come to, in one call of it; None elsewhere."""
        op = self.regions[place].parts[0].op
        if not op.opaque or self._reached != place:
            return None
        y, pushed = BlackBox(op.target).push_through(self.value(op.args[0].index), block, live=self.live)
        self._keep(op, y)
        self._next, self._reached = self._after[place], place + 1
        return pushed

    def linear_map(self, place: int) -> LinearMap:
        """Return the recorded derivative of a black box."""
        return self._maps[place]

    def release(self, place: int) -> None:
        """Forget what only this region needed."""
        self._maps.pop(place, None)
        for arc in [arc for part in self.regions[place].parts for arc in part.arcs or ()]:
            self._entries.pop(arc, None)
        for index in self._touching[place]:
            self._users[index] -= 1
            if not self._users[index] and index != self.tape.result:
                self._values.pop(index, None)

    def _run(self, op: TapeOp, mode: Mode, place: int | None) -> None:
        if op.opaque and place is not None:
            y, self._maps[place] = BlackBox(op.target).linearize(self.value(op.args[0].index), mode, live=self.live)
            self._keep(op, y)
            return
        if self.live and op.target is torch.ops.aten.copy.default:
            op = replace(op, target=_copied)
        for index, result in zip(op.outputs, op.call(self.value), strict=True):
            if index is not None and result is not None:
                self._values[index] = result

    def _keep(self, op: TapeOp, y: Tensor) -> None:
        """Keep what a black box has returned, for which all that comes next is known by its sizes."""
        index = op.outputs[0] or 0
        known = self.tape.metas[index]
        if (y.shape, y.dtype) != (known.shape, known.dtype):
            raise OtherValue(
                f"jacobian: {BlackBox(op.target).label} must return what it did when the plan was made, {known.dtype} "
                f"of shape {tuple(known.shape)}, got {y.dtype} of shape {tuple(y.shape)}; make a new plan."
            )
        self._values[index] = y


def _copied(values: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:  # noqa: FBT001, FBT002 (as the op)
    """Return what `aten.copy` does, which autograd has no derivative of: it stands for `copy_` on a tape."""
    moved = source.to(values.device, values.dtype, non_blocking=non_blocking)
    return moved.expand(values.shape).clone(memory_format=torch.contiguous_format)


def layout(tape: Tape, regions: Sequence[Region]) -> list[int]:
    """Return, for each region, the number of ops of the tape up to its end."""
    place_of = {id(op): place for place, op in enumerate(tape.ops)}
    return [place_of[id(region.parts[-1].op)] + 1 for region in regions]


def _touching(tape: Tape, after: Sequence[int]) -> list[set[int]]:
    """Return the values that each region makes or uses; constants and what runs after the last region are kept."""
    kept = set(tape.constants) | {index for op in tape.ops[after[-1] if after else 0 :] for index in op.operands}
    touched: list[set[int]] = []
    begin = 0
    for end in after:
        ops = tape.ops[begin:end]
        indices = {index for op in ops for index in (*op.operands, *op.outputs) if index is not None}
        touched.append(indices - kept)
        begin = end
    return touched
