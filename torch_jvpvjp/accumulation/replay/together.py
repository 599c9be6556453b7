"""Horizontal batching: groups of like calls of a program are run as one call each.

An RNN of 200 steps has 200 slopes, 200 scaled weights and 100 products of two neighbours, each a small call that does
not wait for another; stacked, each of these is one call. What a call gives stays in its stack as long as whoever uses
it takes it from there: whole, or every so many of it.

Source: Looks, Herreshoff, Hutchins and Norvig (2017), Deep Learning with Dynamic Computation Graphs; Neubig, Goldberg
and Dyer (2017), On-the-fly Operation Batching in Dynamic Computation Graphs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import ProgramCall, without_repetitions, without_unused
from ..tracing.tape import Ref
from .alike import Group, alike_groups, in_order
from .layout import Layouts, layout_of
from .relaid import laid_out, looks_at_memory
from .side_by_side import Stacked, in_one_call

_aten = torch.ops.aten


@dataclass(frozen=True)
class Worth:
    """When calls are worth running as one.

    Attributes:
        launch_bytes: Bytes that are moved in the time that a launch takes.
        most_bytes: Bytes of all stacks together.
        least: Calls that make a group.
    """

    launch_bytes: float
    most_bytes: int = 1 << 26
    least: int = 4

    @staticmethod
    def on(device: torch.device, dtype: torch.dtype) -> Worth:
        """Return when they are on a device."""
        from ..timing.current import device_model

        model = device_model(device, dtype)
        return Worth(model.launch * model.traffic.at(16 * 2**20))


class Together(NamedTuple):
    """A program in which like calls are one."""

    calls: list[ProgramCall]
    fixed: dict[int, Tensor]  # values it uses that are the same in every run, besides those before


def run_together(
    calls: Sequence[ProgramCall],
    results: Sequence[int],
    layouts: Layouts,
    new_value: Callable[[], int],
    worth: Worth,
) -> Together | None:
    """Run groups of like calls as one call each.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How the values lie in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
        worth: When that is worth it.

    Returns:
        The program, in which every value that is used has the number that it had; None if nothing is gained.
    """
    if any(map(looks_at_memory, calls)):
        return None
    groups = alike_groups(calls, layouts, worth.least, 4 * worth.launch_bytes)
    best: _Stacking | None = None
    while groups:
        attempt = _attempt(calls, groups, results, _Stacking(calls, layouts, new_value, worth))
        apart = attempt.taken_apart()
        if apart:
            attempt = _attempt(calls, groups, results, _Stacking(calls, layouts, new_value, worth, apart))
        if best is not None and attempt.gain <= best.gain:
            break
        best = attempt
        # What joined groups lose in all is lost; a group that loses by itself may be what others win by.
        bad = _losing_together(calls, attempt.gains) or {group for group, gain in attempt.gains.items() if gain <= 0}
        groups = [group for group in attempt.gains if group not in bad]
    if best is None or best.gain <= 0:
        return None
    # Parts of a stack are taken anew for each group. A result keeps its number, and its memory.
    once, same = without_repetitions(best.calls, results)
    found = without_unused(once if list(same) == list(results) else best.calls, results)
    try:
        return Together(_laid_out(found, layouts), best.fixed)
    except RuntimeError:  # an op that does not run without data
        return None


def _laid_out(calls: Sequence[ProgramCall], layouts: Layouts) -> list[ProgramCall]:
    """Return calls with a reshape for each view that no longer is one: a value lies in a stack as the stack lies."""
    moved: set[int] = set()
    again: list[ProgramCall] = []
    for call in calls:
        taken = call.target in {_aten.select.int, _aten.unbind.int}
        again.append(laid_out(call, layouts, moved) if taken or not moved.isdisjoint(call.operands) else call)
    return again


def _attempt(
    calls: Sequence[ProgramCall], groups: Collection[Group], results: Sequence[int], stacking: _Stacking
) -> _Stacking:
    for item in in_order(calls, groups):
        stacking.add(item)
    for index in results:
        stacking.alone(index)
    return stacking


def _losing_together(calls: Sequence[ProgramCall], gains: Mapping[Group, float]) -> set[Group]:
    """Return the groups that hang together, by values that one makes for another, and gain nothing in all."""
    maker = {index: group for group in gains for place in group for index in calls[place].outputs}
    joined = {group: {group} for group in gains}
    for group in gains:
        for other in {maker[index] for place in group for index in calls[place].operands if index in maker}:
            if joined[other] is not joined[group]:
                joined[group] |= joined[other]
                for member in joined[other]:
                    joined[member] = joined[group]
    return {group for group, whole in joined.items() if sum(gains[member] for member in whole) <= 0}


class _Place(NamedTuple):
    """Where a value is in a stack."""

    stack: int
    at: int


class _Stacking:
    """One attempt, with what each group gains, in launches.

    Args:
        calls: The program.
        layouts: How the values lie in memory.
        new_value: Makes the number of another value.
        worth: When what is worth it.
        apart: Groups whose stacks are taken apart at once, as so many of their values are needed by themselves.
    """

    def __init__(
        self,
        calls: Sequence[ProgramCall],
        layouts: Layouts,
        new_value: Callable[[], int],
        worth: Worth,
        apart: Collection[Group] = (),
    ) -> None:
        self.given, self.layouts, self.new_value, self.worth = calls, layouts, new_value, worth
        self._apart, self._singles = set(apart), Counter[Group]()
        self.calls: list[ProgramCall] = []
        self.fixed: dict[int, Tensor] = {}
        self.gains: dict[Group, float] = {}
        self._places: dict[int, _Place] = {}
        self._only_in_stacks: dict[int, Group] = {}
        self._stacks: dict[tuple[int, ...], int] = {}
        self._held = 0

    @property
    def gain(self) -> float:
        """Launches that are spared in all."""
        return sum(self.gains.values())

    def taken_apart(self) -> set[Group]:
        """Return the groups whose stacks are better taken apart at once than value by value."""
        return {group for group, count in self._singles.items() if count > _APART * len(group)}

    def add(self, item: Group) -> None:
        """Run the calls at some places, as one if there are several."""
        if len(item) == 1 or not self._as_one(item):
            for place in item:
                self._alone_call(self.given[place])

    def _alone_call(self, call: ProgramCall) -> None:
        for index in call.distinct:
            self.alone(index)
        self.calls.append(call)
        # What is taken from a tensor piece by piece along its first axis is in a stack already: the tensor.
        if call.target is _aten.unbind.int and (call.args[1:] or (0,)) == (0,) and not call.kwargs:
            whole = call.operands[0]
            self._places |= {i: _Place(whole, at) for at, i in enumerate(call.outputs) if i is not None}
        elif call.target is _aten.select.int and not call.kwargs and call.args[1] == 0 and call.args[2] >= 0:
            self._places[call.outputs[0] or 0] = _Place(call.operands[0], call.args[2])

    def alone(self, index: int) -> None:
        """See to it that a value is there by itself."""
        group = self._only_in_stacks.pop(index, None)
        if group is not None:
            stack, at = self._places[index]
            segment = self.given[group[0]].segment
            self.calls.append(ProgramCall(_aten.select.int, (Ref(stack), 0, at), {}, [index], segment))
            self.gains[group] -= 1
            self._singles[group] += 1

    def _as_one(self, group: Group) -> bool:
        first = self.given[group[0]]
        rows = [self.given[place].distinct for place in group]
        columns = [tuple(column) for column in zip(*rows, strict=True)]
        stacks = [len(set(column)) > 1 for column in columns]
        out = self.layouts[first.outputs[0] or 0]
        member = sum(
            self.layouts[column[0]].numel for column, is_stack in zip(columns, stacks, strict=True) if is_stack
        )
        held = (member + out.numel) * out.dtype.itemsize * len(group)
        if self._held + held > self.worth.most_bytes or not any(stacks):
            return False
        self.gains[group] = len(group) - 1.0
        values = [
            self._stack(column, group) if is_stack else self._shared(column[0])
            for column, is_stack in zip(columns, stacks, strict=True)
        ]
        stacked = Stacked(
            first.pattern,
            len(group),
            values,
            stacks,
            [self.layouts[column[0]].shape for column in columns],
            out.shape,
            self.layouts,
            self.new_value,
            self.given[group[-1]].segment,
            [],
        )
        made = in_one_call(stacked)
        if made is None:
            del self.gains[group]
            return False
        self._held += held
        self.calls += stacked.made
        self.gains[group] -= len(stacked.made) - 1
        for at, place in enumerate(group):
            index = self.given[place].outputs[0] or 0
            self._places[index], self._only_in_stacks[index] = _Place(made.index, at), group
        if group in self._apart:
            outputs = [self.given[place].outputs[0] for place in group]
            self.calls.append(ProgramCall(_aten.unbind.int, (made,), {}, outputs, stacked.segment))
            self.gains[group] -= _APART * len(group)
            for index in outputs:
                self._only_in_stacks.pop(index or 0)
        return True

    def _shared(self, index: int) -> int:
        self.alone(index)
        return index

    # ---- operands of a group, stacked ------------------------------------------------------------------------------

    def _stack(self, column: tuple[int, ...], group: Group) -> int:
        """Return the stack of some values, made if there is none."""
        known = self._stacks.get(column)
        if known is None:
            known = self._stacks[column] = self._made(column, group)
        return known

    def _made(self, column: tuple[int, ...], group: Group) -> int:
        runs = _runs([self._places.get(index) for index in column])
        if len(runs) == 1 and runs[0].stack is not None:
            return self._taken(runs[0], group)
        layout = self.layouts[column[0]]
        self.gains[group] -= len(column) * layout.numel * layout.dtype.itemsize / self.worth.launch_bytes
        stacks = {run.stack for run in runs}
        if len(stacks) == 1 and None not in stacks:
            return self._looked_up(column, group)
        if 2 * len(runs) <= len(column):
            pieces = [self._piece(run, column, group) for run in runs]
            return self._run(group, _aten.cat.default, [Ref(piece) for piece in pieces])
        for index in column:
            self.alone(index)
        self.gains[group] -= _LISTED * len(column)
        return self._run(group, _aten.stack.default, [Ref(index) for index in column])

    def _piece(self, run: _Run, column: Sequence[int], group: Group) -> int:
        if run.stack is not None:
            return self._taken(run, group)
        index = column[run.first]
        self.alone(index)
        return self._run(group, _aten.unsqueeze.default, Ref(index), 0)

    def _taken(self, run: _Run, group: Group) -> int:
        """Return every so many of a stack."""
        stack = run.stack
        assert stack is not None
        if run.length == self.layouts[stack].shape[0]:
            return stack
        return self._run(
            group, _aten.slice.Tensor, Ref(stack), 0, run.at, run.at + run.step * (run.length - 1) + 1, run.step
        )

    def _looked_up(self, column: Sequence[int], group: Group) -> int:
        places = [self._places[index] for index in column]
        number = self.new_value()
        self.fixed[number] = torch.tensor([place.at for place in places], device=self.layouts[column[0]].device)
        self.layouts[number] = layout_of(self.fixed[number])
        return self._run(group, _aten.index_select.default, Ref(places[0].stack), 0, Ref(number))

    def _run(self, group: Group, target: Any, *args: Any) -> int:
        call = ProgramCall(target, args, {}, [self.new_value()], self.given[group[-1]].segment)
        self.layouts.add(call)
        self.calls.append(call)
        self.gains[group] -= 1
        return call.outputs[0] or 0


_APART = 0.7
"""Launches that one of the tensors takes that a stack is taken apart into."""
_LISTED = 0.1
"""Launches that one more tensor in a list takes."""


class _Run(NamedTuple):
    """Values that follow one another in a stack at equal steps; or one that is in none."""

    first: int  # among the values
    length: int
    stack: int | None
    at: int = 0
    step: int = 1


def _runs(places: Sequence[_Place | None]) -> list[_Run]:
    """Return values as few runs, from the left."""
    runs: list[_Run] = []
    for first, place in enumerate(places):
        last = runs[-1] if runs else None
        if place is None:
            runs.append(_Run(first, 1, None))
            continue
        if last is not None and last.stack == place.stack:
            step = place.at - last.at if last.length == 1 else last.step
            if step > 0 and place.at == last.at + step * last.length:
                runs[-1] = last._replace(length=last.length + 1, step=step)
                continue
        runs.append(_Run(first, 1, place.stack, place.at))
    return runs
