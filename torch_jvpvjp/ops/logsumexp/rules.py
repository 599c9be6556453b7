"""The reference of log-sum-exp and its rules up to the second order.

In the dispatcher results keep the axis, with size 1; a tangent may have more axes in front than input, which has those
of the mask: that is where vmap puts a batch.
"""

from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp, differentiable_op, expanding_rule
from ...registration.vmap import align
from .._arithmetic import cotangents_like, empty_like, total, wide
from .._groups import sum_to
from .._softmaxes.maps import exponentials, kept, scores
from .._softmaxes.tower import batched_with_mask, check_tangent


@differentiable_op("torch_jvpvjp::logsumexp", non_differentiable=("mask",), composite=True)
def op(input: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:  # noqa: A002
    """The reference: y = log Σ exp z with z = s x where kept, else -∞.

    Args:
        input: x.
        mask: Boolean, True where kept, broadcasting to input's shape; or None.
        dim: The axis, negative.
        scale: s.

    Returns:
        y, of input's dtype, and of its shape with size 1 at the axis.
    """
    z = scores(wide(input, input), mask, scale)
    if z.shape[dim] == 0:
        return z.sum(dim, keepdim=True).sub(float("inf")).to(input.dtype)
    powers, sums, top = exponentials(z, mask is not None, dim, infinite=True)
    y = top + sums.log()
    if mask is not None:
        y = torch.where((powers != 0).any(dim, keepdim=True), y, -float("inf"))
    return y.to(input.dtype)


def _probabilities(x: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    """p = exp(z − y)."""
    z = scores(wide(x, x), mask, scale)
    if z.shape[dim] == 0:
        return z
    powers, sums, _ = exponentials(z, mask is not None, dim, infinite=True)
    return powers / sums


def _moved(p: Tensor, v: Tensor, dim: int) -> Tensor:
    """⟨p, v⟩."""
    return (p * v).sum(dim, keepdim=True)


def _bend(p: Tensor, v: Tensor, a: Tensor, dim: int, scale: float) -> Tensor:
    """∂⟨a, J v⟩/∂x = s² a p ∘ (v − ⟨p, v⟩)."""
    return scale**2 * a * (p * (v - _moved(p, v, dim)))


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """y and ẏ = s ⟨p, ẋ⟩."""
    x, mask, dim, scale = primals
    check_tangent("logsumexp", x, tangents.input)
    v = kept(wide(tangents.input, x), mask)
    y_dot = scale * _moved(_probabilities(x, mask, dim, scale), v, dim)
    return op.formula(x, mask, dim, scale), y_dot.to(x.dtype)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, outputs: Any) -> tuple[Tensor | None]:
    """x̄ = s p ȳ; a kernel may read p off the output."""
    x, mask, dim, scale = inputs
    x_bar = scale * wide(cotangents.y, x) * _probabilities(x, mask, dim, scale)
    return (x_bar.to(x.dtype),)


@op.jvp.vjp
def _jvp_vjp(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    """Reverse over forward: with a, b the cotangents of ẏ, y,  ẋ̄ = s a p  and  x̄ = s b p + ∂⟨a, ẏ⟩/∂x."""
    x, mask, dim, scale, x_dot = inputs
    a, b = wide(cotangents.y_dot, x), wide(cotangents.y, x)
    p, v = _probabilities(x, mask, dim, scale), kept(wide(x_dot, x), mask)
    parts = [None if b is None else scale * b * p, None if a is None else _bend(p, v, a, dim, scale)]
    x_bar = total(*(None if part is None else sum_to(part, x.shape) for part in parts))
    return cotangents_like((x_bar, None if a is None else scale * a * p), (x, x_dot))


@op.vjp.jvp
def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor], tuple[Tensor | None]]:
    """Forward over reverse: the tangent of s p ȳ is s p ȳ′ + ∂⟨ȳ, J ẋ⟩/∂x."""
    x, mask, dim, scale = primals.input, primals.mask, primals.dim, primals.scale
    a, b, v = (wide(t, x) for t in (primals.y_bar, tangents.y_bar, tangents.input))
    p = _probabilities(x, mask, dim, scale)
    second = total(
        None if b is None else scale * b * p,
        None if v is None else _bend(p, kept(v, mask), a, dim, scale),
    )
    return ((scale * a * p).to(x.dtype),), (None if second is None else second.to(x.dtype),)


@op.vjp.vjp
def _vjp_vjp(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    """Reverse over reverse: with u the cotangent of x̄,  ȳ gets s ⟨p, u⟩  and  x gets ∂⟨ȳ, J u⟩/∂x."""
    x, mask, dim, scale = inputs.input, inputs.mask, inputs.dim, inputs.scale
    u, a = kept(wide(cotangents.input_bar, x), mask), wide(inputs.y_bar, x)
    p = _probabilities(x, mask, dim, scale)
    results = (scale * _moved(p, u, dim), _bend(p, u, a, dim, scale))
    return (*cotangents_like(results, (inputs.y_bar, x)), None)


# ---- vmap ------------------------------------------------------------------------------------------------------------


def _reducing_rule(point: DifferentiableOp) -> Any:
    """The rule of a point whose results are its tensors, input and input_dot, with size 1 at the axis."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        results = point.unpacked(point.overload(*align(info, in_dims, args, expand=False)))
        shaped, out_dims = [], []
        for result, position in zip(results, (0, 4), strict=False):
            tensor, batch = args[position], in_dims[position]
            sizes = [size for axis, size in enumerate(tensor.shape) if batch is None or axis != batch % tensor.dim()]
            sizes[args[2]] = 1
            shaped.append(result.reshape(sizes if batch is None else [info.batch_size, *sizes]))
            out_dims.append(None if batch is None else 0)
        return tuple(shaped), tuple(out_dims)

    return rule


op.vmap(batched_with_mask(_reducing_rule(op)))  # input, mask, dim, scale
op.jvp.vmap(batched_with_mask(_reducing_rule(op.jvp.op)))  # ..., input_dot
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1,)))  # y_bar, input, mask, dim, scale, y, needs
op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(2, 6)))  # y_bar, y_dot_bar, input, ..., input_dot, needs
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(1, 1)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(1, 2, 6)))  # input_bar_bar, y_bar, input, ..., y, ...


# ---- shapes ----------------------------------------------------------------------------------------------------------


def _reduced(tensor: Tensor, dim: int) -> list[Any]:
    sizes = list(tensor.shape)
    sizes[dim] = 1
    return sizes


@op.fake
def _fake(input: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:  # noqa: A002
    return input.new_empty(_reduced(input, dim))


@op.jvp.fake
def _jvp_fake(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    x, dim = primals.input, primals.dim
    check_tangent("logsumexp", x, tangents.input)
    return x.new_empty(_reduced(x, dim)), x.new_empty(_reduced(tangents.input, dim))


@op.vjp.fake
def _vjp_fake(cotangents: Any, inputs: Any, outputs: Any) -> Any:
    return empty_like(inputs.input)


@op.jvp.vjp.fake
def _jvp_vjp_fake(cotangents: Any, inputs: Any) -> Any:
    return empty_like(inputs.input, inputs.input_dot)


@op.vjp.jvp.fake
def _vjp_jvp_fake(primals: Any, tangents: Any) -> Any:
    return empty_like(primals.input), empty_like(primals.input)


@op.vjp.vjp.fake
def _vjp_vjp_fake(cotangents: Any, inputs: Any) -> Any:
    return empty_like(inputs.y_bar, inputs.input, inputs.y)
