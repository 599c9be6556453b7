"""Local derivatives of functions of several tensors with kinks or special points, as PyTorch's autograd has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .arguments import Arguments, for_active, for_every_active
from .entrywise import Formula, by_cotangent_of_ones, weighted
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


def _larger(mine: str, other: str) -> Formula:
    # 1 where mine is the larger, ½ each where they are equal
    def formula(a: Arguments, y: Tensor) -> Tensor:
        x, z = a[mine], a[other]
        return torch.where(x == z, 0.5, torch.ones_like(y)).masked_fill(x < z, 0)

    return formula


def _smaller(mine: str, other: str) -> Formula:
    def formula(a: Arguments, y: Tensor) -> Tensor:
        x, z = a[mine], a[other]
        return torch.where(x == z, 0.5, torch.ones_like(y)).masked_fill(x > z, 0)

    return formula


def _power_by_base(a: Arguments, y: Tensor) -> Tensor:
    # z x^(z−1), and 0 for z = 0 even where x is 0
    x, exponent = a["self"], a["exponent"]
    return torch.where(exponent == 0, 0, exponent * x.pow(exponent - 1))


def _power_by_exponent(a: Arguments, y: Tensor) -> Tensor:
    # x^z log x, and 0 for x = 0 where z ≥ 0
    x, exponent = a["self"], a["exponent"]
    return torch.where((x == 0) & (exponent >= 0), 0, y * x.to(y.dtype).log())


def _inverse_square(a: Arguments) -> Tensor:
    # 1 / (y² + x²), and 0 at the origin
    square = a["self"] * a["self"] + a["other"] * a["other"]
    return (1 / square).masked_fill(square == 0, 0)


def _share(mine: str, other: str, base: float) -> Formula:
    # log(eˣ + eᶻ) has the derivative 1 / (1 + e^(z − x)) in x
    def formula(a: Arguments, y: Tensor) -> Tensor:
        return 1 / (1 + torch.pow(base, a[other] - a[mine]))

    return formula


_FORMULAS: dict[torch._ops.OpOverload, dict[str, Formula]] = {
    _aten.atan2.default: {
        "self": lambda a, y: a["other"] * _inverse_square(a),
        "other": lambda a, y: -a["self"] * _inverse_square(a),
    },
    _aten.hypot.default: {"self": lambda a, y: a["self"] / y, "other": lambda a, y: a["other"] / y},
    _aten.logaddexp.default: {"self": _share("self", "other", math.e), "other": _share("other", "self", math.e)},
    _aten.logaddexp2.default: {"self": _share("self", "other", 2), "other": _share("other", "self", 2)},
    _aten.maximum.default: {"self": _larger("self", "other"), "other": _larger("other", "self")},
    _aten.minimum.default: {"self": _smaller("self", "other"), "other": _smaller("other", "self")},
    _aten.pow.Tensor_Tensor: {"self": _power_by_base, "exponent": _power_by_exponent},
}


def _by_formulas(formulas: Mapping[str, Formula]) -> Callable[[Call], Mapping[int, Local]]:
    def rule(call: Call) -> Mapping[int, Local]:
        makers = {
            name: lambda position, formula=formula: weighted(call, position, formula)
            for name, formula in formulas.items()
        }
        return for_active(call, **makers)

    return rule


for _target, _each in _FORMULAS.items():
    local_rule(_target)(_by_formulas(_each))


@local_rule(_aten.clamp.Tensor, _aten.clamp_max.Tensor, _aten.clamp_min.Tensor, _aten.fmax.default, _aten.fmin.default)
def _by_pullback(call: Call) -> Mapping[int, Local]:
    # where entries tie, PyTorch up to 2.13 gives all to the first, and later releases one half to each
    return for_every_active(call, lambda position: by_cotangent_of_ones(call, position))
