"""Arithmetic that changes nothing, or that one op does.

1 · x,  x / 1,  x¹                                    become    x, for a tensor of ones too
stack(x)                                              becomes   a copy of x with one more axis, which may be idle
x + convolution(y, 0)                                 becomes   x, which is what forward mode makes of constant weights
(…, view(s, (1,))) of a number s                      becomes   (…, s)
Σ_i select_backward(x_i, i) over all places i         becomes   stack(x_1, …, x_n)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._torch import FakeTensor
from ..calls import ProgramCall, without_unused
from ..tracing.tape import Ref
from .layout import Layout, Layouts
from .relaid import laid_out, looks_at_memory

_aten = torch.ops.aten
_BY_ONE = frozenset({_aten.mul.Tensor, _aten.div.Tensor, _aten.pow.Tensor_Scalar})
_BROADCAST = frozenset({_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor, _aten.div.Tensor})
_CONVOLUTION = _aten.convolution.default


def zero_weights(calls: Sequence[ProgramCall], fixed: Mapping[int, Tensor]) -> set[int]:
    """Return the weights and biases of convolutions that are fixed, have data, and are zero throughout."""
    used = {index for call in calls if call.target is _CONVOLUTION for index in call.operands[1:]} & fixed.keys()
    return {index for index in used if not isinstance(fixed[index], FakeTensor) and not fixed[index].any()}


def unit_factors(calls: Sequence[ProgramCall], fixed: Mapping[int, Tensor]) -> set[int]:
    """Return the factors of products that are fixed, have data, and are one throughout."""
    used = {index for call in calls if _is_product(call) for index in call.operands} & fixed.keys()
    return {index for index in used if not isinstance(fixed[index], FakeTensor) and bool((fixed[index] == 1).all())}


def without_idle_arithmetic(
    calls: Sequence[ProgramCall],
    results: Sequence[int],
    layouts: Layouts,
    new_value: Callable[[], int],
    zeros: Collection[int] = (),
    ones: Collection[int] = (),
) -> tuple[list[ProgramCall], list[int]]:
    """Return calls and results in which nothing is computed that is there already, and sums of slices are stacks.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory; those of values that lie otherwise now are put right.
        new_value: Makes the number of another value.
        zeros: Values that are zero throughout, see `zero_weights`.
        ones: Values that are one throughout, see `unit_factors`.
    """
    after, same = Layouts(layouts), dict[int, int]()
    try:
        idle = _Idle(set(zeros), set(ones))
        plain = None if any(map(looks_at_memory, calls)) else _without_lone_stacks(calls, after, new_value)
        found = None if plain is None else _without_idle(plain, after, same, idle)
    except RuntimeError:  # an op that does not run without data
        found = None
    if found is None:
        return list(calls), list(results)
    layouts.update(after)
    results = [same.get(index, index) for index in results]
    return _with_stacks(without_unused(found, results), results, layouts, new_value), results


class _Idle(NamedTuple):
    """Values that change nothing where they are added, or multiplied."""

    zeros: set[int]
    ones: set[int]


def _without_lone_stacks(
    calls: Sequence[ProgramCall], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls in which a tensor that is stacked with no other is copied, and the copy seen with one more axis."""
    found: list[ProgramCall] = []
    for call in calls:
        members = call.args[0] if call.target is _aten.stack.default else ()
        if len(members) != 1 or call.kwargs:
            found.append(call)
            continue
        contiguous = {"memory_format": torch.contiguous_format}
        copy = ProgramCall(_aten.clone.default, (members[0],), contiguous, [new_value()], call.segment)
        layouts.add(copy)
        axis = call.args[1] if len(call.args) > 1 else 0
        seen = ProgramCall(_aten.unsqueeze.default, (Ref(copy.outputs[0] or 0), axis), {}, call.outputs, call.segment)
        found += [call] if _if_alike(seen, layouts) is None else [copy, seen]
    return found


def _without_idle(
    calls: Sequence[ProgramCall], layouts: Layouts, same: dict[int, int], idle: _Idle
) -> list[ProgramCall]:
    """Return the calls; `same` learns which value takes the place of which."""
    makers: dict[int, ProgramCall] = {}
    moved: set[int] = set()
    found: list[ProgramCall] = []
    for call in calls:
        again = call.renamed(same)
        if _is_zero(again, idle.zeros):
            idle.zeros.update(index for index in again.outputs if index is not None)
        kept = _unchanged(again, layouts, idle)
        if kept is not None:
            out = call.outputs[0] or 0
            same[out] = kept
            if layouts[kept] != layouts[out]:  # or at another place of its memory
                moved.add(out)
            continue
        if not moved.isdisjoint(call.operands):
            again = laid_out(again, layouts, moved)
        again = _of_numbers(again, makers, layouts)
        makers |= {index: again for index in again.outputs if index is not None}
        found.append(again)
    return found


def _is_zero(call: ProgramCall, zeros: set[int]) -> bool:
    """Return whether a call makes zeros of zeros."""
    if call.target is _CONVOLUTION:
        return zeros.issuperset(call.operands[1:])
    return bool(zeros) and call.target.is_view and zeros.issuperset(call.operands)


