"""Local derivatives of functions of several tensors, entry by entry, broadcast against each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .arguments import Arguments, arguments, for_active, for_every_active
from .entrywise import Formula, by_tangent_of_ones, multiple, scaled, weighted, zero
from .registry import Call, Local, Operand, local_rule

_aten = torch.ops.aten


def _factor(call: Call, position: int, name: str, of_number: Callable[[float], float], formula: Formula) -> Local:
    """Return the derivative by a factor that one other argument sets: a number, a tensor of one entry, or more."""
    other = arguments(call)[name]
    if not isinstance(other, Operand):
        return multiple(call, position, of_number(other))
    return (scaled if call.operands[other.position].numel == 1 else weighted)(call, position, formula)


@local_rule(_aten.mul.Tensor, _aten.mul.Scalar)
def _multiplication(call: Call) -> Mapping[int, Local]:
    # y = x z
    return for_active(
        call,
        self=lambda position: _factor(call, position, "other", float, lambda a, y: a["other"]),
        other=lambda position: _factor(call, position, "self", float, lambda a, y: a["self"]),
    )


def _quotient_by_denominator(a: Arguments, y: Tensor) -> Tensor:
    return -a["self"] / (a["other"] * a["other"])


@local_rule(_aten.div.Tensor, _aten.div.Scalar, _aten.div.Tensor_mode, _aten.div.Scalar_mode)
def _division(call: Call) -> Mapping[int, Local] | None:
    # y = x / z;   a rounded quotient is a step function
    named = arguments(call)
    if named.get("rounding_mode") is not None:
        return {position: zero(call, position) for position in call.active}
    if not isinstance(named["other"], Operand) and named["other"] == 0:
        return None
    return for_active(
        call,
        self=lambda position: _factor(
            call, position, "other", lambda z: 1 / z, lambda a, y: 1 / a["other"].to(y.dtype)
        ),
        other=lambda position: weighted(call, position, _quotient_by_denominator),
    )


@local_rule(_aten.where.self)
def _selection(call: Call) -> Mapping[int, Local]:
    return for_active(
        call,
        self=lambda position: weighted(call, position, lambda a, y: a["condition"]),
        other=lambda position: weighted(call, position, lambda a, y: ~a["condition"]),
    )


@local_rule(_aten.masked_fill.Scalar, _aten.masked_fill.Tensor)
def _masked_fill(call: Call) -> Mapping[int, Local]:
    return for_active(
        call,
        self=lambda position: weighted(call, position, lambda a, y: ~a["mask"]),
        value=lambda position: weighted(call, position, lambda a, y: a["mask"]),
    )


@local_rule(_aten.addcmul.default)
def _add_product(call: Call) -> Mapping[int, Local]:
    # y = x + α z₁ z₂
    return for_active(
        call,
        self=lambda position: multiple(call, position, 1),
        tensor1=lambda position: weighted(call, position, lambda a, y: a["value"] * a["tensor2"]),
        tensor2=lambda position: weighted(call, position, lambda a, y: a["value"] * a["tensor1"]),
    )


def _by_second_of_quotient(a: Arguments, y: Tensor) -> Tensor:
    return -a["value"] * a["tensor1"] / (a["tensor2"] * a["tensor2"])


@local_rule(_aten.addcdiv.default)
def _add_quotient(call: Call) -> Mapping[int, Local]:
    # y = x + α z₁ / z₂
    return for_active(
        call,
        self=lambda position: multiple(call, position, 1),
        tensor1=lambda position: weighted(call, position, lambda a, y: a["value"] / a["tensor2"].to(y.dtype)),
        tensor2=lambda position: weighted(call, position, _by_second_of_quotient),
    )


@local_rule(_aten.lerp.Tensor)
def _interpolation(call: Call) -> Mapping[int, Local]:
    # y = x + w (z − x)
    return for_active(
        call,
        self=lambda position: weighted(call, position, lambda a, y: 1 - a["weight"]),
        end=lambda position: weighted(call, position, lambda a, y: a["weight"]),
        weight=lambda position: weighted(call, position, lambda a, y: a["end"] - a["self"]),
    )


@local_rule(_aten._prelu_kernel.default)
def _prelu(call: Call) -> Mapping[int, Local]:
    # y = x where x > 0, else w x
    return for_active(
        call,
        self=lambda position: weighted(call, position, lambda a, y: torch.where(a["self"] > 0, 1, a["weight"])),
        weight=lambda position: weighted(call, position, lambda a, y: torch.where(a["self"] > 0, 0, a["self"])),
    )


def _remainder_rule(rounding_mode: str) -> Callable[[Call], Mapping[int, Local]]:
    # y = x − z · rounded(x / z)
    def by_divisor(a: Arguments, y: Tensor) -> Tensor:
        return -torch.div(a["self"], a["other"], rounding_mode=rounding_mode)

    def rule(call: Call) -> Mapping[int, Local]:
        return for_active(
            call,
            self=lambda position: multiple(call, position, 1),
            other=lambda position: weighted(call, position, by_divisor),
        )

    return rule


local_rule(_aten.fmod.Tensor)(_remainder_rule("trunc"))
local_rule(_aten.remainder.Tensor)(_remainder_rule("floor"))


@local_rule(_aten.ldexp.Tensor)
def _times_power_of_two(call: Call) -> Mapping[int, Local]:
    # y = x 2^z; by formula, since its JVP kills the process where a recording looks on (in 2.11 to 2.15)
    return for_active(
        call,
        self=lambda position: weighted(call, position, lambda a, y: torch.exp2(a["other"].to(y.dtype))),
        other=lambda position: weighted(call, position, lambda a, y: y * math.log(2)),
    )


@local_rule(
    _aten.copysign.Tensor,
    _aten.special_xlog1py.default,
    _aten.xlogy.Tensor,
    _aten.xlogy.Scalar_Other,
)
def _by_pushforward(call: Call) -> Mapping[int, Local]:
    return for_every_active(call, lambda position: by_tangent_of_ones(call, position))
