"""The Triton kernels of cross-entropy at the points of its tower that have one."""

from typing import Any

import torch
from torch import Tensor

from .._arithmetic import total
from .._devices import triton_devices
from .._softmaxes.layout import Lines, lines
from .rules import op

_DEVICES = triton_devices()
_FLOAT64 = torch.float64


def _has_kernel(inputs: Any) -> bool:
    """Whether kernels can read the weights: not where vmap made a batch of them."""
    return inputs.weight is None or inputs.weight.numel() == inputs.input.shape[inputs.dim]


def _laid(inputs: Any, *wide: Tensor | None) -> tuple[Lines, list[Any], Tensor]:
    """The layout, the operands with columns (input first), and the target."""
    x, target = inputs.input, inputs.target
    if target.is_floating_point():
        laid = lines([x, target, *wide], None, inputs.dim)
        return laid, [laid.tensors[0], *laid.tensors[2:]], laid.tensors[1]
    laid = lines([x, *wide], None, inputs.dim)
    classes = laid.numbers(target.long())
    assert classes is not None
    return laid, laid.tensors, classes


def _options(inputs: Any) -> Any:
    from ...triton_kernels.cross_entropy._targets import Options

    weight = None if inputs.weight is None else inputs.weight.reshape(-1).contiguous()
    return Options(weight, inputs.ignore_index, inputs.label_smoothing, inputs.softcap)


def _primal(*args: Any) -> tuple[Tensor, ...]:
    """One launch: ℓ, L and what L lacks."""
    from ...triton_kernels.cross_entropy import cross_entropy_forward

    inputs = op.signature.inputs_type(*args)
    if not _has_kernel(inputs):
        return op.formula(*args)
    laid, (x,), target = _laid(inputs)
    numbers = cross_entropy_forward(x, target, None, None, _options(inputs))[:3]
    return tuple(laid.number_result(number, inputs.input) for number in numbers)


def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """One launch: ℓ, L and what it lacks once, ℓ̇ and L̇ for every tangent."""
    from ...triton_kernels.cross_entropy import cross_entropy_forward

    if not _has_kernel(primals):
        return op.jvp.op.formula(primals, tangents)
    laid, (x, x_dot, q_dot), target = _laid(primals, tangents.input, tangents.target)
    *numbers, loss_dot, lse_dot = cross_entropy_forward(x, target, x_dot, q_dot, _options(primals))
    assert loss_dot is not None and lse_dot is not None
    moving = tangents.target if tangents.input is None else tangents.input
    return (
        tuple(laid.number_result(number, primals.input) for number in numbers),
        (laid.number_result(loss_dot, moving), laid.number_result(lse_dot, moving)),
    )


def _vjp(
    cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...], residuals: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """One launch: x̄ and q̄, with L read off the outputs and what it lacks off the residuals."""
    if not _has_kernel(inputs):
        return op.vjp.op.formula(cotangents, inputs, outputs, needs=needs)
    # A saved L is as good as a computed one if it has the precision of the computation.
    fine = outputs[1].dtype == (_FLOAT64 if inputs.input.dtype == _FLOAT64 else torch.float32)
    return _pull(inputs, cotangents.y0, cotangents.y1, (outputs[1], *residuals) if fine else None, needs)


