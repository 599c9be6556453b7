"""The reference of RMS norm and its rules up to the second order.

In the dispatcher, weight and tangents may have more axes in front than input: that is where vmap puts a batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...registration import broadcasting_rule, differentiable_op, expanding_rule
from .._groups import sum_to
from .maps import bend, inverse_rms, pull, push


@differentiable_op("torch_jvpvjp::rms_norm")
def op(input: Tensor, weight: Tensor | None, normalized_ndim: int, eps: float) -> Tensor:  # noqa: A002
    """The reference: y = r x ∘ w.

    Args:
        input: x, shape (*batch, *normalized).
        weight: w, shape (*normalized) or with axes in front that broadcast against batch; or None for ones.
        normalized_ndim: Number of normalised axes.
        eps: ε.

    Returns:
        y, of input's dtype and the broadcast shape.
    """
    x, w = _up(input, input), _up(weight, input)
    y = x * inverse_rms(x, normalized_ndim, eps)
    return (y if w is None else y * w).to(input.dtype)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """y = r x ∘ w,  ẏ = J(ẋ, ẇ)."""
    check_tangents(primals, tangents)
    x, w = _up(primals.input, primals.input), _up(primals.weight, primals.input)
    x_dot, w_dot = _up(tangents.input, primals.input), _up(tangents.weight, primals.input)
    y = x * inverse_rms(x, primals.normalized_ndim, primals.eps)
    y_dot = push(x, w, x_dot, w_dot, primals.normalized_ndim, primals.eps)
    # x̂ ∘ ẇ does not know of the batch axes of w; the tangent has them all the same.
    y_dot = y_dot.expand(torch.broadcast_shapes(*(t.shape for t in (x, w, x_dot, w_dot) if t is not None)))
    return (y if w is None else y * w).to(primals.input.dtype), y_dot.to(primals.input.dtype)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """x̄, w̄ = Jᵀȳ."""
    x, w = _up(inputs.input, inputs.input), _up(inputs.weight, inputs.input)
    y_bar = _up(cotangents.y, inputs.input)
    pulled = pull(x, w, y_bar, inputs.normalized_ndim, inputs.eps, needs)
    return _like(pulled, (inputs.input, inputs.weight))


@op.jvp.vjp
def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over forward: with a, b the cotangents of ẏ, y,  ẋ̄, ẇ̄ = Jᵀa  and  x̄, w̄ = Jᵀb + ∂⟨a, ẏ⟩/∂(x, w)."""
    primal, ndim, eps = inputs.input, inputs.normalized_ndim, inputs.eps
    x, w = _up(primal, primal), _up(inputs.weight, primal)
    x_dot, w_dot = _up(inputs.input_dot, primal), _up(inputs.weight_dot, primal)
    a, b = _up(cotangents.y_dot, primal), _up(cotangents.y, primal)
    first = pull(x, w, a, ndim, eps, needs[2:])
    second = _plus(
        pull(x, w, b, ndim, eps, needs[:2]), bend(x, w, x_dot, w_dot, a, ndim, eps, needs[:2]), (primal, inputs.weight)
    )
    return _like((*second, *first), (primal, inputs.weight, inputs.input_dot, inputs.weight_dot))


@op.vjp.jvp
def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Forward over reverse: the tangent of Jᵀȳ is Jᵀȳ′ + ∂⟨ȳ, J(ẋ, ẇ)⟩/∂(x, w), second derivatives being symmetric."""
    primal, ndim, eps, needs = primals.input, primals.normalized_ndim, primals.eps, tuple(primals.needs)
    x, w = _up(primal, primal), _up(primals.weight, primal)
    a, b = _up(primals.y_bar, primal), _up(tangents.y_bar, primal)
    x_dot, w_dot = _up(tangents.input, primal), _up(tangents.weight, primal)
    likes = (primal, primals.weight)
    first = pull(x, w, a, ndim, eps, needs)
    second = _plus(pull(x, w, b, ndim, eps, needs), bend(x, w, x_dot, w_dot, a, ndim, eps, needs), likes)
    return _like(first, likes), _like(second, likes)


@op.vjp.vjp
def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over reverse: with u, v the cotangents of x̄, w̄,  ȳ̄ = J(u, v)  and  x, w get ∂⟨ȳ, J(u, v)⟩/∂(x, w)."""
    primal, ndim, eps = inputs.input, inputs.normalized_ndim, inputs.eps
    x, w = _up(primal, primal), _up(inputs.weight, primal)
    u, v = _up(cotangents.input_bar, primal), _up(cotangents.weight_bar, primal)
    y_bar_bar = push(x, w, u, v, ndim, eps) if needs[0] else None
    bent = bend(x, w, u, v, _up(inputs.y_bar, primal), ndim, eps, needs[1:])
    return _like((y_bar_bar, *bent), (inputs.y_bar, primal, inputs.weight))


