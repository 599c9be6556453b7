"""The reference of cross-entropy and its rules up to the second order.

The op gives two numbers for each row: the loss ℓ before any reduction, and L = log Σ exp z, for the z-loss. Kernels of
pullbacks get a third, what L as rounded lacks of it: exp(z − L) alone is as wrong as L is, which is relative to L and
not to 1. All keep the axis of the classes, with size 1, and are float32, float64 for float64 logits. In the dispatcher
input and target have the same axes in front, tangents may have more: that is where vmap puts a batch.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp, differentiable_op, expanding_rule
from ...registration.vmap import align
from .._arithmetic import cotangents_like, empty_like, total, wide
from .._groups import sum_to
from .maps import bend, pull, push, row_results, rows_of


@differentiable_op(
    "torch_jvpvjp::rows_cross_entropy", residuals=("rest",), non_differentiable=("weight",), composite=True
)
def op(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    dim: int,
    ignore_index: int,
    label_smoothing: float,
    softcap: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference: ℓ = Σ τ (L − z) and L = log Σ exp z, both 0 for an ignored row.

    Args:
        input: x, (*lead, n, *inner).
        target: Classes (*lead, 1, *inner), int64; or probabilities, of input's shape.
        weight: Weights of the classes, (n, 1, ..., 1) or with axes in front that broadcast; or None for ones.
        dim: The axis of the classes, negative.
        ignore_index: The class whose rows count for nothing.
        label_smoothing: ε.
        softcap: κ, or None.

    Returns:
        ℓ and L, (*lead, 1, *inner), and for kernels what L lacks of log Σ exp z.
    """
    rows = rows_of(op.signature.inputs_type(input, target, weight, dim, ignore_index, label_smoothing, softcap))
    return row_results(rows)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, Tensor | None]]:
    """ℓ, L and ℓ̇, L̇."""
    rows = rows_of(primals)
    loss_dot, lse_dot = push(rows, *_tangents(primals, tangents.input, tangents.target))
    lead = tangents.target if tangents.input is None else tangents.input
    shape = _reduced(lead, primals.dim)
    results = row_results(rows)
    zeros = results[0].new_zeros(shape)
    return results, (zeros if loss_dot is None else loss_dot, zeros if lse_dot is None else lse_dot)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """x̄, q̄ = Jᵀ(ℓ̄, L̄); a kernel may read L off the outputs, with its rest."""
    pulled = pull(rows_of(inputs), cotangents.y0, cotangents.y1)
    return _like(pulled, (inputs.input, inputs.target), needs)


@op.jvp.vjp
def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over forward: tangents get Jᵀ(a, d), primals Jᵀ(c, e) + ∂(a ℓ̇ + d L̇)/∂(x, q)."""
    x, q = inputs.input, inputs.target
    rows, a, d = rows_of(inputs), cotangents.y0_dot, cotangents.y1_dot
    first = pull(rows, a, d)
    x_dot, q_dot = _tangents(inputs, inputs.input_dot, inputs.target_dot)
    shared, bent = pull(rows, cotangents.y0, cotangents.y1), bend(rows, x_dot, q_dot, a, d)
    second = [
        total(*(None if t is None else sum_to(t, like.shape) for t in pair)) if wanted else None
        for *pair, like, wanted in zip(shared, bent, (x, q), needs, strict=False)
    ]
    return _like((*second, *first), (x, q, inputs.input_dot, inputs.target_dot), needs)


@op.vjp.jvp
def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Forward over reverse: the tangent of Jᵀ(c, e) is Jᵀ(c′, e′) + ∂(c ℓ̇ + e L̇)/∂(x, q)."""
    likes, needs = (primals.input, primals.target), tuple(primals.needs)
    rows = rows_of(primals)
    c, e = primals.y0_bar, primals.y1_bar
    first = pull(rows, c, e)
    x_dot, q_dot = _tangents(primals, tangents.input, tangents.target)
    moved, bent = pull(rows, tangents.y0_bar, tangents.y1_bar), bend(rows, x_dot, q_dot, c, e)
    second = tuple(total(s, t) for s, t in zip(moved, bent, strict=True))
    return _like(first, likes, needs), _like(second, likes, needs)


