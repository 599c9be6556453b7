"""The reference of the norms over last axes and its rules up to the second order.

One op serves layer norm and RMS norm, plain and modulated. In the dispatcher, weight, bias and tangents may have more
axes in front than input: that is where vmap puts a batch, and where a gain for each sample lies.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...registration import broadcasting_rule, differentiable_op, expanding_rule
from .._arithmetic import cotangents_like, empty_like, wide
from .._groups import sum_to
from .maps import Rows, Unit, bend, pull, push


@differentiable_op("torch_jvpvjp::norm", composite=True)
def op(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_ndim: int,
    eps: float,
    centred: bool,
    offset: float,
    rounded: bool,
) -> Tensor:
    """The reference: y = x̂ ∘ (offset + w) + b.

    Args:
        input: x, shape (*batch, *normalized).
        weight: w, shape (*normalized) or with axes in front that broadcast against batch; or None for a gain of ones.
        bias: b, like weight; or None for zeros.
        normalized_ndim: Number of normalised axes.
        eps: ε.
        centred: Whether rows are centred first: layer norm, else RMS norm.
        offset: Added to w where there is one.
        rounded: Whether x̂ is rounded to input's dtype before it meets the gain.

    Returns:
        y, of input's dtype and the broadcast shape.
    """
    return _value(Rows(normalized_ndim, eps, centred).unit(wide(input, input)), input, weight, bias, offset, rounded)


def _value(
    at: Unit, primal: Tensor, weight: Tensor | None, bias: Tensor | None, offset: float, rounded: bool
) -> Tensor:
    w, b = gain(weight, offset, primal), wide(bias, primal)
    y = rounded_to(at.x_hat, primal, rounded)
    y = y if w is None else y * w
    return (y if b is None else y + b).to(primal.dtype)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """y = x̂ ∘ (offset + w) + b,  ẏ = J(ẋ, ẇ, ḃ)."""
    check_tangents(primals, tangents)
    at, w, rows = _at(primals)
    x_dot, w_dot, b_dot = (wide(t, primals.input) for t in tangents)
    y_dot = push(at, w, x_dot, w_dot, b_dot, rows)
    # A term does not know of the batch axes of what is not in it; the tangent has them all the same.
    y_dot = y_dot.expand(_shape(*_tensors(primals), *tangents))
    y = _value(at, *_tensors(primals), primals.offset, primals.rounded)
    return y, y_dot.to(primals.input.dtype)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """x̄, w̄, b̄ = Jᵀȳ."""
    rows, w = rows_of(inputs), gain(inputs.weight, inputs.offset, inputs.input)
    at = rows.unit(wide(inputs.input, inputs.input))
    return cotangents_like(pull(at, w, wide(cotangents.y, inputs.input), rows, needs), _tensors(inputs))


@op.jvp.vjp
def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over forward: with a, b the cotangents of ẏ, y, the tangents get Jᵀa, the primals Jᵀb + ∂⟨a, ẏ⟩."""
    primal, primals = inputs.input, _tensors(inputs)
    at, w, rows = _at(inputs)
    x_dot, w_dot = wide(inputs.input_dot, primal), wide(inputs.weight_dot, primal)
    a, b = wide(cotangents.y_dot, primal), wide(cotangents.y, primal)
    first = pull(at, w, a, rows, needs[3:])
    second = _plus(pull(at, w, b, rows, needs[:3]), bend(at, w, x_dot, w_dot, a, rows, needs), primals)
    return cotangents_like((*second, *first), (*primals, inputs.input_dot, inputs.weight_dot, inputs.bias_dot))


@op.vjp.jvp
def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Forward over reverse: the tangent of Jᵀȳ is Jᵀȳ′ + ∂⟨ȳ, J(ẋ, ẇ, ḃ)⟩, second derivatives being symmetric."""
    primal, needs, likes = primals.input, tuple(primals.needs), _tensors(primals)
    at, w, rows = _at(primals)
    a, b = wide(primals.y_bar, primal), wide(tangents.y_bar, primal)
    x_dot, w_dot = wide(tangents.input, primal), wide(tangents.weight, primal)
    first = pull(at, w, a, rows, needs)
    second = _plus(pull(at, w, b, rows, needs), bend(at, w, x_dot, w_dot, a, rows, needs), likes)
    return cotangents_like(first, likes), cotangents_like(second, likes)


@op.vjp.vjp
def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over reverse: with u the cotangents of Jᵀȳ,  ȳ̄ = J u  and  x, w get ∂⟨ȳ, J u⟩/∂(x, w)."""
    primal = inputs.input
    at, w, rows = _at(inputs)
    u, v, z = (wide(c, primal) for c in cotangents)
    y_bar_bar = push(at, w, u, v, z, rows) if needs[0] else None
    if y_bar_bar is not None:
        y_bar_bar = y_bar_bar.expand(_shape(inputs.y_bar, y_bar_bar))
    bent = bend(at, w, u, v, wide(inputs.y_bar, primal), rows, needs[1:])
    return cotangents_like((y_bar_bar, *bent), (inputs.y_bar, *_tensors(inputs)))


