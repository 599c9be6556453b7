"""The pointwise functions on the CPU: PyTorch's own kernels for value, JVP and VJP, in as few passes as PyTorch takes.

The aten pullbacks compute f′(x) p (or f′ from y) in one pass, which makes them pushforwards as well. K tangents of one
x take f′ once, by a pullback of ones.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...registration import DifferentiableOp
from ...registration._torch_private import saved_by
from .._devices import triton_devices
from .._groups import sum_to
from .._watched import watched
from . import ops
from .rules import values_of

_aten: Any = torch.ops.aten
# value(x, *options), and f′(x) p by product(p, point, *options), the point being x or, where the pullback reads it, y.
_AT_INPUT: list[tuple[DifferentiableOp, Callable[..., Tensor], Callable[..., Tensor]]] = [
    (
        ops.gelu,
        lambda x, approximate: F.gelu(x, approximate=approximate),
        lambda p, x, approximate: _aten.gelu_backward(p, x, approximate=approximate),
    ),
    (ops.silu, F.silu, _aten.silu_backward),
    (ops.sin, torch.sin, lambda p, x: torch.cos(x).mul_(p)),
    (ops.softplus, F.softplus, _aten.softplus_backward),
    (ops.mish, F.mish, _aten.mish_backward),
]
_AT_OUTPUT: list[tuple[DifferentiableOp, Callable[..., Tensor], Callable[..., Tensor]]] = [
    (ops.tanh, torch.tanh, _aten.tanh_backward),
    (ops.sigmoid, torch.sigmoid, _aten.sigmoid_backward),
    (ops.relu, torch.relu, lambda p, y: _aten.threshold_backward(p, y, 0)),
]


def _register(
    op: DifferentiableOp, value: Callable[..., Tensor], product: Callable[..., Tensor], at_output: bool
) -> None:
    options = op.signature.inputs_type._fields[1:]

    def primal(x: Tensor, *values: Any) -> Tensor:  # PyTorch's builtins have no signature to be read
        return value(x, *values)

    def along(p: Tensor, point: Tensor, *values: Any) -> Tensor:
        if p.shape == point.shape:
            return product(p, point, *values)
        return product(torch.ones_like(point), point, *values) * p

    def jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
        values = values_of(primals, options)
        y = value(primals.x, *values)
        if tangents.x is None:
            return y, None
        return y, along(tangents.x, y if at_output else primals.x, *values)

    if at_output:

        @op.vjp.kernel("cpu")
        def vjp_at_output(cotangents: Any, inputs: Any, outputs: Any) -> Tensor:
            return sum_to(along(cotangents.y, outputs[0]), outputs[0].shape)

    else:

        @op.vjp.kernel("cpu")
        def vjp(cotangents: Any, inputs: Any) -> Tensor:
            return sum_to(along(cotangents.y, inputs.x, *values_of(inputs, options)), inputs.x.shape)

    op.kernel("cpu")(primal)
    op.jvp.kernel("cpu")(jvp)


def _of_node(node: Any, *options: Any) -> tuple[Any, ...]:
    return *saved_by(node, "self"), *options


watched_gelu, watched_silu, watched_mish = (watched(op, _of_node) for op in (ops.gelu, ops.silu, ops.mish))

if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernel
    for _op, _value, _product in _AT_INPUT:
        _register(_op, _value, _product, at_output=False)
    for _op, _value, _product in _AT_OUTPUT:
        _register(_op, _value, _product, at_output=True)
