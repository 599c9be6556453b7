"""Local derivatives of activations with parameters or kinks, where PyTorch's own choice of a subgradient is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache

import torch
from torch import Tensor

from .arguments import Arguments, for_active
from .entrywise import Formula, weighted
from .indexing import unrecorded
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


def _ones(a: Arguments) -> Tensor:
    return torch.ones_like(a["self"])


def _celu(a: Arguments, y: Tensor) -> Tensor:
    # celu_α(x) = elu(x; α, scale 1, input scale 1/α)
    return _aten.elu_backward(_ones(a), a["alpha"], 1, 1 / a["alpha"], False, a["self"])


@cache
def _bound_is_inside() -> bool:
    """Return whether the derivative of a clamp at its bound is 1, as in PyTorch up to 2.13, or 0, as in later ones."""
    with unrecorded(), torch.enable_grad():
        x = torch.zeros((), requires_grad=True, device="cpu")
        (slope,) = torch.autograd.grad(x.clamp(min=0), x)
        return slope.item() == 1


def _clamp(a: Arguments, y: Tensor) -> Tensor:
    x, low, high = a["self"], a.get("min"), a.get("max")
    above = None if low is None else (x >= low if _bound_is_inside() else x > low)
    below = None if high is None else (x <= high if _bound_is_inside() else x < high)
    if above is None:
        return torch.ones_like(x) if below is None else below
    return above if below is None else above & below


def _power(a: Arguments, y: Tensor) -> Tensor:
    # p x^(p-1), and 0 for p = 0 even where x is 0
    x, exponent = a["self"], a["exponent"]
    return torch.zeros_like(x) if exponent == 0 else exponent * x.pow(exponent - 1)


def _exponential(a: Arguments, y: Tensor) -> Tensor:
    # (b^x)' = b^x log b, and 0 for b = 0 where x ≥ 0
    base, x = a["self"], a["exponent"]
    slope = y * y.new_full((), base).log()
    return slope.masked_fill(x >= 0, 0) if base == 0 else slope


def _logit(a: Arguments, y: Tensor) -> Tensor:
    # 1 / (x (1 − x)) within the bounds; outside 0, or NaN where none were given. PyTorch's adjoint has no derivative.
    x, eps = a["self"], a["eps"]
    bound = 0.0 if eps is None else eps
    outside = (x < bound) | (x > 1 - bound)
    return torch.where(outside, math.nan if eps is None else 0.0, 1 / (x * (1 - x)))


# A pullback of ones through PyTorch's own adjoint has its value at every kink.
FORMULAS: dict[torch._ops.OpOverload, Formula] = {
    _aten.abs.default: lambda a, y: a["self"].sgn(),
    _aten.celu.default: _celu,
    _aten.clamp.default: _clamp,
    _aten.clamp_max.default: _clamp,
    _aten.clamp_min.default: _clamp,
    _aten.elu.default: lambda a, y: _aten.elu_backward(
        _ones(a), a["alpha"], a["scale"], a["input_scale"], False, a["self"]
    ),
    _aten.gelu.default: lambda a, y: _aten.gelu_backward(_ones(a), a["self"], approximate=a["approximate"]),
    _aten.hardshrink.default: lambda a, y: _aten.hardshrink_backward(_ones(a), a["self"], a["lambd"]),
    _aten.hardsigmoid.default: lambda a, y: _aten.hardsigmoid_backward(_ones(a), a["self"]),
    _aten.hardswish.default: lambda a, y: _aten.hardswish_backward(_ones(a), a["self"]),
    _aten.hardtanh.default: lambda a, y: _aten.hardtanh_backward(_ones(a), a["self"], a["min_val"], a["max_val"]),
    _aten.leaky_relu.default: lambda a, y: _aten.leaky_relu_backward(_ones(a), a["self"], a["negative_slope"], False),
    _aten.logit.default: _logit,
    _aten.nan_to_num.default: lambda a, y: a["self"].isfinite(),
    _aten.pow.Tensor_Scalar: _power,
    _aten.relu.default: lambda a, y: _aten.threshold_backward(torch.ones_like(y), y, 0),
    _aten.softplus.default: lambda a, y: _aten.softplus_backward(_ones(a), a["self"], a["beta"], a["threshold"]),
    _aten.softshrink.default: lambda a, y: _aten.softshrink_backward(_ones(a), a["self"], a["lambd"]),
    _aten.threshold.default: lambda a, y: _aten.threshold_backward(_ones(a), a["self"], a["threshold"]),
}


def _by_formula(formula: Formula) -> Callable[[Call], Mapping[int, Local]]:
    def rule(call: Call) -> Mapping[int, Local]:
        return for_active(call, self=lambda position: weighted(call, position, formula))

    return rule


for _target, _formula in FORMULAS.items():
    local_rule(_target)(_by_formula(_formula))


@local_rule(_aten.pow.Scalar)
def _of_exponent(call: Call) -> Mapping[int, Local]:
    return for_active(call, exponent=lambda position: weighted(call, position, _exponential))
