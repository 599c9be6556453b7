"""The reference of the RMS norm of a sum and its rules up to the second order, made of those of the norm.

With s = x + z (input and residual) and N the norm, everything is N's at s, plus what flows through s itself:

    y = N(s, w),    ẏ, ṡ = J(ẋ + ż, ẇ), ẋ + ż,    x̄ = z̄ = J_xᵀ ȳ + s̄,    w̄ = J_wᵀ ȳ

The pullback reads s, which is an output, and neither of the inputs: these need not be kept.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...registration import broadcasting_rule, differentiable_op, expanding_rule
from .._groups import sum_to
from .._norms import op as norm


@differentiable_op("torch_jvpvjp::add_rms_norm", composite=True)
def op(
    input: Tensor,  # noqa: A002
    residual: Tensor,
    weight: Tensor | None,
    normalized_ndim: int,
    eps: float,
    offset: float,
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """The reference: s = x + z, y = the norm of s.

    Args:
        input: x, shape (*batch, *normalized).
        residual: z, of the shape and dtype of x.
        weight: w, shape (*normalized), or None for a gain of ones.
        normalized_ndim: Number of normalised axes.
        eps: ε.
        offset: Added to w where there is one.
        rounded: Whether the unit row is rounded to input's dtype before it meets the gain.

    Returns:
        y and s, of input's dtype.
    """
    total = input + residual
    return norm.formula(total, weight, None, normalized_ndim, eps, False, offset, rounded), total


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """y, s and ẏ, ṡ."""
    total, total_dot = primals.input + primals.residual, add(tangents.input, tangents.residual)
    y, y_dot = norm.jvp.op.formula(at(primals, total), norm_tangents(total_dot, tangents.weight))
    return (y, total), (y_dot, None if total_dot is None else as_large_as(total_dot, total.shape))


@op.vjp(unsaved=("input", "residual"))
def _vjp(cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """x̄ = z̄ = J_xᵀ ȳ + s̄,  w̄ = J_wᵀ ȳ."""
    total = outputs[1]
    s_bar, w_bar, _ = norm.vjp.op.formula(
        norm.signature.cotangents_type(cotangents.y0),
        at(inputs, total),
        needs=(needs[0] or needs[1], needs[2], False),
    )
    return of_both(total, s_bar, cotangents.y1, w_bar)


@op.jvp.vjp
def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over forward: that of the norm at s, plus the cotangents of s and ṡ."""
    return around_jvp_vjp(norm.jvp.vjp.op.formula, cotangents, inputs, needs)


def around_jvp_vjp(inner: Any, cotangents: Any, inputs: Any, needs: Any) -> tuple[Tensor | None, ...]:
    """The pullback of the JVP by that of the norm, a formula or a kernel.

    Args:
        inner: That of the norm.
        cotangents: Of y, s, ẏ and ṡ.
        inputs: Of the JVP.
        needs: Whether the cotangents of three primals and three tangents are wanted.

    Returns:
        These six.
    """
    total, total_dot = inputs.input + inputs.residual, add(inputs.input_dot, inputs.residual_dot)
    arguments = (*at(inputs, total), total_dot, inputs.weight_dot, None)
    both = (needs[0] or needs[1], needs[2], False, (needs[3] or needs[4]) and total_dot is not None, needs[5], False)
    s_bar = w_bar = s_dot_bar = w_dot_bar = None
    if cotangents.y0 is not None or cotangents.y0_dot is not None:
        s_bar, w_bar, _, s_dot_bar, w_dot_bar, _ = inner(
            norm.jvp.op.signature.cotangents_type(cotangents.y0, cotangents.y0_dot),
            norm.jvp.op.signature.inputs_type(*arguments),
            needs=both,
        )
    s_bar, s_dot_bar = add(s_bar, cotangents.y1), add(s_dot_bar, cotangents.y1_dot)
    # What a tangent that is absent, or a primal that was broadcast, does not take is summed or dropped.
    likes = (inputs.input, inputs.residual, inputs.weight, inputs.input_dot, inputs.residual_dot, inputs.weight_dot)
    results = (s_bar, s_bar, w_bar, s_dot_bar, s_dot_bar, w_dot_bar)
    return tuple(
        None if r is None or like is None else sum_to(r, like.shape) for r, like in zip(results, likes, strict=True)
    )


