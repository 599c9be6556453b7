"""A linear layer on the CPU: PyTorch's products and its own kernels for activations and their pullbacks."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from .._arithmetic import total, wide
from .._devices import triton_devices
from . import maps
from .activations import ACTIVATIONS, IDENTITY
from .kernels import project_both, whole
from .maps import Slopes, Terms
from .points import Points, check_tangents, terms_of
from .rules import op

_aten: Any = torch.ops.aten


def _at_value(product: Callable[..., Tensor], p: Tensor, z: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """f′ p by f(z), which is not rounded in between: 1 − tanh² would lose all of its digits."""
    y = value(wide(z, z))
    return product(wide(p, z), y).to(torch.promote_types(p.dtype, z.dtype))


# f(z), and f′(z) p in one pass, by name.
_ATEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (torch.relu, lambda p, z: _aten.threshold_backward(p, z, 0)),
    "gelu": (F.gelu, _aten.gelu_backward),
    "gelu_tanh": (
        lambda z: F.gelu(z, approximate="tanh"),
        lambda p, z: _aten.gelu_backward(p, z, approximate="tanh"),
    ),
    "silu": (F.silu, _aten.silu_backward),
    "tanh": (torch.tanh, lambda p, z: _at_value(_aten.tanh_backward, p, z, torch.tanh)),
    "sigmoid": (torch.sigmoid, lambda p, z: _at_value(_aten.sigmoid_backward, p, z, torch.sigmoid)),
    "softplus": (F.softplus, lambda p, z: _aten.softplus_backward(p, z, 1.0, 20.0)),
    "mish": (F.mish, _aten.mish_backward),
}
assert _ATEN.keys() == ACTIVATIONS.keys()


def _slopes(
    activation: str,
    z: Tensor,
    z_dot: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    wants_y: bool = False,
    wants_moved: bool = False,
    wants_first: bool = False,
    wants_second: bool = False,
) -> Slopes:
    """What PyTorch has a kernel for by that, the rest by the formula."""
    value, product = _ATEN[activation]

    def along(p: Tensor | None, wanted: bool) -> Tensor | None:
        if p is None or not wanted:
            return None
        return product(p, z) if p.shape == z.shape else product(torch.ones_like(z), z) * p

    second = along(b, wants_second)
    if wants_second and z_dot is not None and a is not None:
        second = total(second, maps.slopes(activation, z, z_dot, a, wants_second=True).second)
    return Slopes(value(z) if wants_y else None, along(z_dot, wants_moved), along(a, wants_first), second)


_points = Points(_slopes, reads_z=True, whole=whole)


def _primal(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    return _points.primal(x, weight, bias, activation)


def _jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """One product with W where few rows make it worth it; see `kernels.stacks`."""
    check_tangents(primals, tangents)
    dots = Terms(*tangents)
    z, z_dot, stacked = project_both(terms_of(primals), dots)
    if stacked:
        z = z.clone() if primals.bias is None else z + primals.bias
    if dots.bias is not None:
        z_dot = dots.bias if z_dot is None else z_dot + dots.bias
    elif stacked and primals.activation == IDENTITY and z_dot is not None:
        z_dot = z_dot.clone()
    kept, y, moved = z, z, z_dot
    if primals.activation == IDENTITY:
        kept = z.new_empty(0)
    else:
        if z_dot is not None:
            z_dot = z_dot.expand(torch.broadcast_shapes(z.shape, z_dot.shape))
        y, moved, *_ = _slopes(primals.activation, z, z_dot, wants_y=True, wants_moved=True)
    return (y, kept), None if moved is None else moved.expand(torch.broadcast_shapes(moved.shape, y.shape))


def _vjp(
    cotangents: Any, inputs: Any, *, needs: tuple[bool, ...], residuals: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    return _points.vjp(cotangents, inputs, needs=needs, residuals=residuals)


if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(_primal)
    op.jvp.kernel("cpu")(_jvp)
    op.vjp.kernel("cpu")(_vjp)
    op.jvp.vjp.kernel("cpu")(_points.jvp_vjp)
    op.vjp.jvp.kernel("cpu")(_points.vjp_jvp)
    op.vjp.vjp.kernel("cpu")(_points.vjp_vjp)
