"""The reference of the RMS norm of queries and keys and its rules up to the second order: those of the norm, twice."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...registration import broadcasting_rule, differentiable_op, expanding_rule
from .._norms import op as norm


@differentiable_op("torch_jvpvjp::qk_rms_norm", composite=True)
def op(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    offset: float,
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """The reference: the RMS norm of q and that of k over their last axes.

    Args:
        q: Queries, shape (*batch, n).
        k: Keys, shape (*batch, n), where batch may be another.
        q_weight: Gain of q, shape (n,) or with axes in front; or None for ones.
        k_weight: Gain of k, likewise.
        eps: ε.
        offset: Added to the weights where there are any.
        rounded: Whether unit rows are rounded to their dtype before they meet the gain.

    Returns:
        Both, in the dtypes of q and k.
    """
    return (
        norm.formula(q, q_weight, None, 1, eps, False, offset, rounded),
        norm.formula(k, k_weight, None, 1, eps, False, offset, rounded),
    )


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """Of q and of k: value and tangent."""
    (q, k), (q_tangents, k_tangents) = sides(primals), tangents_of(tangents)
    y0, y0_dot = _value_and_tangent(q, q_tangents)
    y1, y1_dot = _value_and_tangent(k, k_tangents)
    return (y0, y1), (y0_dot, y1_dot)


def _value_and_tangent(inputs: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
    if tangents.input is None and tangents.weight is None:
        return norm.formula(*inputs), None
    return norm.jvp.op.formula(inputs, tangents)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Of q and of k: the norm's."""
    return pull_both(norm.vjp.op.formula, cotangents, inputs, needs)


def pull_both(inner: Callable[..., Any], cotangents: Any, inputs: Any, needs: Any) -> tuple[Tensor | None, ...]:
    """The pullback by that of the norm, a formula or a kernel; cotangents of q, k and their weights.

    Args:
        inner: That of the norm.
        cotangents: Of both values.
        inputs: Of the op.
        needs: Whether those of q, k, q_weight and k_weight are wanted.

    Returns:
        These four.
    """
    results: list[Any] = []
    for side, y_bar, wanted in zip(sides(inputs), cotangents, (needs[0::2], needs[1::2]), strict=True):
        if y_bar is None or not any(wanted):
            results.append((None, None, None))
        else:
            results.append(inner(norm.signature.cotangents_type(y_bar), side, needs=(*wanted, False)))
    return results[0][0], results[1][0], results[0][1], results[1][1]


@op.jvp.vjp
def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over forward: the norm's, of q and of k."""
    return around_jvp_vjp(norm.jvp.vjp.op.formula, norm.vjp.op.formula, cotangents, inputs, needs)


def around_jvp_vjp(
    inner: Callable[..., Any], pull: Callable[..., Any], cotangents: Any, inputs: Any, needs: Any
) -> tuple[Tensor | None, ...]:
    """The pullback of the JVP by that of the norm, formulas or kernels.

    Args:
        inner: That of the norm.
        pull: The norm's pullback, for a side without tangents.
        cotangents: Of both values and both tangents.
        inputs: Of the JVP.
        needs: Whether the cotangents of four primals and four tangents are wanted.

    Returns:
        These eight.
    """
    tangents = (inputs.q_dot, inputs.q_weight_dot), (inputs.k_dot, inputs.k_weight_dot)
    results: list[Any] = []
    for i, (side, (x_dot, w_dot)) in enumerate(zip(sides(inputs), tangents, strict=True)):
        b, a, wanted = cotangents[i], cotangents[2 + i], needs[i::2]  # of x, w and their tangents
        if x_dot is None and w_dot is None:
            a = None
        if a is None and b is None:
            results.append((None,) * 4)
        elif a is None:
            x_bar, w_bar, _ = pull(norm.signature.cotangents_type(b), side, needs=(*wanted[:2], False))
            results.append((x_bar, w_bar, None, None))
        else:
            x_bar, w_bar, _, x_dot_bar, w_dot_bar, _ = inner(
                norm.jvp.op.signature.cotangents_type(b, a),
                norm.jvp.op.signature.inputs_type(*side, x_dot, w_dot, None),
                needs=(*wanted[:2], False, *wanted[2:], False),
            )
            results.append((x_bar, w_bar, x_dot_bar, w_dot_bar))
    return tuple(results[i][j] for j in range(4) for i in range(2))