@op.vjp.jvp
def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Forward over reverse: that of the norm at s, s being a primal of the pullback; plus s̄ and its tangent."""
    return around_vjp_jvp(norm.vjp.jvp.op.formula, norm.vjp.op.formula, primals, tangents)


def around_vjp_jvp(
    inner: Any, pull: Any, primals: Any, tangents: Any
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """The JVP of the pullback by that of the norm, formulas or kernels.

    Args:
        inner: That of the norm.
        pull: The norm's pullback, for a cotangent of y that has no tangent and needs none.
        primals: Of the pullback.
        tangents: Of the same.

    Returns:
        Three cotangents and their tangents.
    """
    needs = tuple(primals.needs)
    total, both = primals.y1, (needs[0] or needs[1], needs[2], False)
    s_bar = w_bar = s_bar_dot = w_bar_dot = None
    if primals.y0_bar is not None:
        point = at(primals, total)
        if tangents.y0_bar is None and tangents.y1 is None and tangents.weight is None:
            cotangent = norm.signature.cotangents_type(primals.y0_bar)
            s_bar, w_bar, _ = pull(cotangent, point, needs=both)
        else:
            first, second = inner(
                norm.vjp.op.signature.inputs_type(primals.y0_bar, *point, both),
                norm.vjp.op.signature.tangents_type(tangents.y0_bar, tangents.y1, tangents.weight, None),
            )
            (s_bar, w_bar, _), (s_bar_dot, w_bar_dot, _) = first, second
    first = of_both(total, s_bar, primals.y1_bar, w_bar)
    return first, of_both(total, s_bar_dot, tangents.y1_bar, w_bar_dot)


@op.vjp.vjp
def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over reverse: with u the sum of the cotangents of x̄ and z̄, that of the norm at s, and u for s̄."""
    return around_vjp_vjp(norm.vjp.vjp.op.formula, cotangents, inputs, needs)


def around_vjp_vjp(inner: Any, cotangents: Any, inputs: Any, needs: Any) -> tuple[Tensor | None, ...]:
    """The pullback of the pullback by that of the norm, a formula or a kernel.

    Args:
        inner: That of the norm.
        cotangents: Of x̄, z̄ and w̄.
        inputs: Of the pullback.
        needs: Whether those of ȳ, s̄, x, z, w, y and s are wanted.

    Returns:
        These seven; x, z and y are not read by the pullback.
    """
    u, v = add(cotangents.input_bar, cotangents.residual_bar), cotangents.weight_bar
    y_bar_bar = s_part = w_part = None
    if inputs.y0_bar is not None and (u is not None or v is not None):
        y_bar_bar, s_part, w_part, _ = inner(
            norm.vjp.op.signature.cotangents_type(u, v, None),
            norm.vjp.op.signature.inputs_type(inputs.y0_bar, *at(inputs, inputs.y1), (True, True, False)),
            needs=(needs[0], needs[6], needs[4] and inputs.weight is not None, False),
        )
    return y_bar_bar, None if inputs.y1_bar is None else u, None, None, w_part, None, s_part


# ---- vmap ------------------------------------------------------------------------------------------------------------
# Flat arguments: input, residual, weight and four options; the pullback has two cotangents in front, y and s behind.

op.vmap(broadcasting_rule(op, results_of=[(0, 1, 2), (0, 1)]))
op.jvp.vmap(broadcasting_rule(op.jvp.op, results_of=[(0, 1, 2), (0, 1), (0, 1, 2, 7, 8, 9), (0, 1, 7, 8)]))
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(10, 10, 4)))
op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(4, 5, 6, 11, 12, 13)))
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(10, 10, 4, 10, 10, 4)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(3, 4, 5, 6, 7, 12, 13)))


# ---- small pieces ----------------------------------------------------------------------------------------------------


def at(inputs: Any, total: Tensor) -> Any:
    """The inputs of the norm at s."""
    return norm.signature.inputs_type(
        total, inputs.weight, None, inputs.normalized_ndim, inputs.eps, False, inputs.offset, inputs.rounded
    )


def norm_tangents(total_dot: Tensor | None, weight_dot: Tensor | None) -> Any:
    """The tangents of the norm's inputs."""
    return norm.signature.tangents_type(total_dot, weight_dot, None)


def as_large_as(total_dot: Tensor, shape: Sequence[int]) -> Tensor:
    """ṡ with every axis of s: one of x and z may lack those of a batch, and their tangents with it."""
    return total_dot.expand(torch.broadcast_shapes(total_dot.shape, shape))


def of_both(
    total: Tensor, pulled: Tensor | None, s_bar: Tensor | None, w_bar: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """x̄ = z̄, which are there even where zero, as x and z are not at hand to say how many; and w̄."""
    both = add(pulled, s_bar)
    both = torch.zeros_like(total) if both is None else sum_to(both, total.shape)
    return both, both, w_bar


def add(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum, None being zero."""
    return other if one is None else one if other is None else one + other