def _unchanged(call: ProgramCall, layouts: Mapping[int, Layout], idle: _Idle) -> int | None:
    """Return the value that a call gives again; None if it gives another one."""
    if _is_sum(call) and not idle.zeros.isdisjoint(call.operands):
        kept = next((index for index in call.operands if index not in idle.zeros), None)
    elif _is_product(call) and not idle.ones.isdisjoint(call.operands):
        kept = next((index for index in call.operands if index not in idle.ones), None)
    elif call.target in _BY_ONE and not call.kwargs and isinstance(call.args[0], Ref):
        kept = call.args[0].index if call.args[1] in ({1} if type(call.args[1]) in {int, float} else ()) else None
    else:
        return None
    out = layouts[call.outputs[0] or 0]
    return kept if kept is not None and _holds_alike(layouts[kept], out) and not layouts[kept].repeats else None


def _of_numbers(call: ProgramCall, makers: Mapping[int, ProgramCall], layouts: Layouts) -> ProgramCall:
    """Return a call with numbers in the place of views of them with one entry along each axis, if that is all one."""
    if call.target not in _BROADCAST:
        return call
    same: dict[int, int] = {}
    for index in call.operands:
        view = makers.get(index)
        if view is not None and view.target is _aten.view.default and not layouts[view.operands[0]].shape:
            same[index] = view.operands[0]
    return _if_alike(call.renamed(same), layouts) or call if same else call


def _with_stacks(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls with a stack in the place of each sum of tensors that are zero but for one slice each."""
    makers = {index: call for call in calls for index in call.outputs if index is not None}
    uses = Counter(index for call in calls for index in call.operands) + Counter(results)
    inner = {i for call in calls if _is_sum(call) for i in call.operands if uses[i] == 1 and _is_sum(makers.get(i))}
    found: list[ProgramCall] = []
    for call in calls:
        outermost = _is_sum(call) and inner.isdisjoint(call.outputs)
        slices = _slices(call, makers, uses) if outermost else None
        found += (_stack(call, slices, layouts, new_value) if slices is not None else None) or [call]
    return found


class _Slices(NamedTuple):
    """Slices at all places along an axis of a tensor, which is then seen in some shape."""

    members: list[Ref]
    axis: int
    shape: list[int]


def _slices(call: ProgramCall, makers: Mapping[int, ProgramCall], uses: Mapping[int, int]) -> _Slices | None:
    """Return what a sum is the stack of; None if it is none."""
    found: dict[int, Ref] = {}
    kinds: set[tuple[tuple[int, ...], int, tuple[int, ...]]] = set()
    left = list(call.operands)
    while left:
        index = left.pop()
        maker, shape = makers.get(index), None
        if maker is not None and uses[index] == 1 and maker.target is _aten.view.default:
            index, shape = maker.args[0].index, tuple(maker.args[1])
            maker = makers.get(index)
        if uses[index] > 1 or maker is None:
            return None
        if _is_sum(maker) and shape is None:
            left += maker.operands
            continue
        if maker.target is not _aten.select_backward.default:
            return None
        grad, sizes, axis, place = maker.args
        kinds.add((tuple(sizes), axis % len(sizes), shape or tuple(sizes)))
        if found.setdefault(place % sizes[axis], grad) is not grad:
            return None
    if len(kinds) != 1:
        return None
    ((sizes, axis, shape),) = kinds
    return (
        _Slices([found[place] for place in range(sizes[axis])], axis, list(shape))
        if len(found) == sizes[axis]
        else None
    )


def _stack(
    call: ProgramCall, slices: _Slices, layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall] | None:
    """Return slices as a stack, in the shape that it is seen in; None if that lies otherwise than the sum does."""
    stack = ProgramCall(_aten.stack.default, (slices.members, slices.axis), {}, call.outputs, call.segment)
    (layout,) = layouts.of(stack)
    if layout is not None and list(layout.shape) == slices.shape:
        return [stack] if _lies_alike(layout, layouts[call.outputs[0] or 0]) else None
    if layout is None or not layout.contiguous or not layouts[call.outputs[0] or 0].contiguous:
        return None
    whole = new_value()
    layouts[whole] = layout
    stack = ProgramCall(stack.target, stack.args, {}, [whole], call.segment)
    return [stack, ProgramCall(_aten.view.default, (Ref(whole), slices.shape), {}, call.outputs, call.segment)]


def _is_sum(call: ProgramCall | None) -> bool:
    return call is not None and call.target is _aten.add.Tensor and not call.kwargs and len(set(call.operands)) == 2


def _is_product(call: ProgramCall) -> bool:
    return call.target is _aten.mul.Tensor and not call.kwargs and len(set(call.operands)) == 2


def _if_alike(call: ProgramCall, layouts: Layouts) -> ProgramCall | None:
    """Return a call if what it gives lies as it did; None if not."""
    after = layouts.of(call)
    alike = all(
        index is None or (layout is not None and _lies_alike(layouts[index], layout))
        for index, layout in zip(call.outputs, after, strict=True)
    )
    return call if alike else None


def _holds_alike(one: Layout, other: Layout) -> bool:
    return (one.shape, one.dtype, one.device, one.twisted) == (other.shape, other.dtype, other.device, other.twisted)


def _lies_alike(one: Layout, other: Layout) -> bool:
    return (one.shape, one.stride, one.dtype, one.device, one.twisted) == (
        other.shape, other.stride, other.dtype, other.device, other.twisted,
    )  # fmt: skip
