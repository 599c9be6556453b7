"""Copies of copies, each read from what the first is a copy of; and copies that read in the order of memory.

    clone(view(clone(x)))                  becomes    clone(view'(x)),    as do the members of a stack,
    clone(permute(stack(x_1, x_2, …)))     becomes    stack(permute'(x_1), permute'(x_2), …),
    clone(expand(permute(x)))              becomes    clone(expand(clone(permute(x)))),

the last since a transposed matrix is transposed once then, and not for each of the copies that are made of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layout, Layouts

_aten = torch.ops.aten


class _Place(NamedTuple):
    """Where, in a tensor, the entries are that a view of a copy of it shows."""

    split: list[int]  # the sizes of its axes, some taken apart
    chosen: list[int | None]  # of each of these the one place that is seen; None for all
    order: list[int]  # the axes that are seen, as the view has them


def without_double_copies(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls in which no copy is of a copy; what nothing uses any longer is still among them.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
    """
    return _Copies(calls, results, layouts, new_value).found


class _Copies:
    def __init__(
        self, calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
    ) -> None:
        self.layouts, self.new_value = layouts, new_value
        self.makers = {index: call for call in calls for index in call.outputs if index is not None}
        self.uses = Counter(index for call in calls for index in call.operands) + Counter(results)
        self.roots: dict[int, int] = {}
        self.found: list[ProgramCall] = []
        for call in calls:
            if call.target.is_view:
                root = self.roots.get(call.operands[0], call.operands[0])
                self.roots |= {index: root for index in call.outputs if index is not None}
            self._add(call)

    def _add(self, call: ProgramCall) -> None:
        if _is_copy(call):
            (operand,) = call.operands
            if not (self._stacked(call, operand) or self._expanded(call, operand)):
                args = (Ref(self._source(operand, call.segment)),)
                self.found.append(ProgramCall(call.target, args, call.kwargs, call.outputs, call.segment))
        elif call.target is _aten.stack.default:
            members = [Ref(self._source(ref.index, call.segment)) for ref in call.args[0]]
            self.found.append(
                ProgramCall(call.target, (members, *call.args[1:]), call.kwargs, call.outputs, call.segment)
            )
        else:
            self.found.append(call)

    def _run(self, segment: int, target: Any, *args: Any, **kwargs: Any) -> int:
        call = ProgramCall(target, args, kwargs, [self.new_value()], segment)
        self.layouts.add(call)
        self.found.append(call)
        index = call.outputs[0] or 0
        self.makers[index] = call
        if target.is_view:
            (value,) = call.operands
            self.roots[index] = self.roots.get(value, value)
        return index

    def _source(self, index: int, segment: int) -> int:
        """Return a view of what a value is a copy of, with the same entries; the value itself if there is none."""
        root = self.roots.get(index, index)
        copy = self.makers.get(root)
        if copy is None or not _is_copy(copy) or not self.layouts[root].contiguous:
            return index
        place = _place(self.layouts[index], self.layouts[root])
        if place is None:
            return index
        value = copy.operands[0]
        if place.split != list(self.layouts[value].shape):
            value = self._run(segment, _aten.view.default, Ref(value), place.split)
        for axis in reversed(range(len(place.chosen))):
            if place.chosen[axis] is not None:
                value = self._run(segment, _aten.select.int, Ref(value), axis, place.chosen[axis])
        if place.order != sorted(place.order):
            value = self._run(segment, _aten.permute.default, Ref(value), place.order)
        return self._source(value, segment)  # which may be a copy in turn

    def _stacked(self, call: ProgramCall, operand: int) -> bool:
        permuted = self.makers.get(operand)
        stack = self.makers.get(permuted.operands[0]) if permuted is not None else None
        if stack is None or permuted is None or permuted.target is not _aten.permute.default:
            return False
        if stack.target is not _aten.stack.default or self.uses[stack.outputs[0] or 0] > 1 or self.uses[operand] > 1:
            return False
        rank = len(self.layouts[operand].shape)
        order = [axis % rank for axis in permuted.args[1]]
        axis = (stack.args[1] if len(stack.args) > 1 else 0) % rank
        inner = [one - (one > axis) for one in order if one != axis]
        members = [
            Ref(self._run(call.segment, _aten.permute.default, Ref(self._source(ref.index, call.segment)), inner))
            for ref in stack.args[0]
        ]
        made = ProgramCall(_aten.stack.default, (members, order.index(axis)), {}, call.outputs, call.segment)
        self.found.append(made)
        self.makers[call.outputs[0] or 0] = made
        return True

    def _expanded(self, call: ProgramCall, operand: int) -> bool:
        expand = self.makers.get(operand)
        if expand is None or expand.target is not _aten.expand.default:
            return False
        (base,) = expand.operands
        before = self.layouts[base]
        if before.contiguous or before.repeats or 2 * before.numel > self.layouts[operand].numel:
            return False
        whole = self._run(call.segment, _aten.clone.default, Ref(base), memory_format=torch.contiguous_format)
        again = self._run(call.segment, _aten.expand.default, Ref(whole), *expand.args[1:])
        self.found.append(ProgramCall(call.target, (Ref(again),), call.kwargs, call.outputs, call.segment))
        return True


def _is_copy(call: ProgramCall) -> bool:
    """Return whether a call copies all of a tensor into memory that is contiguous."""
    return call.target is _aten.clone.default and call.kwargs.get("memory_format") is torch.contiguous_format


def _place(view: Layout, copy: Layout) -> _Place | None:
    """Return where the entries of a view of a contiguous tensor are among its axes; None if axes do not tell.

    Args:
        view: Shape, strides and offset in the memory of the tensor.
        copy: Of the tensor.
    """
    if view.repeats or view.dtype is not copy.dtype or any(view.twisted) or any(copy.twisted) or not view.numel:
        return None
    sizes, strides = list(copy.shape), list(copy.stride)
    # the axes of the view by the axis of the tensor that each runs along, with their strides there
    along: list[list[tuple[int, int, int]]] = [[] for _ in sizes]
    for number, (size, stride) in enumerate(zip(view.shape, view.stride, strict=True)):
        if size == 1:
            return None
        axes = [a for a, s in enumerate(strides) if sizes[a] > 1 and s <= stride < s * sizes[a]]
        if len(axes) != 1 or stride % strides[axes[0]]:
            return None
        along[axes[0]].append((stride // strides[axes[0]], size, number))
    split: list[int] = []
    chosen: list[int | None] = []
    seen: list[int] = []  # axes of the view, in the order of the tensor
    for axis, parts in enumerate(along):
        at = (view.offset - copy.offset) // strides[axis] % sizes[axis] if sizes[axis] > 1 else 0
        if not parts:
            split.append(sizes[axis])
            chosen.append(at)
            continue
        rest = sizes[axis]
        for step, size, number in sorted(parts, reverse=True):
            if step * size != rest:
                return None
            rest = step
            split.append(size)
            chosen.append(None)
            seen.append(number)
        if at or rest != 1:
            return None
    return _Place(split, chosen, [seen.index(number) for number in range(len(view.shape))])
