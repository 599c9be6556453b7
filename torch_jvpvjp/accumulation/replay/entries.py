"""A program of tensors as one of their entries: what is zero or one, or computed twice, is not computed.

Of n independent points at once (`lanes`), an entry is the vector of the n numbers that stand at one place of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calls import ProgramCall
from ..tracing.tape import Ref, fill, flat_outputs
from .entry_rules import CONDITIONS, FORMULAS, MOVING, ZEROS, Formula, operands_of, product, shape_size, sum_along
from .layout import Layout
from .numbers import Numbers

_aten = torch.ops.aten
_PRODUCTS = frozenset({_aten.mm.default, _aten.bmm.default, _aten.mv.default, _aten.dot.default})
_SUMS_OF_PRODUCTS = {
    _aten.addmm.default: _aten.mm.default, _aten.addmv.default: _aten.mv.default,
    _aten.baddbmm.default: _aten.bmm.default,
}  # fmt: skip
_SUMS = frozenset({_aten.sum.dim_IntList, _aten.sum.default, _aten.mean.dim, _aten.mean.default})
_COUNTED = frozenset({torch.bool, torch.int64, torch.int32})
_MOST_FIXED = 4096  # entries of a constant
_MOST_SEEN = 1 << 21  # entries of all lanes of all operands


class Entries:
    """A program, entry by entry.

    Args:
        fixed: Values that are the same in every run.
        layouts: How the values lie in memory.
        dtype: Of all that is computed.
        lanes: At how many points it is run at once, along the first axis of what is given; 1 for a single one.
        most: Operations on entries that are worth looking at.

    Attributes:
        numbers: The arithmetic.
        given: The nodes of what is given, by value; of one lane.
    """

    def __init__(
        self, fixed: Mapping[int, Tensor], layouts: Mapping[int, Layout], dtype: torch.dtype, lanes: int, most: int
    ) -> None:
        self.numbers, self.given = Numbers(dtype), dict[int, Tensor]()
        self._fixed, self._layouts, self._dtype, self._lanes, self._most = fixed, layouts, dtype, lanes, most
        self._nodes: dict[int, Tensor] = {}
        self._lane, self._most_seen = torch.arange(lanes), _MOST_SEEN

    def give(self, index: int) -> None:
        """Take in a value from outside, whose entries are numbers that are not known."""
        layout = self._layouts[index]
        if layout.dtype is not self._dtype:
            raise NotImplementedError(f"{layout.dtype} is given")
        shape = layout.shape if self._lanes == 1 else layout.shape[1:]
        if self._lanes > 1 and layout.shape[:1] != (self._lanes,):
            raise NotImplementedError("what is given is no batch of points")
        nodes = torch.tensor([self.numbers.given() for _ in range(shape_size(shape))], dtype=torch.int64)
        self.given[index] = nodes.reshape(shape)
        self._nodes[index] = self._in_lanes(self.given[index], 0)

    def run(self, call: ProgramCall) -> None:
        """Do what a call does.

        Args:
            call: The call.

        Raises:
            NotImplementedError: If entries do not tell.
        """
        (first, *_) = call.outputs
        layouts = [self._layouts[index] for index in call.outputs if index is not None]
        if any(layout.dtype not in {self._dtype, torch.bool} or layout.device.type != "cpu" for layout in layouts):
            raise NotImplementedError("other dtypes or devices")
        of_conditions = call.target in MOVING or call.target in CONDITIONS
        if layouts[0].dtype is torch.bool and not of_conditions:
            raise NotImplementedError("arithmetic of conditions")
        if call.target in MOVING:
            args, kwargs = fill(call.args, self._moved), fill(dict(call.kwargs), self._moved)
            made = flat_outputs(call.target(*args, **kwargs))
        elif call.target in ZEROS:
            made = [torch.zeros(layouts[0].shape, dtype=torch.int64)]
        elif call.target in FORMULAS:
            made = [self._by_formula(call, layouts[0].shape)]
        elif call.target in _SUMS:
            made = [self._summed(call)]
        elif call.target is _aten._to_copy.default:
            made = [self._converted(call)]
        elif call.target is _aten.index_add.default:
            made = [self._added(call)]
        elif call.target in _PRODUCTS or call.target in _SUMS_OF_PRODUCTS:
            made = [self._multiplied(call)]
        else:
            raise NotImplementedError(f"{call.target} of entries")
        assert first is None or made[0] is not None, "an op moved entries nowhere"
        self._nodes |= {
            i: nodes for i, nodes in zip(call.outputs, made, strict=True) if i is not None and nodes is not None
        }

    def result(self, index: int) -> Tensor:
        """Return the nodes of a value, of one lane, whose first axis is then that of the lanes."""
        if self._lanes == 1:
            return self.nodes(index)
        return self._of_one_lane(self.nodes(index), 0)

    def nodes(self, index: int) -> Tensor:
        """Return the nodes of a value."""
        if index not in self._nodes:
            self._nodes[index] = self._constants(self._fixed[index])
        return self._nodes[index]

    def _constants(self, tensor: Tensor) -> Tensor:
        known = tensor.dtype is self._dtype or tensor.dtype in _COUNTED
        if not known or tensor.numel() > _MOST_FIXED or tensor.device.type != "cpu":
            raise NotImplementedError("constants of other dtypes, or many")
        found = [self.numbers.constant(value) for value in tensor.reshape(-1).tolist()]
        return torch.tensor(found, dtype=torch.int64).reshape(tensor.shape)

    def _moved(self, index: int) -> Tensor:
        """Return an operand of an op that moves entries: indices and masks are what they are."""
        fixed = self._fixed.get(index) if index not in self._nodes else None
        return fixed if fixed is not None and fixed.dtype in _COUNTED else self.nodes(index)

    # ---- arithmetic --------------------------------------------------------------------------------------------------

    def _count(self, operations: int, seen: int) -> None:
        self._most, self._most_seen = self._most - operations, self._most_seen - seen
        if self._most < 0 or self._most_seen < 0:
            raise NotImplementedError("too many operations on entries")

    def _by_formula(self, call: ProgramCall, shape: Sequence[int]) -> Tensor:
        operands = [self._operand(operand).expand(shape) for operand in operands_of(call)]
        return self._mapped(FORMULAS[call.target], operands)

    def _mapped(self, formula: Formula, operands: Sequence[Tensor]) -> Tensor:
        """Return what a formula makes of the entries of operands of one shape."""
        axis = self._axis(operands)
        bases = [self._of_one_lane(operand, axis) for operand in operands]
        self._count(bases[0].numel(), sum(operand.numel() for operand in operands))
        rows = zip(*(base.reshape(-1).tolist() for base in bases), strict=True)
        made = torch.tensor([formula(self.numbers, *row) for row in rows], dtype=torch.int64)
        return self._in_lanes(made.reshape(bases[0].shape), axis)

    def _operand(self, operand: Any) -> Tensor:
        if isinstance(operand, Ref):
            return self.nodes(operand.index)
        if type(operand) not in {int, float, bool}:
            raise NotImplementedError(f"an operand {operand!r}")
        return torch.tensor(self.numbers.constant(operand))

    def _converted(self, call: ProgramCall) -> Tensor:
        """Return a value in another dtype: 1 where a condition holds, and 0 elsewhere."""
        given, made = (self._layouts[index or 0].dtype for index in (call.operands[0], call.outputs[0]))
        nodes = self.nodes(call.operands[0])
        if given is made:
            return nodes
        if given is not torch.bool:
            raise NotImplementedError("numbers in another dtype")
        one = self.numbers.constant(1.0)
        return self._mapped(lambda numbers, condition: numbers.choose(condition, one, 0), [nodes])

    def _added(self, call: ProgramCall) -> Tensor:
        """Return a value with slices of another one added at some places."""
        if call.kwargs or len(call.args) != 4:
            raise NotImplementedError("slices that are added with a factor")
        value, axis, places, source = call.args
        whole, source = self.nodes(value.index), self.nodes(source.index)
        for j, place in enumerate(self._moved(places.index).tolist()):
            added = self._mapped(Numbers.add, [whole.select(axis, place), source.select(axis, j)])
            whole = whole.select_scatter(added, axis, place)
        return whole

    def _summed(self, call: ProgramCall) -> Tensor:
        if call.kwargs:
            raise NotImplementedError("a sum in another dtype")
        value, axes, keep, *_ = (*call.args, None, False) if len(call.args) < 3 else call.args
        nodes = self.nodes(value.index)
        rank = nodes.dim()
        along = sorted({one % rank for one in axes} if axes else range(rank)) if rank else []
        axis = self._axis([nodes])
        base = self._of_one_lane(nodes, axis)
        place = None if axis is None or self._lanes == 1 else axis
        if place is not None:
            if place in along:
                raise NotImplementedError("a sum over lanes")
            along = [one - (one > place) for one in along]
            place -= 0 if keep else sum(one < place for one in along)
        self._count(base.numel(), nodes.numel())
        sums = sum_along(self.numbers, base, along, keep=bool(keep))
        if call.target in {_aten.mean.dim, _aten.mean.default}:
            count = self.numbers.constant(shape_size([base.shape[one] for one in along]))
            each = [self.numbers.div(one, count) for one in sums.reshape(-1).tolist()]
            sums = torch.tensor(each, dtype=torch.int64).reshape(sums.shape)
        return self._in_lanes(sums, place)

    def _multiplied(self, call: ProgramCall) -> Tensor:
        if self._lanes > 1 or call.kwargs:
            raise NotImplementedError("products in lanes, or with factors")
        *bias, left, right = (self.nodes(ref.index) for ref in call.args)
        target = _SUMS_OF_PRODUCTS.get(call.target, call.target)
        vectors = left.dim() == 1, right.dim() == 1
        left, right = left[None] if vectors[0] else left, right[:, None] if vectors[1] else right
        self._count(left.numel() * right.shape[-1], 0)
        made = product(self.numbers, left, right)
        made = made.squeeze(-1) if vectors[1] else made
        made = made.squeeze(0) if target is _aten.dot.default else made
        for one in bias:
            terms = zip(one.expand(made.shape).reshape(-1).tolist(), made.reshape(-1).tolist(), strict=True)
            added = [self.numbers.add(a, b) for a, b in terms]
            made = torch.tensor(added, dtype=torch.int64).reshape(made.shape)
        return made

    # ---- lanes: of a node k, the entry of lane i is k · lanes + i; a constant is the same in all of them ----------

    def _axis(self, operands: Sequence[Tensor]) -> int | None:
        """Return the axis along which the lanes of some tensors lie; None if there are none."""
        if self._lanes == 1:
            return None
        for nodes in operands:
            places = torch.nonzero((nodes > 0) & (nodes % self._lanes == 0))
            if len(places):
                place = places[0].tolist()
                for axis, size in enumerate(nodes.shape):
                    after = [at + (k == axis) for k, at in enumerate(place)]
                    if size == self._lanes and place[axis] == 0 and nodes[tuple(after)] == nodes[tuple(place)] + 1:
                        return axis
            if (nodes > 0).any():
                raise NotImplementedError("lanes that are no axis")
        return None

    def _of_one_lane(self, nodes: Tensor, axis: int | None) -> Tensor:
        if self._lanes == 1 or axis is None:
            return nodes
        lanes = nodes.movedim(axis, -1)
        base = lanes[..., 0]
        if nodes.shape[axis] != self._lanes or not torch.equal(self._spread(base), lanes):
            raise NotImplementedError("lanes that meet")
        return torch.where(base > 0, base // self._lanes, base)

    def _in_lanes(self, base: Tensor, axis: int | None) -> Tensor:
        if self._lanes == 1 or axis is None:
            return base
        return self._spread(torch.where(base > 0, base * self._lanes, base)).movedim(-1, axis)

    def _spread(self, base: Tensor) -> Tensor:
        """Return all lanes, along a last axis, of what is the first."""
        first = base.unsqueeze(-1)
        return torch.where(first > 0, first + self._lane, first)
