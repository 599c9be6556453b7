"""The Triton kernels of the elementwise losses: value, JVP and VJP."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp
from .._devices import triton_devices
from .._groups import Grouped, group
from .._shapes import broadcast
from ..pointwise.rules import values_of
from .table import Loss

_DEVICES = triton_devices()


def register_kernels(op: DifferentiableOp, loss: Loss, scale_of: Callable[[Tensor, str, int], float]) -> None:
    """Register the kernels of a loss, where Triton can run.

    Args:
        op: The op.
        loss: Its entry of the table.
        scale_of: The factor of the sum by input, reduction and number of axes.
    """
    if not _DEVICES:
        return
    options = op.signature.inputs_type._fields[4:]

    def setting(inputs: Any) -> dict[str, Any]:
        _, delta = loss.kernel(*values_of(inputs, options))
        scale = scale_of(inputs.x, inputs.reduction, inputs.ndim)
        return {"scale": scale, "delta": float(delta), "reduce": inputs.ndim > 0}

    def run(inputs: Any, x_dot: Any = None, t_dot: Any = None, wants_y_dot: bool = False) -> Any:
        from ...triton_kernels.elementwise_losses import elementwise_loss

        name, _ = loss.kernel(*values_of(inputs, options))
        grouped, rows = _grouped([inputs.x, inputs.t, x_dot, t_dot], inputs.ndim)
        return grouped, elementwise_loss(name, *rows, wants_y_dot=wants_y_dot, **setting(inputs))

    @op.kernel(*_DEVICES)
    def primal(*args: Any) -> Tensor:
        """One launch, and one that adds up the parts: y."""
        inputs = op.signature.inputs_type(*args)
        grouped, (y, _) = run(inputs)
        return _row_result(grouped, y)

    @op.jvp.kernel(*_DEVICES)
    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        """One launch, and one for each sum that adds up the parts: y and ẏ."""
        grouped, (y, y_dot) = run(primals, tangents.x, tangents.t, True)
        shape = broadcast(primals.x.shape, primals.t.shape)
        full = _row_result(grouped, y)
        return _once(full, shape[: len(shape) - primals.ndim]), _row_result(grouped, y_dot)

    @op.vjp.kernel(*_DEVICES)
    def vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """One launch: x̄ and t̄."""
        from ...triton_kernels.elementwise_losses import elementwise_loss_vjp

        name, _ = loss.kernel(*values_of(inputs, options))
        ndim = inputs.ndim
        y_bar = cotangents.y[(..., *(None,) * ndim)] if ndim else cotangents.y
        own = broadcast(inputs.x.shape, inputs.t.shape)[-ndim:] if ndim else ()
        # Axes of size 1 stand for what was summed over: the kernel reads the first element of each row.
        operands = [inputs.x, inputs.t, y_bar.expand((*y_bar.shape[: y_bar.dim() - ndim], *own))]
        grouped, (x, t, full_bar) = _grouped(operands, ndim)
        found = elementwise_loss_vjp(name, full_bar, x, t, needs_x=needs[0], needs_t=needs[1], **setting(inputs))
        return tuple(
            None if bar is None else grouped.row_result(bar if ndim else bar.transpose(1, 2), like)
            for bar, like in zip(found, (inputs.x, inputs.t), strict=True)
        )


def _grouped(operands: list[Tensor | None], ndim: int) -> tuple[Grouped, list[Any]]:
    """(K, M, N) with the axes that are summed over as N; without any, all elements as N of one row."""
    grouped = group(operands, [], ndim)
    if ndim:
        return grouped, grouped.rows
    return grouped, [None if t is None else t.transpose(1, 2) for t in grouped.rows]


def _row_result(grouped: Grouped, result: Tensor) -> Tensor:
    """A launcher's (K, M, 1), or (K, 1, M) without reduction, with the axes that K and M stand for."""
    return result.reshape((*grouped.group_shape, *grouped.row_shape))


def _once(full: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """A tensor that is equal along the axes over which this shape was broadcast to its own, once along those."""
    extra = full.dim() - len(shape)
    for axis in range(full.dim()):
        if full.shape[axis] != 1 and (axis < extra or shape[axis - extra] == 1):
            full = full.narrow(axis, 0, 1)
    return full.reshape(shape)
