"""Local derivative of dropout: the mask that was drawn is one of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..structure import Diagonal, Values
from .arguments import arguments, for_active
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


@local_rule(_aten.native_dropout.default)
def _dropout(call: Call) -> Mapping[int, Local] | None:
    # y = x ⊙ mask / (1 − p)
    named = arguments(call)
    n, dtype = call.output.numel, call.output.dtype
    scale = 1.0 if not named["train"] else 0.0 if named["p"] == 1 else 1 / (1 - named["p"])

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        return (outputs[1].to(dtype) * scale).reshape(-1)

    return for_active(call, input=lambda position: Local(Diagonal(n), n, values))