@op.vjp.vjp
def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over reverse: with u, r the cotangents of x̄, q̄, cotangents get J(u, r), primals ∂(c ℓ̇ + e L̇)/∂(x, q)."""
    rows = rows_of(inputs)
    u, r = _tangents(inputs, cotangents.input_bar, cotangents.target_bar)
    pushed = push(rows, u, r)
    bent = bend(rows, u, r, inputs.y0_bar, inputs.y1_bar)
    likes = (inputs.y0_bar, inputs.y1_bar, inputs.input, inputs.target)
    return (*_like((*pushed, *bent), likes, needs), None, None)


# ---- vmap ------------------------------------------------------------------------------------------------------------


def _batched_together(point: DifferentiableOp) -> Callable[..., Any]:
    """The rule of a point whose results are rows of input and, in a JVP, of its tangents.

    Whatever primal is batched, input and target are; whatever tangent is, or primal, all tangents are.

    Args:
        point: The op or its JVP.

    Returns:
        The rule.
    """

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        dims, values = list(in_dims), list(args)
        if any(dims[i] is not None for i in (0, 1, 2)):
            _expand(info, dims, values, (0, 1))
        if any(dims[i] is not None for i in (0, *range(7, len(dims)))):
            _expand(info, dims, values, range(7, len(dims)))
        results = point.unpacked(point.overload(*align(info, dims, values, expand=False)))
        leads = [0] * 3 if len(dims) == 7 else [0] * 3 + [7 if values[7] is not None else 8] * 2
        shaped, out_dims = [], []
        for result, position in zip(results, leads, strict=True):
            tensor, batch = values[position], dims[position]
            sizes = [size for axis, size in enumerate(tensor.shape) if batch is None or axis != batch % tensor.dim()]
            sizes[values[3]] = 1
            shaped.append(result.reshape(sizes if batch is None else [info.batch_size, *sizes]))
            out_dims.append(None if batch is None else 0)
        return tuple(shaped), tuple(out_dims)

    return rule


def _expand(info: Any, dims: list[int | None], values: list[Any], positions: Any) -> None:
    for position in positions:
        if values[position] is not None and dims[position] is None:
            values[position] = values[position].expand(info.batch_size, *values[position].shape)
            dims[position] = 0


# input, target, weight, dim, ignore_index, label_smoothing, softcap; in a JVP input_dot, target_dot
op.vmap(_batched_together(op))
op.jvp.vmap(_batched_together(op.jvp.op))
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(2, 3)))  # y0_bar, y1_bar, input, target, ..., y0, y1, needs
op.jvp.vjp.vmap(
    expanding_rule(op.jvp.vjp.op, results_like=(4, 5, 11, 12))
)  # four cotangents, input, ..., input_dot, ...
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(2, 3, 2, 3)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(2, 3, 4, 5, 11, 12)))  # two, y0_bar, y1_bar, input, ...


# ---- shapes ----------------------------------------------------------------------------------------------------------


@op.fake
def _fake(
    input: Tensor,  # noqa: A002
    target: Tensor,
    weight: Tensor | None,
    dim: int,
    ignore_index: int,
    label_smoothing: float,
    softcap: float | None,
) -> tuple[Tensor, ...]:
    return tuple(_numbers(input, input, dim) for _ in range(3))


@op.jvp.fake
def _jvp_fake(primals: Any, tangents: Any) -> Any:
    x, dim = primals.input, primals.dim
    lead = tangents.target if tangents.input is None else tangents.input
    return tuple(_numbers(x, x, dim) for _ in range(3)), (_numbers(x, lead, dim), _numbers(x, lead, dim))


@op.vjp.fake
def _vjp_fake(cotangents: Any, inputs: Any, outputs: Any) -> Any:
    return empty_like(inputs.input, inputs.target)


@op.jvp.vjp.fake
def _jvp_vjp_fake(cotangents: Any, inputs: Any) -> Any:
    return empty_like(inputs.input, inputs.target, inputs.input_dot, inputs.target_dot)


@op.vjp.jvp.fake
def _vjp_jvp_fake(primals: Any, tangents: Any) -> Any:
    target = primals.target if primals.target.is_floating_point() else None
    return empty_like(primals.input, target), empty_like(primals.input, target)


@op.vjp.vjp.fake
def _vjp_vjp_fake(cotangents: Any, inputs: Any) -> Any:
    return empty_like(inputs.y0_bar, inputs.y1_bar, inputs.input, inputs.target, inputs.y0, inputs.y1)


def _numbers(x: Tensor, lead: Tensor, dim: int) -> Tensor:
    return x.new_empty(_reduced(lead, dim), dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


# ---- small pieces ----------------------------------------------------------------------------------------------------


def _reduced(tensor: Tensor, dim: int) -> list[Any]:
    sizes = list(tensor.shape)
    sizes[dim] = 1
    return sizes


def _tangents(inputs: Any, x_dot: Tensor | None, q_dot: Tensor | None) -> tuple[Any, Any]:
    return wide(x_dot, inputs.input), wide(q_dot, inputs.input)


def _like(
    results: tuple[Tensor | None, ...], arguments: tuple[Tensor | None, ...], needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Bring the cotangents that are wanted to shapes and dtypes of their arguments."""
    wanted = tuple(r if need else None for r, need in zip(results, needs, strict=False))
    return cotangents_like(wanted, arguments)
