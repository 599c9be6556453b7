"""The tower of softmax and of log_softmax: reference, rules up to second order, vmap, shapes.

Pulling back reads the output alone, as PyTorch's does: Jᵀ(y) ȳ is a function of y and ȳ, the scores need not be kept,
and derivatives by y go on through the node of y. In the dispatcher a tangent may have more axes in front than input,
which has those of the mask: that is where vmap puts a batch.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...registration import DifferentiableOp, broadcasting_rule, differentiable_op, expanding_rule
from .._arithmetic import cotangents_like, empty_like, total, wide
from .._groups import sum_to
from .maps import bend, bend_output, primal, pull, push


def declare(kind: str) -> DifferentiableOp:
    """Declare the op with its rules.

    Args:
        kind: "softmax" or "log_softmax".

    Returns:
        The op.
    """

    @differentiable_op(f"torch_jvpvjp::{kind}", non_differentiable=("mask",), composite=True)
    def op(input: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:  # noqa: A002
        """The reference: p, or z − log Σ exp z.

        Args:
            input: x.
            mask: Boolean, True where kept, broadcasting to input's shape; or None.
            dim: The axis, negative.
            scale: s.

        Returns:
            y, of input's shape and dtype.
        """
        return primal(kind, wide(input, input), mask, dim, scale).to(input.dtype)

    @op.jvp
    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        """y and ẏ = J ẋ."""
        x, mask, dim, scale = primals
        check_tangent(kind, x, tangents.input)
        y = primal(kind, wide(x, x), mask, dim, scale)
        return y.to(x.dtype), push(kind, y, wide(tangents.input, x), mask, dim, scale).to(x.dtype)

    # The mask is kept for log_softmax alone: where softmax gives 0, its derivative is 0.
    @op.vjp(unsaved=("input", "mask") if kind == "softmax" else ("input",))
    def vjp(cotangents: Any, inputs: Any, outputs: Any) -> tuple[Tensor | None]:
        """x̄ = Jᵀ(y) ȳ."""
        (y,) = outputs
        pulled = pull(kind, wide(y, y), wide(cotangents.y, y), inputs.mask, inputs.dim, inputs.scale)
        return (pulled.to(y.dtype),)

    @op.jvp.vjp
    def jvp_vjp(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
        """Reverse over forward: with a, b the cotangents of ẏ, y,  ẋ̄ = Jᵀa  and  x̄ = Jᵀb + ∂⟨a, ẏ⟩/∂x."""
        x, mask, dim, scale, x_dot = inputs
        a, b = wide(cotangents.y_dot, x), wide(cotangents.y, x)
        y = primal(kind, wide(x, x), mask, dim, scale)
        first = None if a is None else pull(kind, y, a, mask, dim, scale)
        parts = [None if b is None else pull(kind, y, b, mask, dim, scale)]
        if a is not None:
            y_dot = push(kind, y, wide(x_dot, x), mask, dim, scale)
            parts.append(bend(kind, y, y_dot, a, mask, dim, scale))
        summed = total(*(None if part is None else sum_to(part, x.shape) for part in parts))
        return cotangents_like((summed, first), (x, x_dot))

    @op.vjp.jvp
    def vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor], tuple[Tensor | None]]:
        """Forward over reverse: the tangent of Jᵀ(y) ȳ is Jᵀ(y) ȳ′ + ∂⟨ȳ, J ẋ⟩/∂x, which needs ẏ alone."""
        y, mask, dim, scale = wide(primals.y, primals.y), primals.mask, primals.dim, primals.scale
        a, b, y_dot = (wide(t, primals.y) for t in (primals.y_bar, tangents.y_bar, tangents.y))
        second = total(
            None if b is None else pull(kind, y, b, mask, dim, scale),
            None if y_dot is None else bend(kind, y, y_dot, a, mask, dim, scale),
        )
        first = pull(kind, y, a, mask, dim, scale).to(primals.y.dtype)
        return (first,), (None if second is None else second.to(primals.y.dtype),)

    @op.vjp.vjp
    def vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over reverse: with u the cotangent of x̄,  ȳ gets J u  and  y gets ∂⟨u, Jᵀ(y) ȳ⟩/∂y."""
        y, mask, dim, scale = wide(inputs.y, inputs.y), inputs.mask, inputs.dim, inputs.scale
        u, y_bar = wide(cotangents.input_bar, inputs.y), wide(inputs.y_bar, inputs.y)
        pushed = push(kind, y, u, mask, dim, scale) if needs[0] else None
        second = bend_output(kind, y, y_bar, u, mask, dim, scale) if needs[2] else None
        pushed, second = cotangents_like((pushed, second), (inputs.y_bar, inputs.y))
        return pushed, None, second

    _declare_vmap(op)
    _declare_shapes(op, kind)
    return op


