"""Two calls that one op does: a product and a sum, a multiple and a sum.

    c + W x           as   addmv(c, W, x)
    y + s · t         as   add(y, t, alpha=s),     s a number

Only where nothing else needs the first of the two. Sums are not put in another order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layouts

_aten = torch.ops.aten
_EXACT = frozenset({torch.float32, torch.float64})  # less than that is rounded between two ops, and not within one


def joined(calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts) -> list[ProgramCall]:
    """Return calls in which sums take in what they are sums of.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory.
    """
    uses = Counter(index for call in calls for index in call.operands)
    uses.update(results)
    makers = {call.outputs[0]: call for call in calls if len(call.outputs) == 1}
    depths = _depths(calls)
    found: list[ProgramCall] = []
    taken: set[int | None] = set()
    for call in calls:
        terms = _terms(call, layouts)
        # What is known latest is taken in, so that the other term is not kept waiting.
        for term, other in sorted(terms, key=lambda pair: -depths[pair[0]]):
            maker = makers.get(term)
            args = None if maker is None or uses[term] > 1 else _sum(maker, other, layouts)
            if args is not None:
                call = ProgramCall(*args, call.outputs, call.segment)
                taken.add(term)
                break
        found.append(call)
    return [call for call in found if not taken.issuperset(call.outputs) or not call.outputs]


def _terms(call: ProgramCall, layouts: Layouts) -> list[tuple[int, int]]:
    """Return the two terms of a plain sum of tensors of one size and dtype, each with the other one."""
    if (
        call.target is not _aten.add.Tensor
        or call.kwargs
        or len(call.operands) != 2
        or call.operands[0] == call.operands[1]
    ):
        return []
    one, other = call.operands
    alike = layouts[one].shape == layouts[other].shape and layouts[one].dtype is layouts[other].dtype
    return [(one, other), (other, one)] if alike and layouts[one].dtype in _EXACT else []


def _sum(term: ProgramCall, other: int, layouts: Layouts) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Return one call that does what a call and a sum of it and another value do."""
    if term.kwargs:
        return None
    if term.target is _aten.mv.default:
        return _aten.addmv.default, (Ref(other), *term.args), {}
    if term.target is _aten.mul.Tensor and len(term.operands) == 1 and type(term.args[1]) in {int, float}:
        if layouts[term.operands[0]].dtype is layouts[other].dtype:
            return _aten.add.Tensor, (Ref(other), term.args[0]), {"alpha": term.args[1]}
    return None


def _depths(calls: Sequence[ProgramCall]) -> dict[int, int]:
    depths: Counter[int] = Counter()
    for call in calls:
        depth = 1 + max((depths[index] for index in call.operands), default=0)
        depths.update({index: depth for index in call.outputs if index is not None})
    return depths
