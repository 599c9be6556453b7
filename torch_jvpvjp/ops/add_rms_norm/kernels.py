"""The kernels of the RMS norm of a sum: adding is part of the launch up to the first order, beside it at the second."""

from typing import Any

from torch import Tensor

from .._devices import triton_devices
from .._groups import group
from .._norms import kernels as norm_kernels
from .._norms.cpu import pull as cpu_pull
from .._norms.cpu import push as cpu_push
from .._norms.cpu import value as cpu_value
from .._shapes import broadcast
from .rules import around_jvp_vjp, around_vjp_jvp, around_vjp_vjp, as_large_as, at, norm_tangents, of_both, op

_DEVICES = triton_devices()


def _primal(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    normalized_ndim: int,
    eps: float,
    offset: float,
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """One launch: y and s."""
    from ...triton_kernels.norms import Norm, norm_forward

    grouped = group([x, residual], [weight], normalized_ndim)
    (row, other), (w,) = grouped.rows, grouped.weights
    y, total = norm_forward(row, w, None, Norm(eps, False, offset, rounded), residual=other)
    assert total is not None
    return grouped.row_result(y), grouped.shared_result(total, broadcast(x.shape, residual.shape))


def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """One launch: y and s once, ẏ and ṡ for every tangent."""
    from ...triton_kernels.norms import Norm, norm_jvp

    x, residual, weight = primals.input, primals.residual, primals.weight
    grouped = group(
        [x, residual, tangents.input, tangents.residual], [weight, tangents.weight], primals.normalized_ndim
    )
    (row, other, row_dot, other_dot), (w, w_dot) = grouped.rows, grouped.weights
    norm = Norm(primals.eps, False, primals.offset, primals.rounded)
    y, y_dot, total, total_dot = norm_jvp(
        row, w, None, row_dot, w_dot, None, norm, residual=other, residual_dot=other_dot
    )
    assert total is not None
    shape = broadcast(x.shape, residual.shape)
    y_shape = shape if weight is None else broadcast(shape, weight.shape)
    dots = [t.shape for t in (tangents.input, tangents.residual) if t is not None]
    if total_dot is not None:
        total_dot = grouped.shared_result(total_dot, broadcast(*dots))
        total_dot = as_large_as(total_dot, shape).contiguous()
    values = grouped.shared_result(y, y_shape), grouped.shared_result(total, shape)
    return values, (grouped.row_result(y_dot), total_dot)


def _vjp(cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch for x̄, to which s̄ is added, and partial sums of w̄; and one that adds those up in a fixed order."""
    total, y_bar, s_bar = outputs[1], cotangents.y0, cotangents.y1
    if y_bar is None:
        return of_both(total, None, s_bar, None)
    carried = s_bar is not None and s_bar.shape == y_bar.shape == total.shape
    wanted = (needs[0] or needs[1], needs[2], False)
    x_bar, w_bar, _ = norm_kernels.pull(at(inputs, total), y_bar, wanted, s_bar if carried else None)
    return of_both(total, x_bar, None if carried else s_bar, w_bar)


def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch, besides sums, for the norm."""
    return around_jvp_vjp(norm_kernels.jvp_vjp, cotangents, inputs, needs)


def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """One launch, besides sums, for the norm."""
    return around_vjp_jvp(norm_kernels.vjp_jvp, norm_kernels.vjp, primals, tangents)


def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch, besides sums, for the norm."""
    return around_vjp_vjp(norm_kernels.vjp_vjp, cotangents, inputs, needs)


def _cpu_primal(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    normalized_ndim: int,
    eps: float,
    offset: float,
    rounded: bool,
) -> tuple[Tensor, Tensor]:
    """A sum, and PyTorch's own norm."""
    total = x + residual
    return cpu_value(total, weight, None, normalized_ndim, eps, False, offset, rounded), total


def _cpu_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
    """The norm's JVP in as few ops as it takes, and sums."""
    total, dots = primals.input + primals.residual, [t for t in (tangents.input, tangents.residual) if t is not None]
    total_dot = None if not dots else dots[0].clone() if len(dots) == 1 else dots[0] + dots[1]
    y, y_dot = cpu_push(at(primals, total), norm_tangents(total_dot, tangents.weight))
    return (y, total), (y_dot, None if total_dot is None else as_large_as(total_dot, total.shape).contiguous())


def _cpu_vjp(cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The norm's pullback in as few ops as it takes, and a sum."""
    total, y_bar, s_bar = outputs[1], cotangents.y0, cotangents.y1
    x_bar = w_bar = None
    if y_bar is not None:
        x_bar, w_bar, _ = cpu_pull(y_bar, at(inputs, total), (needs[0] or needs[1], needs[2], False))
    return of_both(total, x_bar, s_bar, w_bar)


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(_jvp)
    op.vjp.kernel(*_DEVICES)(_vjp)
    op.jvp.vjp.kernel(*_DEVICES)(_jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(_vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(_vjp_vjp)
if "cpu" not in _DEVICES:  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(_cpu_primal)
    op.jvp.kernel("cpu")(_cpu_jvp)
    op.vjp.kernel("cpu")(_cpu_vjp)
