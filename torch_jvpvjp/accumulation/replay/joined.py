"""Two calls that one op does: a product and a sum, a multiple and a sum.

    c + W x           as   addmv(c, W, x)
    y + s · t         as   add(y, t, alpha=s),     s a number
    y ± s ⊙ t         as   addcmul(y, s, t, value=±1)

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
_SIGNS = {_aten.add.Tensor: 1, _aten.sub.Tensor: -1}  # of the second term
_FEW = 4096  # entries
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
            args = None if maker is None or uses[term] > 1 else _sum(maker, call, other, layouts)
            if args is not None:
                call = ProgramCall(*args, call.outputs, call.segment)
                taken.add(term)
                break
        found.append(call)
    return [call for call in found if not taken.issuperset(call.outputs) or not call.outputs]


def _terms(call: ProgramCall, layouts: Layouts) -> list[tuple[int, int]]:
    """Return the terms of a plain sum or difference that can be taken in, each with the other one."""
    if call.target not in _SIGNS or call.kwargs or len(call.operands) != 2 or call.operands[0] == call.operands[1]:
        return []
    one, other = call.operands
    if layouts[one].dtype is not layouts[other].dtype or layouts[one].dtype not in _EXACT:
        return []
    return [(other, one)] if call.target is _aten.sub.Tensor else [(one, other), (other, one)]


def _sum(
    term: ProgramCall, call: ProgramCall, other: int, layouts: Layouts
) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Return one call that does what a call does, and a sum or difference of another value and it."""
    if term.kwargs:
        return None
    if term.target is _aten.mul.Tensor and len(term.operands) == 2:
        return _multiplied(term, call, other, layouts)
    if call.target is _aten.sub.Tensor or layouts[term.outputs[0] or 0].shape != layouts[other].shape:
        return None
    if term.target is _aten.mv.default:
        return _aten.addmv.default, (Ref(other), *term.args), {}
    if term.target is _aten.mul.Tensor and len(term.operands) == 1 and type(term.args[1]) in {int, float}:
        if layouts[term.operands[0]].dtype is layouts[other].dtype:
            return _aten.add.Tensor, (Ref(other), term.args[0]), {"alpha": term.args[1]}
    return None


def _multiplied(
    term: ProgramCall, call: ProgramCall, other: int, layouts: Layouts
) -> tuple[Any, tuple[Any, ...], dict[str, Any]] | None:
    """Return the sum or difference of a value and an entrywise product, where that takes less time and lies alike."""
    sides = [layouts[index] for index in (*term.operands, other)]
    out = layouts[call.outputs[0] or 0]
    # Its kernel goes entry by entry through what is broadcast, which matters once entries take longer than the launch.
    quick = out.numel <= _FEW or all((one.shape, one.stride) == (out.shape, out.stride) for one in sides)
    if not quick or any(one.dtype is not out.dtype or one.device != out.device for one in sides):
        return None
    args, kwargs = (Ref(other), *term.args), {} if _SIGNS[call.target] == 1 else {"value": -1}
    made = ProgramCall(_aten.addcmul.default, args, kwargs, call.outputs, call.segment)
    return (_aten.addcmul.default, args, kwargs) if layouts.of(made) == [out] else None


def _depths(calls: Sequence[ProgramCall]) -> dict[int, int]:
    depths: Counter[int] = Counter()
    for call in calls:
        depth = 1 + max((depths[index] for index in call.operands), default=0)
        depths.update({index: depth for index in call.outputs if index is not None})
    return depths
