"""Local derivatives that are constant: copies, casts, sums, multiples, steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .arguments import arguments, for_active
from .entrywise import multiple, zero
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


@local_rule(
    _aten.alias.default,
    _aten.clone.default,
    _aten.contiguous.default,
    _aten.frac.default,
    _aten.lift.default,
    _aten.lift_fresh.default,
    _aten.positive.default,
    _aten._to_copy.default,
)
def _copy(call: Call) -> Mapping[int, Local] | None:
    if not call.output.dtype.is_floating_point:
        return None
    return for_active(call, self=lambda position: multiple(call, position, 1))


@local_rule(_aten.neg.default)
def _negation(call: Call) -> Mapping[int, Local]:
    return for_active(call, self=lambda position: multiple(call, position, -1))


@local_rule(_aten.deg2rad.default)
def _to_radians(call: Call) -> Mapping[int, Local]:
    return for_active(call, self=lambda position: multiple(call, position, torch.pi / 180))


@local_rule(_aten.rad2deg.default)
def _to_degrees(call: Call) -> Mapping[int, Local]:
    return for_active(call, self=lambda position: multiple(call, position, 180 / torch.pi))


@local_rule(_aten.add.Tensor, _aten.add.Scalar)
def _addition(call: Call) -> Mapping[int, Local]:
    # y = x + α z
    return for_active(
        call,
        self=lambda position: multiple(call, position, 1),
        other=lambda position: multiple(call, position, arguments(call)["alpha"]),
    )


@local_rule(_aten.sub.Tensor, _aten.sub.Scalar)
def _subtraction(call: Call) -> Mapping[int, Local]:
    # y = x − α z
    return for_active(
        call,
        self=lambda position: multiple(call, position, 1),
        other=lambda position: multiple(call, position, -arguments(call)["alpha"]),
    )


@local_rule(_aten.rsub.Tensor, _aten.rsub.Scalar)
def _reversed_subtraction(call: Call) -> Mapping[int, Local]:
    # y = z − α x
    return for_active(
        call,
        self=lambda position: multiple(call, position, -arguments(call)["alpha"]),
        other=lambda position: multiple(call, position, 1),
    )


@local_rule(_aten.lerp.Scalar)
def _interpolation(call: Call) -> Mapping[int, Local]:
    # y = x + w (z − x)
    weight = arguments(call)["weight"]
    return for_active(
        call,
        self=lambda position: multiple(call, position, 1 - weight),
        end=lambda position: multiple(call, position, weight),
    )


@local_rule(_aten.fmod.Scalar, _aten.remainder.Scalar)
def _division_remainder(call: Call) -> Mapping[int, Local]:
    # y = x − c · (a whole number)
    return for_active(call, self=lambda position: multiple(call, position, 1))


@local_rule(_aten.copy.default)
def _overwriting(call: Call) -> Mapping[int, Local]:
    # y = z, broadcast to the shape of x
    return for_active(
        call,
        self=lambda position: zero(call, position),
        src=lambda position: multiple(call, position, 1),
    )


@local_rule(_aten.fill.Tensor)
def _filling(call: Call) -> Mapping[int, Local]:
    return for_active(
        call,
        self=lambda position: zero(call, position),
        value=lambda position: multiple(call, position, 1),
    )


STEPS = [
    getattr(getattr(_aten, name), overload)
    for name, overloads in {
        "angle": ("default",),
        "argmax": ("default",),
        "argmin": ("default",),
        "argsort": ("default",),
        "bernoulli": ("default", "p"),
        "ceil": ("default",),
        "empty_like": ("default",),
        "eq": ("Tensor", "Scalar"),
        "fill": ("Scalar",),
        "floor": ("default",),
        "full_like": ("default",),
        "ge": ("Tensor", "Scalar"),
        "gt": ("Tensor", "Scalar"),
        "heaviside": ("default",),
        "isfinite": ("default",),
        "isinf": ("default",),
        "isnan": ("default",),
        "le": ("Tensor", "Scalar"),
        "logical_and": ("default",),
        "logical_not": ("default",),
        "logical_or": ("default",),
        "logical_xor": ("default",),
        "lt": ("Tensor", "Scalar"),
        "ne": ("Tensor", "Scalar"),
        "new_empty": ("default",),
        "new_full": ("default",),
        "new_ones": ("default",),
        "new_zeros": ("default",),
        "ones_like": ("default",),
        "rand_like": ("default",),
        "randn_like": ("default",),
        "round": ("default", "decimals"),
        "sgn": ("default",),
        "sign": ("default",),
        "signbit": ("default",),
        "trunc": ("default",),
        "zero": ("default",),
        "zeros_like": ("default",),
    }.items()
    for overload in overloads
]


@local_rule(*STEPS)
def _step(call: Call) -> Mapping[int, Local]:
    # constant between its jumps
    return {position: zero(call, position) for position in call.active}
