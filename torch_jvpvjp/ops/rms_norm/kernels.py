"""The Triton kernels of RMS norm at the points of its tower that have one."""

from typing import Any

import torch
from torch import Tensor

from .._devices import triton_devices
from .._groups import Grouped, group
from .rules import check_tangents, op

_DEVICES = triton_devices()


def _primal(x: Tensor, weight: Tensor | None, normalized_ndim: int, eps: float) -> Tensor:
    """One program per block of rows: y."""
    from ...triton_kernels.rms_norm import rms_norm_forward

    grouped = group([x], [weight], normalized_ndim)
    return grouped.row_result(rms_norm_forward(grouped.rows[0], grouped.weights[0], eps))


def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """One launch: y once, and ẏ for every tangent."""
    from ...triton_kernels.rms_norm import rms_norm_jvp

    check_tangents(primals, tangents)
    x, weight = primals.input, primals.weight
    grouped = group([x, tangents.input], [weight, tangents.weight], primals.normalized_ndim)
    (row, row_dot), (gain, gain_dot) = grouped.rows, grouped.weights
    y, y_dot = rms_norm_jvp(row, gain, row_dot, gain_dot, primals.eps)
    shape = x.shape if weight is None else torch.broadcast_shapes(x.shape, weight.shape)
    return grouped.shared_result(y, shape), grouped.row_result(y_dot)


def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
    """One launch for x̄ and partial sums of w̄, and one that adds those up in a fixed order."""
    return _pull(inputs, cotangents.y, needs)


def _pull(inputs: Any, y_bar: Any, needs: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
    from ...triton_kernels.rms_norm import rms_norm_vjp

    x, weight = inputs.input, inputs.weight
    grouped = group([x, y_bar], [weight], inputs.normalized_ndim)
    x_bar, w_bar = rms_norm_vjp(
        grouped.rows[1], grouped.rows[0], grouped.weights[0], inputs.eps, needs[0], needs[1] and weight is not None
    )
    return _shaped(grouped, x_bar, w_bar, x, weight)


def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch (and the sums of weight gradients) for the cotangents of primals and tangents."""
    a, b = cotangents.y_dot, cotangents.y
    if a is None:
        return (*_pull(inputs, b, needs[:2]), None, None)
    # A cotangent of y is shared by all tangents and counts once; a cotangent of ẏ counts for each.
    together = b is None or b.shape == a.shape
    x_first, w_first, x_second, w_second, _ = _second_order(
        inputs, inputs.input_dot, inputs.weight_dot, a, b if together else None, wants=(*needs[2:], *needs[:2], False)
    )
    if not together:
        shared = _pull(inputs, b, needs[:2])
        x_second, w_second = (_add(s, t) for s, t in zip(shared, (x_second, w_second), strict=True))
    return x_second, w_second, _at(x_first, inputs.input_dot), _at(w_first, inputs.weight_dot)


def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """One launch (and the sums of weight gradients) for Jᵀȳ and its tangent."""
    needs = tuple(primals.needs)
    if tangents.input is None and tangents.weight is None:
        return _pull(primals, primals.y_bar, needs), _pull(primals, tangents.y_bar, needs)
    x_first, w_first, x_second, w_second, _ = _second_order(
        primals, tangents.input, tangents.weight, primals.y_bar, tangents.y_bar, wants=(*needs, *needs, False)
    )
    return (x_first, w_first), (x_second, w_second)


def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch (and the sum of the weight gradient) for the cotangents of ȳ, x and w."""
    u, v = cotangents.input_bar, cotangents.weight_bar
    _, _, x_second, w_second, y_dot = _second_order(
        inputs, u, v, inputs.y_bar, None, wants=(False, False, *needs[1:], needs[0])
    )
    return y_dot, x_second, w_second


def _second_order(
    inputs: Any, x_dot: Tensor | None, w_dot: Tensor | None, a: Tensor, b: Tensor | None, wants: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The second-order launcher on tensors that broadcast from the right; results shaped like x, w, x, w and ẏ."""
    from ...triton_kernels.rms_norm import rms_norm_second_order

    x, weight = inputs.input, inputs.weight
    grouped = group([x, x_dot, a, b], [weight, w_dot], inputs.normalized_ndim)
    rows, weights = grouped.rows, grouped.weights
    x_first, w_first, x_second, w_second, y_dot = rms_norm_second_order(
        rows[0],
        weights[0],
        rows[1],
        weights[1],
        rows[2],
        rows[3],
        inputs.eps,
        wants_x_first=wants[0],
        wants_w_first=wants[1] and weight is not None,
        wants_x_second=wants[2],
        wants_w_second=wants[3] and weight is not None,
        wants_y_dot=wants[4],
    )
    # Cotangents of tangents have the tangents' own shapes, those of primals the primals'.
    first = _shaped(grouped, x_first, w_first, x if x_dot is None else x_dot, weight if w_dot is None else w_dot)
    second = _shaped(grouped, x_second, w_second, x, weight)
    return (*first, *second, None if y_dot is None else grouped.row_result(y_dot, a))


def _shaped(
    grouped: Grouped, x_bar: Tensor | None, w_bar: Tensor | None, x: Tensor, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    return (
        None if x_bar is None else grouped.row_result(x_bar, x),
        None if w_bar is None or weight is None else grouped.weight_result(w_bar, weight),
    )


def _add(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _at(cotangent: Tensor | None, argument: Tensor | None) -> Tensor | None:
    return None if argument is None else cotangent


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(_jvp)
    op.vjp.kernel(*_DEVICES)(_vjp)
    op.jvp.vjp.kernel(*_DEVICES)(_jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(_vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(_vjp_vjp)
