"""Sums with a large product, made by the product: C + A B as addmm(C, A, B), which spares one way through memory.

What is added may be seen in another shape, as tangents are, which are (entries, tangents) for all that has no product:

    permute(view(mm(A, B))) + permute(view(C))    becomes    permute(view(addmm(C, A, B))).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..calls import ProgramCall, without_unused
from ..tracing.tape import Ref
from .axes import Form, alike
from .chains import Chains
from .layout import Layout, Layouts

_aten = torch.ops.aten
_SUM_WITH = {_aten.mm.default: _aten.addmm.default, _aten.bmm.default: _aten.baddbmm.default}
_DTYPES = frozenset({torch.float32, torch.float64})  # less than that is rounded between two ops, and not within one
_LEAST = 1 << 12  # entries; fewer are added in the time that the call takes


def with_sums_in_products(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls in which large products take in what they are added to, if it is there before them.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
    """
    sums = _Sums(Chains(calls, results, layouts), layouts, new_value)
    for place, call in enumerate(calls):
        if _is_large_sum(call, layouts):
            sums.add(call, place)
    if not sums.instead:
        return list(calls)
    found = [one for place, call in enumerate(calls) for one in sums.instead.get(place, [call])]
    return without_unused(found, results)


class _Sums:
    """What takes the place of sums, and of products.

    Attributes:
        instead: The calls, by the place of the one that they are instead of.
    """

    def __init__(self, chains: Chains, layouts: Layouts, new_value: Callable[[], int]) -> None:
        self._chains, self._layouts, self._new_value = chains, layouts, new_value
        self.instead: dict[int, list[ProgramCall]] = {}

    def add(self, call: ProgramCall, place: int) -> None:
        """Let the later term of a sum make it, if that is a product."""
        terms = sorted(call.operands, key=lambda index: self._place(self._chains.below(index)))
        own, product = self._chains.below(terms[1]), self._chains.alone(terms[1])
        if product is None or product.target not in _SUM_WITH or product.kwargs or len(call.outputs) != 1:
            return
        out, axes = self._layouts[call.outputs[0] or 0], range(len(self._layouts[terms[0]].shape))
        forms = alike([self._chains.below(terms[0]), own], [axes, axes])
        if forms is None or self._place(forms[0]) >= self._place(own):
            return
        term, own = forms
        before, after = list[ProgramCall](), list[ProgramCall]()
        try:
            # the axes of C in the order of those of A B
            order = dict(zip(own.order, term.order, strict=True))
            seen = self._seen(before, product.segment, term.values[0], term.sizes)
            seen = self._turned(before, product.segment, seen, [order[axis] for axis in range(len(own.sizes))])
            seen = self._seen(before, product.segment, seen, self._layouts[product.outputs[0] or 0].shape)
            made = self._run(before, product.segment, _SUM_WITH[product.target], seen, *product.args)
            back = self._seen(after, call.segment, made, own.sizes)
            back = self._seen(after, call.segment, self._turned(after, call.segment, back, own.order), out.shape)
        except RuntimeError:  # a view that the memory of a value does not allow
            return
        if self._layouts[back] != out:
            return
        named = after or before  # of which the last call makes the sum
        last = named.pop()
        named.append(ProgramCall(last.target, last.args, {}, call.outputs, last.segment))
        self.instead |= {self._place(own): before, place: after}

    def _place(self, form: Form) -> int:
        return self._chains.places.get(form.values[0], -1)

    def _seen(self, found: list[ProgramCall], segment: int, value: int, shape: Sequence[int]) -> int:
        if list(self._layouts[value].shape) == list(shape):
            return value
        return self._run(found, segment, _aten.view.default, value, list(shape))

    def _turned(self, found: list[ProgramCall], segment: int, value: int, order: Sequence[int]) -> int:
        if list(order) == sorted(order):
            return value
        return self._run(found, segment, _aten.permute.default, value, list(order))

    def _run(self, found: list[ProgramCall], segment: int, target: Any, value: int, *args: Any) -> int:
        call = ProgramCall(target, (Ref(value), *args), {}, [self._new_value()], segment)
        self._layouts.add(call)
        found.append(call)
        return call.outputs[0] or 0


def _is_large_sum(call: ProgramCall, layouts: Layouts) -> bool:
    if call.target is not _aten.add.Tensor or call.kwargs or len(call.distinct) != 2:
        return False
    out = layouts[call.outputs[0] or 0]
    plain = out.device.type == "cpu" and out.dtype in _DTYPES and out.numel >= _LEAST
    return plain and all(_is_like(layouts[index], out) for index in call.operands)


def _is_like(one: Layout, other: Layout) -> bool:
    return one.shape == other.shape and one.dtype is other.dtype and not any(one.twisted) and one.device == other.device
