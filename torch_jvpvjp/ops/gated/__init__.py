"""Gated linear units: the public face."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...registration import DifferentiableOp
from ...registration.push import has_plain_tangent
from .._arguments import check_floating
from .._memory_order import inverse, memory_order
from .._native import AS_IT_STANDS, FIRST_ORDER, PUSHED, RECORDED, REVERSED, WIDE, standing
from ..pointwise import gelu, silu
from . import ops
from .cpu import watched_glu

__all__ = ["geglu", "glu", "ops", "swiglu"]

_is_compiling = torch.compiler.is_dynamo_compiling


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """SiLU-gated linear unit, y = silu(gate) · up.

    With f = silu and g, u for gate and up, all products elementwise:

        y = f(g) u,    ẏ = f′ ġ u + f u̇,    ḡ = f′ u ȳ,    ū = f ȳ

    and, for the second order, with a a cotangent of ẏ:

        ∂⟨a, ẏ⟩/∂g = a (f″ ġ u + f′ u̇),    ∂⟨a, ẏ⟩/∂u = a f′ ġ

    Without `up`, gate holds both side by side on its last axis, the gate first: what one linear layer makes. On a GPU
    every point of the tower up to the second order is one kernel launch, K tangents included; packed halves are read
    where they lie and their gradient is written into one tensor. It computes in float32, in float64 for float64 input.

    Args:
        gate: g, any shape and strides; float16, bfloat16, float32 or float64. If up is absent, (*batch, 2n).
        up: u, of the shape, dtype and device of gate; nothing is broadcast.

    Returns:
        y, of the shape and dtype of gate, its axes in memory in the order of gate's; or (*batch, n).

    Raises:
        TypeError: If an argument is not a tensor of a dtype named above, or dtypes differ.
        ValueError: If shapes or devices differ, or the last axis of a packed tensor is not even.

    Source: Shazeer (2020), GLU Variants Improve Transformer.
    """
    _check("swiglu", gate, up, "gate")
    if up is None:
        return _call(ops.swiglu_packed, gate)
    if standing(gate, up) in REVERSED:
        return silu(gate) * up  # keeps silu(gate), which its own pullback would compute again
    return _call_pair(ops.swiglu, gate, up)


def geglu(gate: Tensor, up: Tensor | None = None, approximate: str = "none") -> Tensor:
    """GELU-gated linear unit, y = gelu(gate) · up.

    With f = gelu and g, u for gate and up, all products elementwise:

        y = f(g) u,    ẏ = f′ ġ u + f u̇,    ḡ = f′ u ȳ,    ū = f ȳ

    and the second order as in `swiglu`. Without `up`, gate holds both side by side on its last axis, the gate first. On
    a GPU every point of the tower up to the second order is one kernel launch, K tangents included; packed halves are
    read where they lie and their gradient is written into one tensor. It computes in float32, in float64 for float64
    input.

    Args:
        gate: g, any shape and strides; float16, bfloat16, float32 or float64. If up is absent, (*batch, 2n).
        up: u, of the shape, dtype and device of gate; nothing is broadcast.
        approximate: "none" or "tanh", as in ``torch.nn.functional.gelu``.

    Returns:
        y, of the shape and dtype of gate, its axes in memory in the order of gate's; or (*batch, n).

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above, or dtypes differ.
        ValueError: If shapes or devices differ, the last axis of a packed tensor is not even, or approximate is
            another string.

    Source: Shazeer (2020), GLU Variants Improve Transformer.
    """
    _check("geglu", gate, up, "gate")
    if not isinstance(approximate, str):
        raise TypeError(f"geglu: approximate must be 'none' or 'tanh', got {type(approximate).__name__}.")
    if approximate not in ("none", "tanh"):
        raise ValueError(f"geglu: approximate must be 'none' or 'tanh', got {approximate!r}.")
    if up is None:
        return _call(ops.geglu_packed, gate, approximate)
    way = standing(gate, up)
    if way in FIRST_ORDER:
        return (gelu(gate, approximate) if way == RECORDED else F.gelu(gate, approximate=approximate)) * up
    return _call_pair(ops.geglu, gate, up, approximate)


def glu(input: Tensor, dim: int = -1) -> Tensor:  # noqa: A002 -- the name torch.nn.functional gives it
    """Gated linear unit; signature and semantics of ``torch.nn.functional.glu``.

    The input holds u, then g along an axis; with σ the sigmoid, all products elementwise:

        y = u σ(g),    ẏ = σ′ ġ u + σ u̇,    ḡ = σ′ u ȳ,    ū = σ ȳ

    and the second order as in `swiglu`. On a GPU every point of the tower up to the second order is one kernel launch,
    K tangents included; a contiguous input is read where it lies, whatever the axis, and its gradient is written into
    one tensor. It computes in float32, in float64 for float64 input.

    Args:
        input: u and g, any shape and strides; float16, bfloat16, float32 or float64.
        dim: The axis along which they lie side by side, of even size.

    Returns:
        y, half as large along that axis, dtype of input, its axes in memory in the order of input's.

    Raises:
        TypeError: If input is not a tensor of a dtype named above, or dim not an int.
        ValueError: If there is no such axis, or its size is not even.

    Source: Dauphin et al. (2016), Language Modeling with Gated Convolutional Networks.
    """
    way = standing(input)
    if way in AS_IT_STANDS and type(dim) is int and -input.dim() <= dim < input.dim() and not input.shape[dim] % 2:
        return F.glu(input, dim)  # what nearly every call on a CPU is, decided at once
    check_floating("glu", "input", input)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"glu: dim must be an int, got {type(dim).__name__}.")
    if not -input.dim() <= dim < input.dim():
        raise ValueError(f"glu: dim must be an axis of input, which has shape {tuple(input.shape)}, got {dim}.")
    _check_even("glu", "input", input, dim)
    axis = dim % input.dim()
    # PyTorch's JVP has no derivative, and is of one precision.
    if way == PUSHED and input.dtype in WIDE and has_plain_tangent(input):
        return F.glu(input, axis)
    call = _record_glu if way == RECORDED else _call_glu
    order = memory_order(input)
    if order is None:
        return _along(call, input, axis)
    return _along(call, input.permute(order), order.index(axis)).permute(inverse(order))


def _along(call: Callable[[Tensor], Tensor], x: Tensor, axis: int) -> Tensor:
    """Call what splits the last axis, for another one."""
    if axis == x.dim() - 1:
        return call(x)
    # Both halves of an axis are blocks of everything behind it.
    y = call(x.flatten(axis))
    return y.reshape((*x.shape[:axis], x.shape[axis] // 2, *x.shape[axis + 1 :]))


def _record_glu(x: Tensor) -> Tensor:
    return watched_glu(F.glu(x, -1))


def _call_glu(x: Tensor) -> Tensor:
    return _call(ops.glu, x)


def _call(op: DifferentiableOp, *args: Any) -> Tensor:
    if _is_compiling():
        return op(*args)
    return op.call_flat(args)[0]


def _call_pair(op: DifferentiableOp, gate: Tensor, up: Tensor, *options: Any) -> Tensor:
    """Call an op of two tensors on their axes in the order in which the gate's lie in memory."""
    order = memory_order(gate)
    if order is None:
        return _call(op, gate, up, *options)
    return _call(op, gate.permute(order), up.permute(order), *options).permute(inverse(order))


def _check(name: str, gate: Any, up: Any, packed: str) -> None:
    """Refuse what is no gated product before anything is computed."""
    check_floating(name, "gate", gate)
    if up is None:
        if gate.dim() == 0:
            raise ValueError(f"{name}: gate must have an axis that holds gate and up, got shape (); or pass up.")
        _check_even(name, packed, gate, -1)
        return
    check_floating(name, "up", up)
    if up.shape != gate.shape:
        raise ValueError(
            f"{name}: up must have gate's shape {tuple(gate.shape)}, got {tuple(up.shape)}; use .expand() to broadcast."
        )
    if up.dtype != gate.dtype:
        raise TypeError(f"{name}: up must have gate's dtype {gate.dtype}, got {up.dtype}; use .to(gate.dtype).")
    if up.device != gate.device:
        raise ValueError(f"{name}: up must be on gate's device {gate.device}, got {up.device}; use .to(gate.device).")


def _check_even(name: str, argument: str, value: Tensor, dim: int) -> None:
    if value.shape[dim] % 2:
        raise ValueError(
            f"{name}: {argument} must be even along axis {dim} to hold two halves, got shape {tuple(value.shape)}."
        )