def _pull(
    inputs: Any, c: Tensor | None, e: Tensor | None, lse: tuple[Tensor, ...] | None, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    from ...triton_kernels.cross_entropy import cross_entropy_vjp

    laid, (x,), target = _laid(inputs)
    x_bar, q_bar = cross_entropy_vjp(
        laid.numbers(c),
        laid.numbers(e),
        x,
        target,
        None if lse is None else tuple(laid.numbers(t) for t in lse),  # pyright: ignore[reportArgumentType]
        _options(inputs),
        needs_x=needs[0],
        needs_target=needs[1] and target.dim() == 4,
    )
    return laid.result(x_bar, inputs.input), laid.result(q_bar, inputs.target)


def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch for the cotangents of primals and tangents; two where tangents are a batch and primals are not."""
    if not _has_kernel(inputs):
        return op.jvp.vjp.op.formula(cotangents, inputs, needs=needs)
    c, e, a, d = cotangents
    x_dot, q_dot = inputs.input_dot, inputs.target_dot
    moving = q_dot if x_dot is None else x_dot
    # Cotangents of ℓ, L are shared by all tangents and count once; those of ℓ̇, L̇ count for each.
    together = moving.shape == inputs.input.shape
    wants = (needs[2] and x_dot is not None, needs[3] and q_dot is not None, needs[0], needs[1])
    shared = (None, None)
    if a is None and d is None:
        return *_pull(inputs, c, e, None, needs[:2]), None, None
    if not together and (c is not None or e is not None):
        shared = _pull(inputs, c, e, None, needs[:2])
    bars = (a, d, c, e) if together else (a, d, None, None)
    x_first, q_first, x_second, q_second, _, _ = _second_order(inputs, x_dot, q_dot, bars, (*wants, False))
    return total(shared[0], x_second), total(shared[1], q_second), x_first, q_first


def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """One launch for Jᵀ(c, e) and its tangent."""
    if not _has_kernel(primals):
        return op.vjp.jvp.op.formula(primals, tangents)
    bars = (primals.y0_bar, primals.y1_bar, tangents.y0_bar, tangents.y1_bar)
    wants = (*primals.needs, *primals.needs, False)
    x_first, q_first, x_second, q_second, _, _ = _second_order(primals, tangents.input, tangents.target, bars, wants)
    return (x_first, q_first), (x_second, q_second)


def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch for the cotangents of c, e, x and q."""
    if not _has_kernel(inputs):
        return op.vjp.vjp.op.formula(cotangents, inputs, needs=needs)
    u, r = cotangents.input_bar, cotangents.target_bar
    bars = (inputs.y0_bar, inputs.y1_bar, None, None)
    wants = (False, False, needs[2], needs[3], needs[0] or needs[1])
    _, _, x_second, q_second, loss_dot, lse_dot = _second_order(inputs, u, r, bars, wants)
    c_bar, e_bar = (
        None if number is None or bar is None else number.to(bar.dtype)
        for number, bar in ((loss_dot, inputs.y0_bar), (lse_dot, inputs.y1_bar))
    )
    return c_bar, e_bar, x_second, q_second, None, None


def _second_order(
    inputs: Any, x_dot: Tensor | None, q_dot: Tensor | None, bars: tuple[Any, ...], wants: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """The second-order launcher on tensors that broadcast from the right; results shaped like ẋ, q̇, x, q and rows."""
    from ...triton_kernels.cross_entropy import cross_entropy_second_order

    x, q = inputs.input, inputs.target
    laid, (row, row_dot, q_row_dot), target = _laid(inputs, x_dot, q_dot)
    probable = target.dim() == 4
    *wide, loss_dot, lse_dot = cross_entropy_second_order(
        row,
        target,
        row_dot,
        q_row_dot,
        tuple(laid.numbers(bar) for bar in bars),  # pyright: ignore[reportArgumentType]
        _options(inputs),
        wants=(wants[0], wants[1] and probable, wants[2], wants[3] and probable, wants[4]),
    )
    likes = (x if x_dot is None else x_dot, q if q_dot is None else q_dot, x, q)
    results = [laid.result(result, like) for result, like in zip(wide, likes, strict=True)]
    moving = x if x_dot is None else x_dot
    return (*results, *(None if t is None else laid.number_result(t, moving) for t in (loss_dot, lse_dot)))


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(_jvp)
    op.vjp.kernel(*_DEVICES)(_vjp)
    op.jvp.vjp.kernel(*_DEVICES)(_jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(_vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(_vjp_vjp)
