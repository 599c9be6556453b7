"""Local derivatives of losses that compare two tensors of one shape: y = Σ ℓ(x − t), or its mean, so ∂y/∂t = −∂y/∂x."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..structure import Dense, Diagonal, Values
from .arguments import arguments, for_active
from .registry import Call, Local, local_rule

_aten = torch.ops.aten

_Slope = Callable[[Tensor, Mapping[str, Any]], Tensor]  # (x − t, named arguments) -> ℓ'(x − t)


def _clipped(difference: Tensor, a: Mapping[str, Any]) -> Tensor:
    # ℓ(d) = d² / 2 up to |d| = δ, and linear from there
    return difference.clamp(-a["delta"], a["delta"])


def _clipped_and_scaled(difference: Tensor, a: Mapping[str, Any]) -> Tensor:
    # ℓ(d) = d² / (2 β) up to |d| = β, and linear from there
    return difference.sgn() if a["beta"] == 0 else (difference / a["beta"]).clamp(-1, 1)


_SLOPES: dict[torch._ops.OpOverload, _Slope] = {
    _aten.huber_loss.default: _clipped,
    _aten.mse_loss.default: lambda difference, a: 2 * difference,
    _aten.smooth_l1_loss.default: _clipped_and_scaled,
}
_NONE, _MEAN = 0, 1  # at::Reduction


def _by_slope(slope: _Slope) -> Callable[[Call], Mapping[int, Local] | None]:
    def rule(call: Call) -> Mapping[int, Local] | None:
        named, n = arguments(call), call.operands[0].numel
        if call.operands[0].shape != call.operands[1].shape:
            return None
        each = named["reduction"] == _NONE
        share = 1 / n if named["reduction"] == _MEAN else 1.0
        size = (n,) if each else (1, n)

        def local(sign: int) -> Local:
            def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
                slopes = slope(operands[0] - operands[1], named).reshape(size)
                return slopes if sign * share == 1 else slopes * (sign * share)

            return Local(Diagonal(n) if each else Dense(1, n), 2 * n, values)

        return for_active(call, self=lambda position: local(1), target=lambda position: local(-1))

    return rule


for _target, _slope in _SLOPES.items():
    local_rule(_target)(_by_slope(_slope))