# ---- vmap: a batch axis goes in front of axes that broadcast from the right ------------------------------------------
# Positions are those of the flat arguments; in a JVP an unbatched primal stays unbatched, so K tangents are one launch.

op.vmap(broadcasting_rule(op, results_of=[(0, 1)]))  # input, weight, normalized_ndim, eps
op.jvp.vmap(broadcasting_rule(op.jvp.op, results_of=[(0, 1), (0, 1, 4, 5)]))  # ... and input_dot, weight_dot
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1, 2)))  # y_bar, input, weight, ...
op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(2, 3, 6, 7)))  # y_bar, y_dot_bar, input, weight, ...
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(1, 2, 1, 2)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(2, 3, 4)))  # two cotangents, y_bar, input, weight, ...


# ---- shapes: what tracing sees instead of the formulas ---------------------------------------------------------------


@op.fake
def _fake(input: Tensor, weight: Tensor | None, normalized_ndim: int, eps: float) -> Tensor:  # noqa: A002
    return _empty(input, input, weight)


@op.jvp.fake
def _jvp_fake(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    check_tangents(primals, tangents)
    x, w = primals.input, primals.weight
    return _empty(x, x, w), _empty(x, x, w, tangents.input, tangents.weight)


@op.vjp.fake
def _vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return _empty_like(inputs.input, inputs.weight)


@op.jvp.vjp.fake
def _jvp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return _empty_like(inputs.input, inputs.weight, inputs.input_dot, inputs.weight_dot)


@op.vjp.jvp.fake
def _vjp_jvp_fake(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    return _empty_like(primals.input, primals.weight), _empty_like(primals.input, primals.weight)


@op.vjp.vjp.fake
def _vjp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return _empty_like(inputs.y_bar, inputs.input, inputs.weight)


def _empty(like: Tensor, *broadcast: Tensor | None) -> Tensor:
    return like.new_empty(torch.broadcast_shapes(*(t.shape for t in broadcast if t is not None)))


def _empty_like(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    return tuple(None if t is None else t.new_empty(t.shape) for t in tensors)


# ---- small pieces ----------------------------------------------------------------------------------------------------


def _up(tensor: Tensor | None, primal: Tensor) -> Any:
    """The tensor in the dtype the op computes in: float64 where the input is, else float32."""
    wide = torch.float64 if primal.dtype == torch.float64 else torch.float32
    return tensor if tensor is None or tensor.dtype == wide else tensor.to(wide)


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


def _like(results: Sequence[Tensor | None], arguments: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Bring each cotangent to the shape and dtype of its argument; a missing argument has none."""
    return tuple(
        None if r is None or a is None else sum_to(r, a.shape).to(a.dtype)
        for r, a in zip(results, arguments, strict=True)
    )


def check_tangents(primals: Any, tangents: Any) -> None:
    """Refuse a tangent that does not lie at its primal."""
    for name in ("input", "weight"):
        primal, tangent = getattr(primals, name), getattr(tangents, name)
        if tangent is None or (primal is not None and tangent.shape == primal.shape):
            continue
        if primal is None:
            raise ValueError(f"rms_norm: the tangent of {name} must be absent, as {name} is, got a tensor; pass None.")
        ndim = primals.normalized_ndim
        fits = tangent.shape[tangent.dim() - ndim :] == primal.shape[primal.dim() - ndim :]
        try:
            torch.broadcast_shapes(primal.shape, tangent.shape)
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"rms_norm: the tangent of {name} must have shape {tuple(primal.shape)}, as {name} has, got "
                f"{tuple(tangent.shape)}."
            )
