"""Local derivative of the gated linear unit, which reads two entries for each one that it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..structure import Pattern, Values
from ..structures.index import frozen
from .arguments import arguments, for_active
from .indexing import MOST_PATTERN, check_values
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


@local_rule(_aten.glu.default)
def _gated(call: Call) -> Mapping[int, Local]:
    # x = [a; b] along a dimension, s the logistic of b:  y = a ⊙ s  ⇒  ∂y/∂a = s,  ∂y/∂b = a s (1 − s) = y (1 − s)
    shape, m = call.operands[0].shape, call.output.numel
    dim = arguments(call)["dim"] % len(shape)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        s = operands[0].chunk(2, dim)[1].sigmoid()
        return torch.stack((s, outputs[0] * (1 - s)), dim=-1).reshape(-1)

    def local(position: int) -> Local:
        check_values(2 * m, MOST_PATTERN)
        halves = np.split(np.arange(shape.numel()).reshape(shape), 2, axis=dim)
        columns = np.stack([half.reshape(-1) for half in halves], axis=1).reshape(-1)
        return Local(Pattern(m, 2 * m, frozen(2 * np.arange(m + 1)), frozen(columns)), 3 * m, values)

    return for_active(call, self=local)
