"""Like calls as one: how an op is written for operands of which some are stacks.

A stack holds one tensor of each call along an axis in front. What the calls share stays as it is: of n products with
one matrix W,

    mv(W, x_1), …, mv(W, x_n)    become    mm([x_1 … x_n]ᵀ, Wᵀ).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..calls import ProgramCall
from ..tracing.tape import Ref, fill
from .layout import Layouts

_aten = torch.ops.aten


@dataclass
class Stacked:
    """n calls that become one.

    Attributes:
        call: One of them, with the places of its operands in the place of values.
        count: n.
        values: The operands, by their places: values that are stacks, or that all calls share.
        stacks: Which of them are stacks.
        shapes: The shape of each in one call.
        layouts: How all values lie in memory.
        new_value: Makes the number of another value.
        segment: The task that the calls belong to.
        made: What is run instead.
    """

    call: ProgramCall
    count: int
    values: Sequence[int]
    stacks: Sequence[bool]
    shapes: Sequence[Sequence[int]]
    out_shape: Sequence[int]
    layouts: Layouts
    new_value: Callable[[], int]
    segment: int
    made: list[ProgramCall]

    def run(self, target: Any, *args: Any, **kwargs: Any) -> Ref:
        """Add a call; its arguments are values as they are."""
        call = ProgramCall(target, args, kwargs, [self.new_value()], self.segment)
        self.layouts.add(call)
        self.made.append(call)
        return Ref(call.outputs[0] or 0)

    def operand(self, place: int) -> Ref:
        """Return an operand."""
        return Ref(self.values[place])

    def stack(self, place: int) -> Ref:
        """Return an operand as a stack, without a copy where all calls share it."""
        if self.stacks[place]:
            return self.operand(place)
        return self.run(_aten.expand.default, self.operand(place), [self.count, *self.shapes[place]])

    def shaped(self, value: Ref, *shape: int) -> Ref:
        """Return a value in another shape."""
        layout = self.layouts[value.index]
        if tuple(layout.shape) == shape:
            return value
        target = _aten.view.default if layout.contiguous else _aten.reshape.default
        return self.run(target, value, list(shape))


Rule = Callable[[Stacked], Ref | None]
_RULES: dict[Any, Rule] = {}
_BROADCAST = frozenset({_aten.tanh_backward.default, _aten.sigmoid_backward.default})


def in_one_call(stacked: Stacked) -> Ref | None:
    """Write n calls as one.

    Args:
        stacked: The calls.

    Returns:
        The stack of their results, made by what is now in `stacked.made`; None if there is no way.
    """
    target = stacked.call.target
    rule = _RULES.get(target) or (_pointwise if torch.Tag.pointwise in target.tags else None)
    try:
        return None if rule is None else rule(stacked)
    except RuntimeError:  # a view that the memory of a stack does not allow
        return None


def has_rule(target: Any) -> bool:
    """Return whether like calls of an op can become one."""
    return target in _RULES or torch.Tag.pointwise in target.tags


def _rule(*targets: Any) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def _pointwise(stacked: Stacked) -> Ref | None:
    # Derivatives of activations are not all broadcast: oneDNN's of a GELU is not.
    target = stacked.call.target
    if not all(stacked.stacks) and target not in _BROADCAST and target.overloadpacket.__name__.endswith("_backward"):
        return None
    # A stack takes axes of one entry behind the first, where its members have fewer axes than the result.
    rank = len(stacked.out_shape)
    values = [stacked.operand(place) for place in range(len(stacked.values))]
    for place, shape in enumerate(stacked.shapes):
        if stacked.stacks[place] and len(shape) < rank:
            ones = [1] * (rank - len(shape))
            values[place] = stacked.shaped(values[place], stacked.count, *ones, *shape)
    return stacked.run(stacked.call.target, *fill(stacked.call.args, values.__getitem__), **_kwargs(stacked, values))


def _kwargs(stacked: Stacked, values: Sequence[Ref]) -> Mapping[str, Any]:
    return fill(dict(stacked.call.kwargs), values.__getitem__)


# ---- products --------------------------------------------------------------------------------------------------------


@_rule(_aten.mm.default)
def _mm(stacked: Stacked) -> Ref:
    left, right = (ref.index for ref in stacked.call.args)
    if stacked.stacks[right]:
        return stacked.run(_aten.bmm.default, stacked.stack(left), stacked.stack(right))
    (m, k), n = stacked.shapes[left], stacked.shapes[right][1]
    rows = stacked.shaped(stacked.operand(left), stacked.count * m, k)
    return stacked.shaped(stacked.run(_aten.mm.default, rows, stacked.operand(right)), stacked.count, m, n)


@_rule(_aten.mv.default)
def _mv(stacked: Stacked) -> Ref:
    matrix, vector = (ref.index for ref in stacked.call.args)
    if not stacked.stacks[matrix]:
        transposed = stacked.run(_aten.t.default, stacked.operand(matrix))
        return stacked.run(_aten.mm.default, stacked.operand(vector), transposed)
    return _times_vectors(stacked, matrix, vector)


def _times_vectors(stacked: Stacked, matrix: int, vector: int) -> Ref:
    columns = stacked.run(_aten.unsqueeze.default, stacked.stack(vector), 2)
    product = stacked.run(_aten.bmm.default, stacked.stack(matrix), columns)
    return stacked.shaped(product, stacked.count, *stacked.out_shape)


@_rule(_aten.addmv.default)
def _addmv(stacked: Stacked) -> Ref | None:
    if stacked.call.kwargs:
        return None
    bias, matrix, vector = (ref.index for ref in stacked.call.args)
    if stacked.stacks[matrix] or not stacked.stacks[vector]:
        return stacked.run(_aten.add.Tensor, _times_vectors(stacked, matrix, vector), stacked.operand(bias))
    transposed = stacked.run(_aten.t.default, stacked.operand(matrix))
    return stacked.run(_aten.addmm.default, stacked.operand(bias), stacked.operand(vector), transposed)


@_rule(_aten.bmm.default)
def _bmm(stacked: Stacked) -> Ref | None:
    left, right = (ref.index for ref in stacked.call.args)
    if not (stacked.stacks[left] and stacked.stacks[right]):
        return None
    (b, m, k), n, count = stacked.shapes[left], stacked.shapes[right][2], stacked.count
    one = stacked.shaped(stacked.operand(left), count * b, m, k)
    other = stacked.shaped(stacked.operand(right), count * b, k, n)
    return stacked.shaped(stacked.run(_aten.bmm.default, one, other), count, b, m, n)


# ---- views, copies and sums: the stack has one axis more in front ----------------------------------------------------


def _only(stacked: Stacked) -> bool:
    return not stacked.call.kwargs and len(stacked.values) == 1


@_rule(_aten.view.default)
def _view(stacked: Stacked) -> Ref:
    return stacked.shaped(stacked.operand(0), stacked.count, *stacked.out_shape)


@_rule(_aten.clone.default)
def _clone(stacked: Stacked) -> Ref | None:
    if stacked.call.kwargs.get("memory_format", torch.contiguous_format) is not torch.contiguous_format:
        return None
    return stacked.run(_aten.clone.default, stacked.operand(0), memory_format=torch.contiguous_format)


@_rule(_aten.t.default)
def _t(stacked: Stacked) -> Ref | None:
    return stacked.run(_aten.transpose.int, stacked.operand(0), 1, 2) if len(stacked.out_shape) == 2 else None


@_rule(_aten.permute.default)
def _permute(stacked: Stacked) -> Ref:
    rank = len(stacked.out_shape)
    order = [axis % rank + 1 for axis in stacked.call.args[1]]
    return stacked.run(_aten.permute.default, stacked.operand(0), [0, *order])


@_rule(_aten.expand.default)
def _expand(stacked: Stacked) -> Ref:
    shape = stacked.shapes[0]
    ones = [1] * (len(stacked.out_shape) - len(shape))
    base = stacked.shaped(stacked.operand(0), stacked.count, *ones, *shape)
    return stacked.run(_aten.expand.default, base, [stacked.count, *stacked.out_shape])


def _along(axes: int, rank_of_result: bool = False) -> Rule:  # noqa: FBT001, FBT002
    """Return the rule of an op whose first arguments after the tensor are so many axes."""

    def rule(stacked: Stacked) -> Ref | None:
        if not _only(stacked):
            return None
        rank = len(stacked.out_shape if rank_of_result else stacked.shapes[0])
        _, *others = stacked.call.args
        if len(others) < axes or (rank == 0 and axes):
            return None
        moved = [axis % rank + 1 for axis in others[:axes]]
        return stacked.run(stacked.call.target, stacked.operand(0), *moved, *others[axes:])

    return rule


_RULES |= {_aten.transpose.int: _along(2), _aten.select.int: _along(1), _aten.slice.Tensor: _along(1)}
_RULES |= {_aten.unsqueeze.default: _along(1, rank_of_result=True), _aten.squeeze.dim: _along(1)}


@_rule(_aten.sum.dim_IntList, _aten.mean.dim)
def _reduced(stacked: Stacked) -> Ref | None:
    rank = len(stacked.shapes[0])
    _, axes, *others = stacked.call.args
    if not _only(stacked) or not axes or rank == 0:
        return None
    moved = [axis % rank + 1 for axis in axes]
    return stacked.run(stacked.call.target, stacked.operand(0), moved, *others)


@_rule(_aten.cat.default, _aten.stack.default)
def _joined(stacked: Stacked) -> Ref | None:
    tensors, axis = stacked.call.args[0], stacked.call.args[1] if len(stacked.call.args) > 1 else 0
    rank = len(stacked.out_shape)
    if stacked.call.kwargs or not rank or any(list(shape) == [0] for shape in stacked.shapes):
        return None
    return stacked.run(stacked.call.target, [stacked.stack(ref.index) for ref in tensors], axis % rank + 1)