@op.vjp.jvp
def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Forward over reverse: the norm's, of q and of k."""
    return around_vjp_jvp(norm.vjp.jvp.op.formula, norm.vjp.op.formula, primals, tangents)


def around_vjp_jvp(
    inner: Callable[..., Any], pull: Callable[..., Any], primals: Any, tangents: Any
) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """The JVP of the pullback by that of the norm, formulas or kernels.

    Args:
        inner: That of the norm.
        pull: The norm's pullback, for a side without tangents.
        primals: Of the pullback.
        tangents: Of the same.

    Returns:
        Four cotangents and their tangents.
    """
    needs = tuple(primals.needs)
    values, dots = [], []
    parts = (
        (primals.y0_bar, tangents.y0_bar, tangents.q, tangents.q_weight),
        (primals.y1_bar, tangents.y1_bar, tangents.k, tangents.k_weight),
    )
    for i, (side, (y_bar, y_bar_dot, x_dot, w_dot)) in enumerate(zip(sides(primals), parts, strict=True)):
        wanted = (*needs[i::2], False)
        value = dot = (None, None, None)
        if y_bar is not None and any(wanted):
            if y_bar_dot is None and x_dot is None and w_dot is None:
                value = pull(norm.signature.cotangents_type(y_bar), side, needs=wanted)
            else:
                value, dot = inner(
                    norm.vjp.op.signature.inputs_type(y_bar, *side, wanted),
                    norm.vjp.op.signature.tangents_type(y_bar_dot, x_dot, w_dot, None),
                )
        values.append(value)
        dots.append(dot)
    order = [(i, j) for j in range(2) for i in range(2)]
    return tuple(values[i][j] for i, j in order), tuple(dots[i][j] for i, j in order)


@op.vjp.vjp
def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over reverse: the norm's, of q and of k."""
    return around_vjp_vjp(norm.vjp.vjp.op.formula, cotangents, inputs, needs)


def around_vjp_vjp(inner: Callable[..., Any], cotangents: Any, inputs: Any, needs: Any) -> tuple[Tensor | None, ...]:
    """The pullback of the pullback by that of the norm, a formula or a kernel.

    Args:
        inner: That of the norm.
        cotangents: Of the cotangents of q, k, q_weight and k_weight.
        inputs: Of the pullback.
        needs: Whether those of both cotangents, and of q, k and their weights, are wanted.

    Returns:
        These six.
    """
    y_bars = inputs.y0_bar, inputs.y1_bar
    results: list[Any] = []
    for i, (side, y_bar) in enumerate(zip(sides(inputs), y_bars, strict=True)):
        u, v = cotangents[i], cotangents[2 + i]
        if y_bar is None or (u is None and v is None):
            results.append((None, None, None))
            continue
        bars = inner(
            norm.vjp.op.signature.cotangents_type(u, v, None),
            norm.vjp.op.signature.inputs_type(y_bar, *side, (True, True, False)),
            needs=(*needs[i::2], False),
        )
        results.append(bars)
    return tuple(results[i][j] for j in range(3) for i in range(2))


# ---- vmap ------------------------------------------------------------------------------------------------------------
# Flat arguments: q, k, q_weight, k_weight and three options.

op.vmap(broadcasting_rule(op, results_of=[(0, 2), (1, 3)]))
op.jvp.vmap(broadcasting_rule(op.jvp.op, results_of=[(0, 2), (1, 3), (0, 2, 7, 9), (1, 3, 8, 10)]))
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(2, 3, 4, 5)))  # two cotangents, q, k, ...
op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(4, 5, 6, 7, 11, 12, 13, 14)))  # four cotangents, q, ...
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(2, 3, 4, 5, 2, 3, 4, 5)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(4, 5, 6, 7, 8, 9)))  # four cotangents, two, q, ...


# ---- shapes and small pieces -----------------------------------------------------------------------------------------


def sides(inputs: Any) -> tuple[Any, Any]:
    """The inputs of the norm for q and for k."""
    options = None, 1, inputs.eps, False, inputs.offset, inputs.rounded
    return (
        norm.signature.inputs_type(inputs.q, inputs.q_weight, *options),
        norm.signature.inputs_type(inputs.k, inputs.k_weight, *options),
    )


def tangents_of(tangents: Any) -> tuple[Any, Any]:
    """The tangents of the norm's inputs for q and for k."""
    return (
        norm.signature.tangents_type(tangents.q, tangents.q_weight, None),
        norm.signature.tangents_type(tangents.k, tangents.k_weight, None),
    )
