"""What a pullback is handed of the run before it, and what it makes again.

A pullback uses many values of the run that it pulls through: of silu, x σ(x), the sigmoid, 1 - σ, x (1 - σ) and more. A
compiler makes such values within the kernel that uses them, for nothing; those that are handed on are written by one
program and read by the other, a view is made by Python on the way out, and a transposed copy is written across the
grain. So of all sets of values from which views, copies and plain arithmetic make what is used, the one of fewest bytes
is handed on: a minimum cut.

Source: Chen, Xu, Zhang and Guestrin (2016), Training Deep Nets with Sublinear Memory Cost; the cut as in PyTorch's
`min_cut_rematerialization_partition`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch

from .calls import ProgramCall
from .replay import Layout

_aten = torch.ops.aten
# Arithmetic that takes less than a value takes to be written and read: no exponential and no division.
_CHEAP = frozenset({
    _aten.add.Tensor, _aten.add.Scalar, _aten.sub.Tensor, _aten.sub.Scalar, _aten.rsub.Scalar, _aten.rsub.Tensor,
    _aten.mul.Tensor, _aten.mul.Scalar, _aten.neg.default, _aten.addcmul.default, _aten.square.default,
    _aten.abs.default, _aten.relu.default, _aten.tanh_backward.default, _aten.sigmoid_backward.default,
    _aten.threshold_backward.default,
    _aten.where.self, _aten.gt.Scalar, _aten.ge.Scalar, _aten.lt.Scalar, _aten.le.Scalar, _aten.eq.Scalar,
    _aten.ne.Scalar, _aten.gt.Tensor, _aten.ge.Tensor, _aten.lt.Tensor, _aten.le.Tensor, _aten.logical_not.default,
    _aten.clone.default,
    _aten.ones_like.default, _aten.zeros_like.default, _aten.full_like.default, _aten.fill.Scalar,
    _aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default, _aten.full.default,
})  # fmt: skip
# What no kernel of a compiler's own does: operands and results lie in memory.
_PRODUCTS = frozenset({
    _aten.mm.default, _aten.bmm.default, _aten.addmm.default, _aten.baddbmm.default, _aten.mv.default,
    _aten.addmv.default, _aten.convolution.default, _aten.convolution_backward.default,
})  # fmt: skip
_WRITTEN_ANYWAY = 0.5  # of its bytes is what a value counts that no kernel makes on the way of another


def made_again(
    calls: Sequence[ProgramCall],
    given: Collection[int],
    wanted: Collection[int],
    multiplied: Collection[int],
    layouts: Mapping[int, Layout],
) -> tuple[list[ProgramCall], list[int]]:
    """The calls that make the values that are used from those that are handed on.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        given: Its inputs, which there are in any case.
        wanted: The values that are used.
        multiplied: Those of them that products take, which have to lie in memory.
        layouts: How each value lies in memory.

    Returns:
        The calls, in order, and the values that are handed on; of the inputs, those that are used.
    """
    import networkx as nx  # slow to import, and seldom needed

    makers = {index: call for call in calls for index in call.outputs if index is not None}
    in_memory = below_views(calls, multiplied) & below_views(calls, operands_of_products(calls))
    varying = set(given)
    for call in calls:
        if not varying.isdisjoint(call.operands):
            varying.update(index for index in call.outputs if index is not None)
    graph = nx.DiGraph()
    left, seen = list(wanted), set(wanted)
    while left:
        index = left.pop()
        call = makers.get(index)
        graph.add_edge(("in", index), ("out", index), capacity=_bytes(index, call, layouts))
        if index in wanted:
            graph.add_edge(("out", index), "used", capacity=_NEVER)
        if call is None or not _is_cheap(call) or (index in in_memory and not _is_view(call)):
            graph.add_edge("run", ("in", index), capacity=_NEVER)
            continue
        for operand in varying.intersection(call.operands):
            graph.add_edge(("out", operand), ("in", index), capacity=_NEVER)
            if operand not in seen:
                seen.add(operand)
                left.append(operand)
    if "run" not in graph:  # nothing is used, or what nothing is needed for
        return _needed(calls, (), wanted), []
    counted, (before, _) = nx.minimum_cut(graph, "run", "used")
    assert counted < _NEVER, "a value is made from a view of nothing"
    handed = [index for index in sorted(seen) if ("in", index) in before and ("out", index) not in before]
    return _needed(calls, handed, wanted), handed


_NEVER = float(1 << 62)


def operands_of_products(calls: Sequence[ProgramCall]) -> set[int]:
    """Return the values that products take."""
    return {index for call in calls if call.target in _PRODUCTS for index in call.operands}


def below_views(calls: Sequence[ProgramCall], values: Collection[int]) -> set[int]:
    """Return some values and those that they are views of."""
    found = set(values)
    for call in reversed(calls):
        if _is_view(call) and not found.isdisjoint(call.outputs):
            found.update(call.operands)
    return found


def _is_view(call: ProgramCall) -> bool:
    return call.target.is_view or call.target is _aten._unsafe_view.default


def _is_cheap(call: ProgramCall) -> bool:
    return _is_view(call) or call.target in _CHEAP


def _bytes(index: int, call: ProgramCall | None, layouts: Mapping[int, Layout]) -> float:
    """Return what handing a value on takes: never a view, whose memory is another's."""
    if call is None:
        return 1.0
    if _is_view(call):
        return _NEVER
    layout = layouts[index]
    by_kernel = torch.Tag.pointwise in call.target.tags or call.target in _CHEAP
    return 1.0 + layout.numel * layout.dtype.itemsize * (1.0 if by_kernel else _WRITTEN_ANYWAY)


def _needed(calls: Sequence[ProgramCall], handed: Collection[int], wanted: Collection[int]) -> list[ProgramCall]:
    """Return the calls that lead from the values that are handed on to those that are used."""
    needed, found = set(wanted) - set(handed), list[ProgramCall]()
    for call in reversed(calls):
        if not needed.isdisjoint(call.outputs):
            found.append(call)
            needed.update(set(call.operands) - set(handed))
    return found[::-1]
