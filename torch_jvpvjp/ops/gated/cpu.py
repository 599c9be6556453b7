"""The gated linear units on the CPU: PyTorch's own kernels for f and its pullback, what is multiplied in place.

GLU has kernels of its own in PyTorch, for value, JVP and VJP.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...registration import DifferentiableOp
from ...registration._torch_private import saved_by
from .._devices import triton_devices
from .._watched import watched
from ..pointwise.rules import values_of
from . import ops
from .halves import Halves

_aten: Any = torch.ops.aten


def _register(op: DifferentiableOp, halves: Halves, value: Callable[..., Tensor], slope: Callable[..., Tensor]) -> None:
    """Register value, JVP and VJP for arguments of one shape; others take the formulas.

    Args:
        op: The op.
        halves: The form of its arguments.
        value: f(g, *options).
        slope: f′(g) p by (p, g, *options).
    """
    options = op.signature.inputs_type._fields[len(halves.names) :]

    def primal(*args: Any) -> Tensor:
        inputs = op.signature.inputs_type(*args)
        gate, up = halves.pair(inputs)
        if gate.shape != up.shape or gate.dtype != up.dtype:
            return op.formula(*args)
        return value(gate, *values_of(inputs, options)).mul_(up)

    def jvp(primals: Any, tangents: Any) -> Any:
        (gate, up), (gate_dot, up_dot) = halves.pair(primals), halves.pair(tangents)
        alike = all(t is None or (t.shape == gate.shape and t.dtype == gate.dtype) for t in (up, gate_dot, up_dot))
        if not alike:
            return op.jvp.op.formula(primals, tangents)
        values = values_of(primals, options)
        f = value(gate, *values)
        y_dot = None if gate_dot is None else slope(gate_dot, gate, *values).mul_(up)
        if up_dot is not None:
            y_dot = f * up_dot if y_dot is None else y_dot.addcmul_(f, up_dot)
        return f.mul_(up), y_dot

    def vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> Any:
        (gate, up), y_bar = halves.pair(inputs), cotangents.y
        if gate.shape != up.shape or y_bar.shape != gate.shape or not gate.dtype == up.dtype == y_bar.dtype:
            return op.vjp.op.formula(cotangents, inputs, needs=needs)
        values = values_of(inputs, options)
        wants = halves.needs(needs)
        if halves.packed is None:
            return (
                slope(y_bar * up, gate, *values) if wants[0] else None,
                value(gate, *values).mul_(y_bar) if wants[1] else None,
            )
        x_bar = torch.empty_like(inputs.x, memory_format=torch.contiguous_format)
        gate_bar, up_bar = halves.split(x_bar)
        torch.mul(value(gate, *values), y_bar, out=up_bar)
        gate_bar.copy_(slope(y_bar * up, gate, *values))
        return (x_bar,)

    op.kernel("cpu")(primal)
    op.jvp.kernel("cpu")(jvp)
    op.vjp.kernel("cpu")(vjp)


def _glu_jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
    """ẏ by PyTorch's kernel, which takes one tangent for one x and is not there for 2-byte dtypes."""
    x, x_dot = primals.x, tangents.x
    if x_dot is None:
        return F.glu(x), None
    if x_dot.shape != x.shape:
        return ops.glu.jvp.op.formula(primals, tangents)
    if x.dtype in (torch.float32, torch.float64):
        y = F.glu(x)
        return y, _aten.glu_jvp(y, x, x_dot, -1)
    (up, gate), (up_dot, gate_dot) = x.chunk(2, -1), x_dot.chunk(2, -1)
    s = torch.sigmoid(gate)
    return s * up, _aten.sigmoid_backward(gate_dot, s).mul_(up).addcmul_(s, up_dot)


def _glu_vjp(cotangents: Any, inputs: Any) -> Tensor:
    x, y_bar = inputs.x, cotangents.y
    if y_bar.shape[:-1] != x.shape[:-1]:
        return ops.glu.vjp.op.formula(cotangents, inputs, needs=(True,))
    return _aten.glu_backward(y_bar, x, -1)


def _gelu(gate: Tensor, approximate: str) -> Tensor:
    return F.gelu(gate, approximate=approximate)


def _gelu_slope(p: Tensor, gate: Tensor, approximate: str) -> Tensor:
    return _aten.gelu_backward(p, gate, approximate=approximate)


watched_glu = watched(ops.glu, lambda node: saved_by(node, "self"))

if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernel
    for _op, _packed in ((ops.swiglu, None), (ops.swiglu_packed, "gate first")):
        _register(_op, Halves(_packed), lambda gate: F.silu(gate), _aten.silu_backward)
    for _op, _packed in ((ops.geglu, None), (ops.geglu_packed, "gate first")):
        _register(_op, Halves(_packed), _gelu, _gelu_slope)
    ops.glu.kernel("cpu")(lambda x: F.glu(x))
    ops.glu.jvp.kernel("cpu")(_glu_jvp)
    ops.glu.vjp.kernel("cpu")(_glu_vjp)
