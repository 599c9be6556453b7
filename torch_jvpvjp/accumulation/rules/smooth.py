"""Local derivatives of smooth functions of one tensor, entry by entry: J = diag(f'(x)), by formula."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .arguments import Arguments, for_active
from .entrywise import by_tangent_of_ones, weighted
from .registry import Call, Local, local_rule

_aten = torch.ops.aten
_TWO_OVER_ROOT_PI = 2 / math.sqrt(math.pi)

_Formula = Callable[[Tensor, Tensor], Tensor]  # (x, y) -> f'(x)

_OF_ARGUMENT: dict[torch._ops.OpOverload, _Formula] = {
    _aten.acos.default: lambda x, y: -(1 - x * x).rsqrt(),
    _aten.acosh.default: lambda x, y: (x * x - 1).rsqrt(),
    _aten.asin.default: lambda x, y: (1 - x * x).rsqrt(),
    _aten.asinh.default: lambda x, y: (x * x + 1).rsqrt(),
    _aten.atan.default: lambda x, y: 1 / (x * x + 1),
    _aten.atanh.default: lambda x, y: 1 / (1 - x * x),
    _aten.cos.default: lambda x, y: -x.sin(),
    _aten.cosh.default: lambda x, y: x.sinh(),
    _aten.digamma.default: lambda x, y: torch.polygamma(1, x),
    _aten.erf.default: lambda x, y: _TWO_OVER_ROOT_PI * (-x * x).exp(),
    _aten.erfc.default: lambda x, y: -_TWO_OVER_ROOT_PI * (-x * x).exp(),
    _aten.lgamma.default: lambda x, y: x.digamma(),
    _aten.log.default: lambda x, y: 1 / x,
    _aten.log10.default: lambda x, y: 1 / (x * math.log(10)),
    _aten.log1p.default: lambda x, y: 1 / (x + 1),
    _aten.log2.default: lambda x, y: 1 / (x * math.log(2)),
    _aten.log_sigmoid_forward.default: lambda x, y: (-x).sigmoid(),
    _aten.sin.default: lambda x, y: x.cos(),
    _aten.sinh.default: lambda x, y: x.cosh(),
    _aten.i0.default: lambda x, y: torch.special.i1(x),
}

_OF_OUTPUT: dict[torch._ops.OpOverload, _Formula] = {
    _aten.erfinv.default: lambda x, y: (y * y).exp() / _TWO_OVER_ROOT_PI,
    _aten.exp.default: lambda x, y: y,
    _aten.exp2.default: lambda x, y: y * math.log(2),
    _aten.expm1.default: lambda x, y: y + 1,
    _aten.reciprocal.default: lambda x, y: -y * y,
    _aten.rsqrt.default: lambda x, y: -0.5 * y.pow(3),
    _aten.sigmoid.default: lambda x, y: _aten.sigmoid_backward(torch.ones_like(y), y),  # y (1 − y), in one pass
    _aten.special_erfcx.default: lambda x, y: 2 * x * y - _TWO_OVER_ROOT_PI,
    _aten.special_ndtri.default: lambda x, y: math.sqrt(2 * math.pi) * (y * y / 2).exp(),
    _aten.sqrt.default: lambda x, y: 1 / (2 * y),
    _aten.tan.default: lambda x, y: 1 + y * y,
    _aten.tanh.default: lambda x, y: _aten.tanh_backward(torch.ones_like(y), y),  # 1 − y²
}


def _silu(x: Tensor, y: Tensor) -> Tensor:
    # (x s(x))' = s (1 + x (1 − s)), with s the logistic function
    s = x.sigmoid()
    return s * (1 + x * (1 - s))


def _mish(x: Tensor, y: Tensor) -> Tensor:
    # (x t)' = t + x s (1 − t²), with t = tanh(softplus(x)) and s the logistic function
    t = torch.nn.functional.softplus(x).tanh()
    return t + x * x.sigmoid() * (1 - t * t)


_COMPOUND: dict[torch._ops.OpOverload, _Formula] = {_aten.silu.default: _silu, _aten.mish.default: _mish}


def _by_formula(formula: _Formula) -> Callable[[Call], Mapping[int, Local]]:
    def of_arguments(a: Arguments, y: Tensor) -> Tensor:
        return formula(a["self"], y)

    def rule(call: Call) -> Mapping[int, Local]:
        return for_active(call, self=lambda position: weighted(call, position, of_arguments))

    return rule


for _target, _formula in (_OF_ARGUMENT | _OF_OUTPUT | _COMPOUND).items():
    local_rule(_target)(_by_formula(_formula))


@local_rule(
    _aten.sinc.default,
    _aten.special_bessel_j0.default,
    _aten.special_entr.default,
    _aten.special_i0e.default,
    _aten.special_i1.default,
    _aten.special_i1e.default,
    _aten.special_log_ndtr.default,
)
def _by_pushforward(call: Call) -> Mapping[int, Local]:
    return for_active(call, self=lambda position: by_tangent_of_ones(call, position))


@local_rule(_aten.polygamma.default)
def _polygamma(call: Call) -> Mapping[int, Local]:
    # (ψ⁽ⁿ⁾)' = ψ⁽ⁿ⁺¹⁾
    def formula(a: Arguments, y: Tensor) -> Tensor:
        return torch.polygamma(a["n"] + 1, a["self"])

    return for_active(call, self=lambda position: weighted(call, position, formula))
