"""The reference of a linear layer, its rules up to the second order, and how vmap and tracing see them.

In the dispatcher x is (*lead, m, n_in), W (*lead, n_out, n_in) and b (*lead, 1, n_out); leads broadcast from the right:
that is where vmap puts a batch.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp, differentiable_op, expanding_rule
from ...registration.vmap import VmapRule, align, logical_shape
from .._arithmetic import empty_like, total
from . import maps
from .activations import IDENTITY
from .maps import Terms
from .points import Points, check_tangents, terms_of

formula = Points(maps.slopes, reads_z=False)


@differentiable_op("torch_jvpvjp::linear", residuals=("z",), composite=True)
def op(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    """The reference: z = x Wᵀ + b, y = f(z).

    Args:
        x: (*lead, m, n_in).
        weight: W, (*lead, n_out, n_in).
        bias: b, (*lead, 1, n_out), or None for zero.
        activation: Name of f, "identity" among them.

    Returns:
        y, (*lead, m, n_out), and z for the pullbacks, empty if f is the identity.
    """
    return formula.primal(x, weight, bias, activation)


def _unread(inputs: Any, needs: Any) -> tuple[str, ...]:
    """Of x̄ = ȳ W nothing depends on x: with a weight that is not trained, backward need not keep it."""
    return ("x",) if inputs.activation == IDENTITY and not needs.weight else ()


@op.vjp(shape_only=_unread)
def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """With α = f′(z) ȳ:  x̄ = α W,  W̄ = αᵀ x,  b̄ = Σ α."""
    return formula.vjp(cotangents, inputs, needs=needs)


op.jvp(formula.jvp)


def _unread_by_tangents(inputs: Any, needs: Any) -> tuple[str, ...]:
    """ȳ W + ẏ̄ Ẇ and ẏ̄ W, the cotangents of x and ẋ, depend on neither; that of Ẇ, ẏ̄ᵀ x, not on ẋ."""
    if inputs.activation != IDENTITY or needs.weight:
        return ()
    return ("x_dot",) if needs.weight_dot else ("x", "x_dot")


@op.jvp.vjp(shape_only=_unread_by_tangents)
def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over forward, see `points`."""
    return formula.jvp_vjp(cotangents, inputs, needs=needs)


@op.jvp.jvp
def _jvp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Forward over forward: y′ = f′z′ and ẏ′ = f″ż z′ + f′ż′ with ż′ = ẋ′ Wᵀ + x Ẇ′ᵀ + ḃ′ + ẋ W′ᵀ + x′ Ẇᵀ."""
    at, dots = terms_of(primals), Terms(primals.x_dot, primals.weight_dot, primals.bias_dot)
    primes = Terms(tangents.x, tangents.weight, tangents.bias)
    values = formula.jvp(op.signature.inputs_type(*at, primals.activation), op.signature.tangents_type(*dots))
    z_dot, z_prime = maps.project_tangents(at, dots), maps.project_tangents(at, primes)
    z_dot_prime = total(
        maps.project_tangents(at, Terms(tangents.x_dot, tangents.weight_dot, tangents.bias_dot)),
        None if dots.x is None or primes.weight is None else maps.project(dots.x, primes.weight, None),
        None if primes.x is None or dots.weight is None else maps.project(primes.x, dots.weight, None),
    )
    if primals.activation != IDENTITY:
        z = maps.project(*at)
        found = maps.slopes(
            primals.activation, z, z_dot, z_prime, z_dot_prime, wants_first=True, wants_second=True
        )  # f′z′ and f′ż′ + f″ż z′
        z_prime, z_dot_prime = found.first, found.second
    (y, _), y_dot = values
    return values, (_with_axes_of(z_prime, y), _with_axes_of(z_dot_prime, y if y_dot is None else y_dot))


def _with_axes_of(tangent: Tensor | None, output: Tensor) -> Tensor | None:
    """A tangent with the batch axes of its output, which what it is made of may lack."""
    return None if tangent is None else tangent.expand(torch.broadcast_shapes(tangent.shape, output.shape))


op.vjp.jvp(formula.vjp_jvp)
op.vjp.vjp(formula.vjp_vjp)


# ---- vmap: a batch axis goes in front of the lead --------------------------------------------------------------------


def _broadcasting_rule(point: DifferentiableOp, results: Sequence[tuple[int, ...]]) -> VmapRule:
    """The vmap rule of a point whose results are (*lead, m, n_out), the lead being that of several arguments."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        computed = point.unpacked(point.overload(*align(info, in_dims, args, expand=False)))
        shapes = [logical_shape(a, dim) for a, dim in zip(args, in_dims, strict=True)]
        assert shapes[0] is not None and shapes[1] is not None
        own = (shapes[0][-2], shapes[1][-2])
        shaped: list[Tensor] = []
        out_dims: list[int | None] = []
        for j, (result, sources) in enumerate(zip(computed, results, strict=True)):
            if j == 1 and args[3] == IDENTITY:  # no z
                shaped.append(result)
                out_dims.append(None)
                continue
            lead = torch.broadcast_shapes(*(s[:-2] for i in sources if (s := shapes[i]) is not None))
            batched = any(in_dims[i] is not None for i in sources)
            if batched and result.numel() != info.batch_size * prod(lead) * prod(own):
                result = result.expand(info.batch_size, *result.shape)  # noqa: PLW2901 -- equal along it: a zero
            shaped.append(result.reshape((*((info.batch_size,) if batched else ()), *lead, *own)))
            out_dims.append(0 if batched else None)
        return tuple(shaped), tuple(out_dims)

    return rule


