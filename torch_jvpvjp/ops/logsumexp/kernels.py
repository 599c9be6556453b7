"""The Triton kernels of log-sum-exp at the points of its tower that have one, and its pullback on the CPU."""

from typing import Any

import torch
from torch import Tensor

from .._devices import triton_devices
from .._softmaxes.layout import lines
from .._softmaxes.tower import check_tangent
from .rules import op

_DEVICES = triton_devices()


def _primal(x: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    """One launch: y."""
    from ...triton_kernels.softmax import softmax_apply

    laid = lines([x], mask, dim)
    y, _ = softmax_apply(laid.tensors[0], None, laid.mask, kind="logsumexp", scale=scale)
    assert y is not None
    return laid.number_result(y, x)


def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """One launch: y once, and ẏ for every tangent."""
    from ...triton_kernels.softmax import softmax_apply

    x, mask, dim, scale = primals
    check_tangent("logsumexp", x, tangents.input)
    laid = lines([x, tangents.input], mask, dim)
    row, row_dot = laid.tensors
    y, y_dot = softmax_apply(row, row_dot, laid.mask, kind="logsumexp", scale=scale)
    assert y is not None and y_dot is not None
    return laid.number_result(y, x), laid.number_result(y_dot, tangents.input)


def _vjp(cotangents: Any, inputs: Any, outputs: Any) -> tuple[Tensor | None]:
    """One launch: x̄ for every cotangent."""
    from ...triton_kernels.softmax import softmax_apply

    x, number = inputs.input, cotangents.y
    laid = lines([x], inputs.mask, inputs.dim)
    _, x_bar = softmax_apply(
        laid.tensors[0], laid.numbers(number), laid.mask, kind="logsumexp", scale=inputs.scale, transposed=True
    )
    return (laid.result(x_bar, x),)


def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch for the cotangents of x and ẋ."""
    x, mask, dim, scale, x_dot = inputs
    a, b = cotangents.y_dot, cotangents.y
    if a is None:
        return *_vjp(cotangents, inputs, None), None
    # A cotangent of y is shared by all tangents and counts once; a cotangent of ẏ counts for each.
    together = b is None or b.shape == a.shape
    first, second, _ = _second_order(inputs, x_dot, a, b if together else None, (needs[1], needs[0], False))
    if not together and second is not None:
        (once,) = _vjp(cotangents, inputs, None)
        assert once is not None
        second = second + once
    return second, first


def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None], tuple[Tensor | None]]:
    """One launch for s p ȳ and its tangent."""
    x_dot = tangents.input
    if x_dot is None:
        x_dot = torch.zeros((), dtype=primals.input.dtype, device=primals.input.device).expand(primals.input.shape)
    first, second, _ = _second_order(primals, x_dot, primals.y_bar, tangents.y_bar, (True, True, False))
    return (first,), (second,)


def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch for the cotangents of ȳ and x."""
    _, second, pushed = _second_order(inputs, cotangents.input_bar, inputs.y_bar, None, (False, needs[1], needs[0]))
    return pushed, second, None


def _second_order(
    inputs: Any, x_dot: Tensor, a: Tensor, b: Tensor | None, wants: tuple[bool, bool, bool]
) -> tuple[Tensor | None, ...]:
    """The second-order launcher on tensors that broadcast from the right; results shaped like ẋ, x and a."""
    from ...triton_kernels.softmax import softmax_second_order

    laid = lines([inputs.input, x_dot], inputs.mask, inputs.dim)
    row, row_dot = laid.tensors
    first, second, pushed = softmax_second_order(
        row,
        row_dot,
        laid.numbers(a),
        laid.numbers(b),
        laid.mask,
        kind="logsumexp",
        scale=inputs.scale,
        wants_first=wants[0],
        wants_second=wants[1],
        wants_pushed=wants[2],
    )
    moved = None if pushed is None else laid.number_result(pushed, x_dot)
    return laid.result(first, x_dot), laid.result(second, inputs.input), moved


def _cpu_vjp(cotangents: Any, inputs: Any, outputs: Any) -> tuple[Tensor | None]:
    """x̄ = s exp(s x − y) ȳ in place, as PyTorch computes it; by the formula where y is rounded too far for that."""
    x, mask, dim, scale = inputs
    if mask is not None or x.dtype not in (torch.float32, torch.float64) or cotangents.y.dtype != x.dtype:
        return op.vjp.op.formula(cotangents, inputs, outputs)
    x_bar = torch.sub(x, outputs[0]) if scale == 1 else torch.mul(x, scale).sub_(outputs[0])
    return (x_bar.exp_().mul_(cotangents.y if scale == 1 else cotangents.y * scale),)


def _cpu_primal(x: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    """PyTorch's own; by the formula where there is a mask, or s x would be rounded."""
    if mask is not None or (scale != 1 and x.dtype not in (torch.float32, torch.float64)):
        return op.formula(x, mask, dim, scale)
    return torch.logsumexp(x if scale == 1 else x * scale, dim, keepdim=True)


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(_jvp)
    op.vjp.kernel(*_DEVICES)(_vjp)
    op.jvp.vjp.kernel(*_DEVICES)(_jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(_vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(_vjp_vjp)
if "cpu" not in _DEVICES:  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(_cpu_primal)
    op.vjp.kernel("cpu")(_cpu_vjp)
