"""Calls that fill a tensor with one number, which their arguments say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .calls import ProgramCall
from .replay import Layout

_aten = torch.ops.aten
_FILLED = {
    _aten.new_zeros: 0, _aten.zeros_like: 0, _aten.new_ones: 1, _aten.ones_like: 1,
}  # fmt: skip
_FILLED_WITH = {_aten.new_full: 2, _aten.full_like: 1, _aten.fill: 1}  # with the place of the argument that it is


def filled_with(func: Any, args: Sequence[Any]) -> Any:
    """Return the number that the result of an op is full of; None of other ops."""
    place = _FILLED_WITH.get(func.overloadpacket)
    number = _FILLED.get(func.overloadpacket) if place is None or len(args) <= place else args[place]
    return number if isinstance(number, (bool, int, float, complex)) else None


def filling(number: Any, out: Tensor) -> Callable[[], Tensor]:
    """Return what makes again a tensor that is full of one number; the tensor itself is not kept."""
    size, stride, dtype, device = out.size(), out.stride(), out.dtype, out.device
    return lambda: torch.empty_strided(size, stride, dtype=dtype, device=device).fill_(number)


def filled_alone(call: ProgramCall, layouts: Mapping[int, Layout]) -> ProgramCall:
    """Return a call that fills a tensor with one number as one that looks at no other tensor for its sizes."""
    number = filled_with(call.target, call.args)
    if number is None or not call.operands:
        return call
    made = layouts[call.outputs[0] or 0]
    if any(made.twisted) or not made.contiguous:
        return call
    named = {"dtype": made.dtype, "device": made.device}
    return ProgramCall(_aten.full.default, (list(made.shape), number), named, call.outputs, call.segment)