_SOURCES = (0, 1, 2)  # x, weight, bias, activation
op.vmap(_broadcasting_rule(op, [_SOURCES, _SOURCES]))
op.jvp.vmap(_broadcasting_rule(op.jvp.op, [_SOURCES, _SOURCES, (*_SOURCES, 4, 5, 6)]))  # ... and the tangents
_PRIMES = (*_SOURCES, 7, 8, 9)
op.jvp.jvp.vmap(
    _broadcasting_rule(
        op.jvp.jvp.op, [_SOURCES, _SOURCES, (*_SOURCES, 4, 5, 6), _PRIMES, (*_PRIMES, 4, 5, 6, 10, 11, 12)]
    )
)
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1, 2, 3)))  # y_bar, x, weight, bias, activation, z, needs
op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(2, 3, 4, 6, 7, 8)))  # y_bar, y_dot_bar, x, ...
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(1, 2, 3, 1, 2, 3)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(3, 4, 5, 6)))  # three cotangents, y_bar, x, ...


# ---- shapes: what tracing sees instead of the formulas ---------------------------------------------------------------


@op.fake
def _fake(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    y = _empty(x, weight, x, weight, bias)
    return y, x.new_empty(0) if activation == IDENTITY else y.new_empty(y.shape)


@op.jvp.fake
def _jvp_fake(primals: Any, tangents: Any) -> tuple[Any, Any]:
    check_tangents(primals, tangents)
    x, weight, bias, activation = primals
    return _fake(x, weight, bias, activation), _empty(x, weight, x, weight, bias, *tangents)


@op.vjp.fake
def _vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return empty_like(inputs.x, inputs.weight, inputs.bias)


@op.jvp.vjp.fake
def _jvp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return empty_like(inputs.x, inputs.weight, inputs.bias, inputs.x_dot, inputs.weight_dot, inputs.bias_dot)


@op.vjp.jvp.fake
def _vjp_jvp_fake(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    likes = (primals.x, primals.weight, primals.bias)
    return empty_like(*likes), empty_like(*likes)


@op.vjp.vjp.fake
def _vjp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return empty_like(inputs.y_bar, inputs.x, inputs.weight, inputs.bias)


def _empty(x: Tensor, weight: Tensor, *operands: Tensor | None) -> Tensor:
    """A result with the lead of all operands."""
    lead = torch.broadcast_shapes(*(t.shape[:-2] for t in operands if t is not None))
    return x.new_empty((*lead, x.shape[-2], weight.shape[-2]))


op.autocast("lower")
