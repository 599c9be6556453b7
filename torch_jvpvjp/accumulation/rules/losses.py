"""Local derivatives of losses.

Of two tensors of one shape y = Σ ℓ(x − t), or its mean, so ∂y/∂t = −∂y/∂x; of classes y_i = −w x_{i, t(i)}.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..structure import Dense, Diagonal, Values, WeightedGather
from .arguments import arguments, for_active, reader
from .indexing import check_indices, unrecorded
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
OF_CLASSES = frozenset({_aten.nll_loss_forward.default, _aten.nll_loss2d_forward.default})


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


@local_rule(*OF_CLASSES)
def _of_classes(call: Call) -> Mapping[int, Local] | None:
    # y_i = −w_t(i) x_{i, t(i)}, and 0 where t(i) is ignored; sums and means of them are one row, which a pullback gives
    named = arguments(call)
    target = named["target"]
    if named["reduction"] != _NONE or target.position not in call.known or not call.output.numel:
        return None
    x = call.operands[named["self"].position]
    with unrecorded():
        classes = call.known[target.position].cpu()
        kept = classes != named["ignore_index"]
        check_indices(max(x.numel, classes.numel()))
        numbers = torch.arange(x.numel).reshape(x.shape)
        axis = min(len(x.shape) - 1, 1)
        chosen = torch.where(kept, classes, 0).unsqueeze(axis)
        places = numbers.gather(axis, chosen).reshape(-1).numpy()
    read = reader(call)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        a = read(operands)
        present = kept.to(outputs[0].device)
        if a["weight"] is None:
            return -present.to(outputs[0].dtype).reshape(-1)
        weight = a["weight"].take(torch.where(present, a["target"], 0))
        return torch.where(present, -weight, 0).reshape(-1)

    return for_active(call, self=lambda position: Local(WeightedGather(x.numel, places), 0, values))


def is_of_each_sample(reduction: int) -> bool:
    """Return whether a loss is not reduced, so that its Jacobian shows which class each sample has."""
    return reduction == _NONE
