"""The Triton kernels of softmax and log_softmax at the points of their towers, and PyTorch's own on the CPU."""

from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp
from .._devices import triton_devices
from .layout import lines
from .maps import kept
from .tower import check_tangent


def register_triton(op: DifferentiableOp, kind: str) -> None:
    """Give every point up to second order its kernel.

    Args:
        op: The op.
        kind: "softmax" or "log_softmax".
    """
    devices = triton_devices()
    if not devices:
        return

    @op.kernel(*devices)
    def primal(x: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
        """One launch: y."""
        from ...triton_kernels.softmax import softmax_apply

        laid = lines([x], mask, dim)
        y, _ = softmax_apply(laid.tensors[0], None, laid.mask, kind=kind, scale=scale)
        assert y is not None
        return laid.shared(y, x.shape)

    @op.jvp.kernel(*devices)
    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        """One launch: y once, and ẏ for every tangent."""
        from ...triton_kernels.softmax import softmax_apply

        x, mask, dim, scale = primals
        check_tangent(kind, x, tangents.input)
        laid = lines([x, tangents.input], mask, dim)
        y, y_dot = softmax_apply(laid.tensors[0], laid.tensors[1], laid.mask, kind=kind, scale=scale)
        assert y is not None and y_dot is not None
        return laid.shared(y, x.shape), laid.shared(y_dot, tangents.input.shape)

    @op.vjp.kernel(*devices)
    def vjp(cotangents: Any, inputs: Any, outputs: Any) -> tuple[Tensor | None]:
        """One launch: x̄ for every cotangent."""
        from ...triton_kernels.softmax import softmax_apply

        laid = lines([outputs[0], cotangents.y], inputs.mask, inputs.dim)
        row, row_bar = laid.tensors
        _, x_bar = softmax_apply(
            row, row_bar, laid.mask, kind=kind, scale=inputs.scale, from_output=True, transposed=True
        )
        assert x_bar is not None
        return (laid.shared(x_bar, cotangents.y.shape),)

    @op.jvp.vjp.kernel(*devices)
    def jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """One launch for the cotangents of x and ẋ."""
        from ...triton_kernels.softmax import softmax_second_order

        x, mask, dim, scale, x_dot = inputs
        a, b = cotangents.y_dot, cotangents.y
        # A cotangent of y is shared by all tangents and counts once; a cotangent of ẏ counts for each.
        together = a is None or b is None or b.shape == x_dot.shape
        laid = lines([x, x_dot, a, b if together else None], mask, dim)
        row, row_dot, row_a, row_b = laid.tensors
        first, second, _ = softmax_second_order(
            row, row_dot, row_a, row_b, laid.mask, kind=kind, scale=scale, wants_first=needs[1], wants_second=needs[0]
        )
        x_bar = laid.result(second, x)
        if a is None and x_bar is not None and x_dot.shape != x.shape:
            x_bar = None  # it was added up over the tangents; below it counts once
        if needs[0] and (not together or x_bar is None):
            alone = lines([x, x, None, b], mask, dim)
            row, _, _, row_b = alone.tensors
            _, shared, _ = softmax_second_order(
                row, row, None, row_b, alone.mask, kind=kind, scale=scale, wants_first=False
            )
            once = alone.result(shared, x)
            x_bar = once if x_bar is None or once is None else x_bar + once
        return x_bar, laid.result(first, x_dot)

    @op.vjp.jvp.kernel(*devices)
    def vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None], tuple[Tensor | None]]:
        """One launch for Jᵀ(y) ȳ and its tangent."""
        from ...triton_kernels.softmax import softmax_second_order

        y, y_dot = primals.y, tangents.y
        if y_dot is None:
            y_dot = torch.zeros((), dtype=y.dtype, device=y.device).expand(y.shape)
        laid = lines([y, y_dot, primals.y_bar, tangents.y_bar], primals.mask, primals.dim)
        row, row_dot, row_a, row_b = laid.tensors
        first, second, _ = softmax_second_order(
            row, row_dot, row_a, row_b, laid.mask, kind=kind, scale=primals.scale, from_output=True
        )
        assert first is not None and second is not None
        return (laid.shared(first, y.shape),), (laid.shared(second, y.shape),)

    @op.vjp.vjp.kernel(*devices)
    def vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """One launch for the cotangents of ȳ and of y."""
        from ...triton_kernels.softmax import softmax_pullback_vjp

        laid = lines([inputs.y, inputs.y_bar, cotangents.input_bar], inputs.mask, inputs.dim)
        row, row_bar, row_u = laid.tensors
        y_bar_bar, y_second = softmax_pullback_vjp(
            row, row_bar, row_u, laid.mask, kind=kind, scale=inputs.scale, wants_y_bar=needs[0], wants_y=needs[2]
        )
        return laid.result(y_bar_bar, inputs.y_bar), None, laid.result(y_second, inputs.y)


def register_cpu(op: DifferentiableOp, kind: str) -> None:
    """Give primal, JVP and VJP PyTorch's own CPU kernels; in the interpreter, CPU tensors take the Triton kernels.

    Args:
        op: The op.
        kind: "softmax" or "log_softmax".
    """
    if "cpu" in triton_devices():
        return
    forward = torch.softmax if kind == "softmax" else torch.log_softmax
    backward = torch.ops.aten._softmax_backward_data if kind == "softmax" else torch.ops.aten._log_softmax_backward_data

    @op.kernel("cpu")
    def primal(x: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
        """y by PyTorch's kernel on what is kept; by the formula where that would round s x."""
        if mask is None and scale == 1:
            return forward(x, dim)
        if x.dtype not in (torch.float32, torch.float64) or x.shape[dim] == 0:
            return op.formula(x, mask, dim, scale)
        z = x * scale if scale != 1 else x
        if mask is None:
            return forward(z, dim)
        keep = mask.expand(x.shape)
        z = torch.where(keep, z, -float("inf"))
        empty = z.amax(dim, keepdim=True) == -float("inf")
        return forward(z, dim).masked_fill_(empty, 0.0 if kind == "softmax" else -float("inf"))

    @op.jvp.kernel("cpu")
    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
        """Softmax's J by the backward of PyTorch, its transpose; log_softmax's in two passes."""
        x, mask, dim, scale = primals
        x_dot = tangents.input
        if x.dtype not in (torch.float32, torch.float64) or x_dot.shape != x.shape or x_dot.dtype != x.dtype:
            return op.jvp.op.formula(primals, tangents)
        y = primal(x, mask, dim, scale)
        x_dot = kept(x_dot, mask)
        if kind == "softmax":
            y_dot = backward(x_dot, y, dim, x.dtype)
        else:
            mean = (y.exp().mul_(x_dot)).sum(dim, keepdim=True)
            y_dot = kept(x_dot - mean, mask)
        return y, y_dot.mul_(scale) if scale != 1 else y_dot

    @op.vjp.kernel("cpu")
    def vjp(cotangents: Any, inputs: Any, outputs: Any) -> tuple[Tensor | None]:
        """x̄ by PyTorch's backward."""
        y, y_bar, scale = outputs[0], cotangents.y, inputs.scale
        if y_bar.dtype != y.dtype or (scale != 1 and y.dtype not in (torch.float32, torch.float64)):
            return op.vjp.op.formula(cotangents, inputs, outputs)
        a = y_bar if kind == "softmax" else kept(y_bar, inputs.mask)
        x_bar = backward(a, y, inputs.dim, y.dtype)
        return (x_bar.mul_(scale) if scale != 1 else x_bar,)
