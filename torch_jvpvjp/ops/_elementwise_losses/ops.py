"""The op of an elementwise loss with its JVP and VJP, whatever the loss.

    y = s Σ e(x, t),    ẏ = s Σ (e_x ẋ + e_t ṫ),    x̄ = s ȳ e_x,    t̄ = s ȳ e_t

The sum is over the last ndim axes: none without reduction, all of them with it; what lies in front is where vmap puts a
batch. s is 1, 1/number of elements ("mean") or 1/size of the first of those axes ("batchmean"). Losses of x − t alone
have rules for the second order; that of the others is the derivative of these formulas.
"""

import inspect
from math import prod
from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp, differentiable_op
from .._arithmetic import cotangents_like, empty_like, wide
from .._leading import leading_rule, reduced_pull_rule
from ..pointwise.rules import values_of
from . import table
from .differences import declare_second_order
from .kernels import register_kernels
from .table import Loss


def scale_of(x: Tensor, reduction: str, ndim: int) -> float:
    """s.

    Args:
        x: The input.
        reduction: "none", "sum", "mean" or "batchmean".
        ndim: Number of axes that are summed over.

    Returns:
        The factor; NaN where it would be 1/0, as PyTorch's mean of nothing is.
    """
    own = x.shape[x.dim() - ndim :]
    if reduction not in ("mean", "batchmean"):
        return 1.0
    count = prod(own) if reduction == "mean" else own[0]
    return 1 / count if count else float("nan")


def declare(loss: Loss) -> DifferentiableOp:
    """Declare an elementwise loss with its derivatives.

    Args:
        loss: Its entry of the table.

    Returns:
        The op ``torch_jvpvjp::<name>`` of (x, t, reduction, ndim, *options).
    """
    parameters = inspect.signature(loss.value).parameters
    options = tuple(parameters)[2:]

    def summed(terms: Tensor, reduction: str, ndim: int, like: Tensor) -> Tensor:
        total = terms.sum(list(range(-ndim, 0))) if ndim else terms
        return (total if reduction in ("none", "sum") else total * scale_of(like, reduction, ndim)).to(like.dtype)

    def reference(*args: Any) -> Tensor:
        x, t, reduction, ndim, *values = args
        return summed(loss.value(wide(x, x), wide(t, x), *values), reduction, ndim, x)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    reference.__signature__ = inspect.Signature(  # pyright: ignore[reportFunctionMemberAccess]
        [
            *(inspect.Parameter(n, kind, annotation=Tensor) for n in ("x", "t")),
            inspect.Parameter("reduction", kind, annotation=str),
            inspect.Parameter("ndim", kind, annotation=int),
            *(parameters[o] for o in options),
        ],
        return_annotation=Tensor,
    )
    reference.__doc__ = f"The reference: y = s Σ e(x, t) of {loss.name}, computed in float32 or float64."
    op = differentiable_op(f"torch_jvpvjp::{loss.name}", composite=True)(reference)

    @op.jvp
    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        """y and ẏ = s Σ (e_x ẋ + e_t ṫ)."""
        like, values = primals.x, values_of(primals, options)
        x, t, x_dot, t_dot = (wide(v, like) for v in (primals.x, primals.t, tangents.x, tangents.t))
        terms = torch.zeros((), dtype=x.dtype, device=x.device)
        if x_dot is not None:
            terms = loss.slope_x(x, t, *values) * x_dot
        if t_dot is not None:
            terms = terms + loss.slope_t(x, t, *values) * t_dot
        # A slope may not depend on x or t; the terms have their batch axes all the same.
        terms = terms.expand(torch.broadcast_shapes(*(v.shape for v in (x, t, x_dot, t_dot) if v is not None)))
        y = summed(loss.value(x, t, *values), primals.reduction, primals.ndim, like)
        return y, summed(terms, primals.reduction, primals.ndim, like)

    @op.vjp
    def vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """x̄ = s ȳ e_x,  t̄ = s ȳ e_t."""
        like, values = inputs.x, values_of(inputs, options)
        x, t, y_bar = (wide(v, like) for v in (inputs.x, inputs.t, cotangents.y))
        y_bar = y_bar[(..., *(None,) * inputs.ndim)] if inputs.ndim else y_bar
        if inputs.reduction not in ("none", "sum"):
            y_bar = y_bar * scale_of(like, inputs.reduction, inputs.ndim)
        x_bar = y_bar * loss.slope_x(x, t, *values) if needs[0] else None
        t_bar = y_bar * loss.slope_t(x, t, *values) if needs[1] else None
        shape = torch.broadcast_shapes(x.shape, t.shape, y_bar.shape)
        full = (None if bar is None else bar.expand(shape) for bar in (x_bar, t_bar))
        return cotangents_like(tuple(full), (inputs.x, inputs.t))

    def y_like(like: Any, *tensors: Any) -> Tensor:
        shape = torch.broadcast_shapes(*(v.shape for v in (like.x, like.t, *tensors) if v is not None))
        return like.x.new_empty(shape[: len(shape) - like.ndim])

    op.fake(lambda *args: y_like(op.signature.inputs_type(*args)))
    op.jvp.fake(lambda primals, tangents: (y_like(primals), y_like(primals, *tangents)))
    op.vjp.fake(lambda cotangents, inputs: empty_like(inputs.x, inputs.t))
    x_dot = 4 + len(options)  # x, t, reduction, ndim, *options, x_dot, t_dot
    op.vmap(leading_rule(op, [(0, 1)], _without_own))
    op.jvp.vmap(leading_rule(op.jvp.op, [(0, 1), (0, 1, x_dot, x_dot + 1)], _without_own))
    op.vjp.vmap(reduced_pull_rule(op.vjp.op, 4, results_like=(1, 2)))  # y_bar, x, t, reduction, ndim, ...
    op.autocast(torch.float32)  # as PyTorch's are
    register_kernels(op, loss, scale_of)
    if loss.bend is not None:
        declare_second_order(op, loss, scale_of)
    return op


def _without_own(shape: tuple[int, ...], args: Any) -> tuple[int, ...]:
    """Shape of a sum over the last ndim axes."""
    return shape[: len(shape) - args[3]]


mse = declare(table.MSE)
huber = declare(table.HUBER)
kl = declare(table.KL)
js = declare(table.JS)