def check_tangent(kind: str, x: Tensor, x_dot: Tensor) -> None:
    """Refuse a tangent that does not lie at its primal; it may have more axes in front."""
    if x_dot.shape[x_dot.dim() - x.dim() :] == x.shape:
        return
    padded = zip(reversed(x.shape), reversed(x_dot.shape), strict=False)
    if x_dot.dim() < x.dim() or any(s not in (1, t) for s, t in padded):
        raise ValueError(
            f"{kind}: the tangent of input must have shape {tuple(x.shape)}, as input has, got {tuple(x_dot.shape)}."
        )


# ---- vmap: a batch axis goes in front of axes that broadcast from the right ------------------------------------------
# K tangents of one input stay one input and K tangents; an input takes the batch axis of its mask, and a tangent that
# of its input.


def _declare_vmap(op: DifferentiableOp) -> None:
    op.vmap(batched_with_mask(broadcasting_rule(op, results_of=[(0, 1)])))  # input, mask, dim, scale
    op.jvp.vmap(batched_with_mask(broadcasting_rule(op.jvp.op, results_of=[(0, 1), (0, 1, 4)])))  # ..., input_dot
    op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(5,)))  # y_bar, input, mask, dim, scale, y, needs
    # y_bar, y_dot_bar, input, mask, dim, scale, input_dot, needs
    op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(2, 6)))
    op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(5, 5)))
    # input_bar_bar, y_bar, input, mask, dim, scale, y, needs of the pullback, needs
    op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(1, 2, 6)))


def batched_with_mask(rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule for (input, mask, dim, scale[, input_dot]) that gives input the batch axis of mask, input_dot of input."""

    def batched(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        dims, values = list(in_dims), list(args)
        if dims[1] is not None and dims[0] is None:
            _expand(info, dims, values, 0)
        if len(values) > 4 and dims[0] is not None and dims[4] is None:
            _expand(info, dims, values, 4)
        return rule(info, tuple(dims), *values)

    return batched


def _expand(info: Any, dims: list[int | None], values: list[Any], position: int) -> None:
    values[position] = values[position].expand(info.batch_size, *values[position].shape)
    dims[position] = 0


# ---- shapes: what tracing sees instead of the formulas ---------------------------------------------------------------


def _declare_shapes(op: DifferentiableOp, kind: str) -> None:
    @op.fake
    def fake(input: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:  # noqa: A002
        return input.new_empty(input.shape)

    @op.jvp.fake
    def jvp_fake(primals: Any, tangents: Any) -> Any:
        check_tangent(kind, primals.input, tangents.input)
        return empty_like(primals.input)[0], primals.input.new_empty(tangents.input.shape)

    @op.vjp.fake
    def vjp_fake(cotangents: Any, inputs: Any, outputs: Any) -> Any:
        return empty_like(outputs[0])

    @op.jvp.vjp.fake
    def jvp_vjp_fake(cotangents: Any, inputs: Any) -> Any:
        return empty_like(inputs.input, inputs.input_dot)

    @op.vjp.jvp.fake
    def vjp_jvp_fake(primals: Any, tangents: Any) -> Any:
        return empty_like(primals.y), empty_like(primals.y)

    @op.vjp.vjp.fake
    def vjp_vjp_fake(cotangents: Any, inputs: Any) -> Any:
        return empty_like(inputs.y_bar, None, inputs.y)
