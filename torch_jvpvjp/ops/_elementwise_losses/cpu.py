"""The elementwise losses on the CPU: PyTorch's own kernels where one computes value, slope or pullback in one pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp
from ...registration._torch_private import saved_by
from .._devices import triton_devices
from .._watched import watched
from . import ops

_aten: Any = torch.ops.aten
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def _register(op: DifferentiableOp, value: Callable[..., Tensor], pullback: Callable[..., Tensor]) -> None:
    """Register value, JVP and VJP of a loss of x − t, for arguments of one shape without batch; else the formulas run.

    Args:
        op: The op.
        value: y by (x, t, reduction, *options).
        pullback: x̄ by (ȳ, x, t, reduction, *options); t̄ = −x̄.
    """

    def plain(inputs: Any) -> bool:
        own = inputs.ndim == inputs.x.dim() or inputs.reduction == "none"
        return own and inputs.x.shape == inputs.t.shape and inputs.reduction in _REDUCTIONS

    def primal(*args: Any) -> Tensor:
        inputs = op.signature.inputs_type(*args)
        if not plain(inputs):
            return op.formula(*args)
        return value(inputs.x, inputs.t, _REDUCTIONS[inputs.reduction], *inputs[4:])

    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        x, t, x_dot, t_dot = primals.x, primals.t, tangents.x, tangents.t
        present = [d for d in (x_dot, t_dot) if d is not None]
        fits = plain(primals) and x.dtype in (torch.float32, torch.float64) and present
        if not fits or any(d.shape != x.shape for d in present):
            return op.jvp.op.formula(primals, tangents)
        reduction = _REDUCTIONS[primals.reduction]
        slope = pullback(torch.ones_like(x) if reduction == 0 else x.new_ones(()), x, t, reduction, *primals[4:])
        along = x_dot if t_dot is None else -t_dot if x_dot is None else x_dot - t_dot
        terms = slope.mul_(along)
        return value(x, t, reduction, *primals[4:]), terms if reduction == 0 else terms.sum()

    def vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        x, y_bar = inputs.x, cotangents.y
        if not plain(inputs) or y_bar.shape != (x.shape if inputs.reduction == "none" else ()):
            return op.vjp.op.formula(cotangents, inputs, needs=needs)
        x_bar = pullback(y_bar, x, inputs.t, _REDUCTIONS[inputs.reduction], *inputs[4:])
        t_bar = (-x_bar if needs[0] else x_bar.neg_()) if needs[1] else None
        return x_bar if needs[0] else None, t_bar

    op.kernel("cpu")(primal)
    op.jvp.kernel("cpu")(jvp)
    op.vjp.kernel("cpu")(vjp)


def native_mse(x: Tensor, t: Tensor, reduction: str) -> Tensor:
    """PyTorch's loss of tensors of one shape, which `torch.nn.functional` would broadcast first.

    Args:
        x: Input.
        t: Target.
        reduction: "none", "mean" or "sum".

    Returns:
        The loss.
    """
    return _aten.mse_loss.default(x, t, _REDUCTIONS[reduction])


def native_huber(x: Tensor, t: Tensor, reduction: str, delta: float) -> Tensor:
    """The same for the Huber loss.

    Args:
        x: Input.
        t: Target.
        reduction: "none", "mean" or "sum".
        delta: δ.

    Returns:
        The loss.
    """
    return _aten.huber_loss.default(x, t, _REDUCTIONS[reduction], delta)


def _of_node(node: Any, reduction: str, *options: Any) -> tuple[Any, ...]:
    x, t = saved_by(node, "self", "target")
    return x, t, reduction, 0 if reduction == "none" else x.dim(), *options


watched_mse, watched_huber = watched(ops.mse, _of_node), watched(ops.huber, _of_node)

if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernels
    _register(ops.mse, _aten.mse_loss, _aten.mse_loss_backward)
    _register(ops.huber, _aten.huber_loss, _aten.huber_loss_backward)