# ---- vmap: a batch axis goes in front of axes that broadcast from the right ------------------------------------------
# Positions are those of the flat arguments: input, weight, bias and five options; in a JVP an unbatched primal stays
# unbatched, so K tangents are one launch.

op.vmap(broadcasting_rule(op, results_of=[(0, 1, 2)]))
op.jvp.vmap(broadcasting_rule(op.jvp.op, results_of=[(0, 1, 2), (0, 1, 2, 8, 9, 10)]))  # ... and the tangents
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1, 2, 3)))  # y_bar, input, weight, bias, ...
op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(2, 3, 4, 10, 11, 12)))  # y_bar, y_dot_bar, input, ...
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(1, 2, 3, 1, 2, 3)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(3, 4, 5, 6)))  # three cotangents, y_bar, input, ...


# ---- shapes: what tracing sees instead of the formulas ---------------------------------------------------------------


@op.fake
def _fake(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_ndim: int,
    eps: float,
    centred: bool,
    offset: float,
    rounded: bool,
) -> Tensor:
    return input.new_empty(_shape(input, weight, bias))


@op.jvp.fake
def _jvp_fake(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    check_tangents(primals, tangents)
    x, tensors = primals.input, _tensors(primals)
    return x.new_empty(_shape(*tensors)), x.new_empty(_shape(*tensors, *tangents))


@op.vjp.fake
def _vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return empty_like(*_tensors(inputs))


@op.jvp.vjp.fake
def _jvp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return empty_like(*_tensors(inputs), inputs.input_dot, inputs.weight_dot, inputs.bias_dot)


@op.vjp.jvp.fake
def _vjp_jvp_fake(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    return empty_like(*_tensors(primals)), empty_like(*_tensors(primals))


@op.vjp.vjp.fake
def _vjp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return empty_like(inputs.y_bar, *_tensors(inputs))


# ---- small pieces ----------------------------------------------------------------------------------------------------


def gain(weight: Tensor | None, offset: float, primal: Tensor) -> Any:
    """offset + w in the dtype the op computes in, None for ones."""
    w = wide(weight, primal)
    return w + offset if w is not None and offset else w


def rounded_to(unit: Tensor, primal: Tensor, rounded: bool) -> Tensor:
    """x̂, rounded to the primal's dtype if asked, in its own."""
    return unit.to(primal.dtype).to(unit.dtype) if rounded and primal.dtype != unit.dtype else unit


def rows_of(inputs: Any) -> Rows:
    """How the rows of a point's inputs are normalised."""
    return Rows(inputs.normalized_ndim, inputs.eps, inputs.centred)


def _at(inputs: Any) -> tuple[Unit, Any, Rows]:
    """x̂ and r of a point's inputs as the second order needs them, the gain, and how rows are normalised."""
    rows, x = rows_of(inputs), inputs.input
    return rows.unit_about_first(wide(x, x)), gain(inputs.weight, inputs.offset, x), rows


def _tensors(inputs: Any) -> tuple[Any, Any, Any]:
    return inputs.input, inputs.weight, inputs.bias


def _shape(*tensors: Tensor | None) -> torch.Size:
    return torch.broadcast_shapes(*(t.shape for t in tensors if t is not None))


def _plus(
    first: Sequence[Tensor | None], second: Sequence[Tensor | None], likes: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Sums of cotangents that may be broadcast differently; None is zero."""
    sums = []
    for one, other, like in zip(first, second, likes, strict=True):
        if one is None or other is None or like is None:
            sums.append(other if one is None else one)
        else:
            sums.append(sum_to(one, like.shape) + sum_to(other, like.shape))
    return tuple(sums)


def check_tangents(primals: Any, tangents: Any) -> None:
    """Refuse a tangent that does not lie at its primal."""
    for name, tangent in zip(tangents._fields, tangents, strict=True):
        primal = getattr(primals, name)
        if tangent is None or (primal is not None and tangent.shape == primal.shape):
            continue
        if primal is None:
            raise ValueError(f"norm: the tangent of {name} must be absent, as {name} is, got a tensor; pass None.")
        ndim = primals.normalized_ndim
        fits = tangent.shape[tangent.dim() - ndim :] == primal.shape[primal.dim() - ndim :]
        try:
            torch.broadcast_shapes(primal.shape, tangent.shape)
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"norm: the tangent of {name} must have shape {tuple(primal.shape)}, as {name} has, got "
                f"{tuple(tangent.shape)}."
            )
