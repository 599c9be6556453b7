"""Gated residual, x + gate · h with one gate per sample, as adaLN-Zero and LayerScale have it."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..registration import broadcasting_rule, differentiable_op, expanding_rule
from ._arguments import check_floating
from ._arithmetic import cotangents_like, times, total, wide
from ._batched import batched
from ._devices import triton_devices
from ._native import NESTED, RECORDED, standing

__all__ = ["gated_residual", "op"]

_is_compiling = torch.compiler.is_dynamo_compiling


# ---- the reference and its rules -------------------------------------------------------------------------------------


@differentiable_op("torch_jvpvjp::gated_residual", composite=True)
def op(x: Tensor, gate: Tensor, h: Tensor) -> Tensor:
    """The reference: y = x + g ∘ h.

    Args:
        x: Shape (B, T, D), or with axes in front, where vmap puts a batch.
        gate: g, shape (B or 1, 1, D or 1), likewise.
        h: Shape (B, T, D), likewise.

    Returns:
        y, of x's dtype and the broadcast shape.
    """
    return (wide(x, x) + wide(gate, x) * wide(h, x)).to(x.dtype)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """ẏ = ẋ + ġ ∘ h + g ∘ ḣ."""
    x, gate, h = (wide(t, primals.x) for t in primals)
    x_dot, gate_dot, h_dot = (wide(t, primals.x) for t in tangents)
    y = x + gate * h
    y_dot = total(x_dot, times(gate_dot, h), times(gate, h_dot))
    y_dot = torch.zeros_like(y) if y_dot is None else y_dot.expand(torch.broadcast_shapes(y.shape, y_dot.shape))
    return y.to(primals.x.dtype), y_dot.to(primals.x.dtype)


@op.vjp(unsaved=("x",))
def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """x̄ = ȳ,  ḡ = Σ h ∘ ȳ,  h̄ = g ∘ ȳ; x, which has the shape of y, is not kept."""
    y_bar = wide(cotangents.y, cotangents.y)
    gate_bar = y_bar * wide(inputs.h, y_bar) if needs[1] else None
    h_bar = y_bar * wide(inputs.gate, y_bar) if needs[2] else None
    return (cotangents.y, *cotangents_like((gate_bar, h_bar), (inputs.gate, inputs.h)))


op.vmap(expanding_rule(op, results_like=(0,)))  # x gets every batch axis, so that x̄ = ȳ
op.jvp.vmap(broadcasting_rule(op.jvp.op, results_of=[(0, 1, 2), range(6)]))  # K tangents of one primal are one launch
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(0, 2, 3)))  # y_bar, x (absent), gate, h


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _primal_kernel(x: Tensor, gate: Tensor, h: Tensor) -> Tensor:
    """One launch: y."""
    from ..triton_kernels.gated_residual import gated_residual_push

    operands = batched((x, gate, h), 3)
    return operands.result(gated_residual_push(*operands.tensors)[0])


def _jvp_kernel(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """One launch: y once, and ẏ for every tangent."""
    from ..triton_kernels.gated_residual import gated_residual_push

    operands = batched((*primals, *tangents), 3)
    x, gate, h, *dots = operands.tensors
    y, y_dot = gated_residual_push(x, gate, h, tuple(dots))  # pyright: ignore[reportArgumentType]
    assert y_dot is not None
    return operands.shared_result(y, torch.broadcast_shapes(*(t.shape for t in primals))), operands.result(y_dot)


def _vjp_kernel(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch for x̄, h̄ and partial sums of ḡ, and one that adds those up in a fixed order."""
    from ..triton_kernels.gated_residual import gated_residual_vjp

    operands = batched((cotangents.y, inputs.gate, inputs.h), 3)
    y_bar, gate, h = operands.tensors
    wanted: Any = needs
    x_bar, gate_bar, h_bar = gated_residual_vjp(y_bar, y_bar.dtype, gate, h, wanted)
    return (
        None if x_bar is None else operands.result(x_bar),
        None if gate_bar is None else operands.result(gate_bar, inputs.gate).to(inputs.gate.dtype),
        None if h_bar is None else operands.result(h_bar, inputs.h),
    )


def _primal_cpu(x: Tensor, gate: Tensor, h: Tensor) -> Tensor:
    """y in one pass, where PyTorch has one for these dtypes."""
    if x.dtype in (torch.float32, torch.float64) and gate.dtype == x.dtype == h.dtype:
        return torch.addcmul(x, gate, h)
    return op.formula(x, gate, h)


_DEVICES = triton_devices()
if _DEVICES:
    op.kernel(*_DEVICES)(_primal_kernel)
    op.jvp.kernel(*_DEVICES)(_jvp_kernel)
    op.vjp.kernel(*_DEVICES)(_vjp_kernel)
if "cpu" not in _DEVICES:  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(_primal_cpu)


# ---- the public face -------------------------------------------------------------------------------------------------


def gated_residual(x: Tensor, gate: Tensor, h: Tensor) -> Tensor:
    """A residual branch with a gate, x + gate · h, as adaLN-Zero blocks, LayerScale and ReZero have it.

        y = x + g ∘ h,     ẏ = ẋ + ġ ∘ h + g ∘ ḣ
        x̄ = ȳ,    h̄ = g ∘ ȳ,    ḡ = Σ h ∘ ȳ    over all that shares a gate, in a fixed order

    What the axes of gate mean follows from how many there are, for x of shape (B, ..., D):

    * as many as x has: each is of x's size or 1, and those of size 1 are neighbours: (B, 1, D), (B, 1, 1), (B, T, 1);
    * two, where x has three or more: (B, D), one gate per sample and channel, shared by the tokens;
    * one: (D,), one gate per channel; none: one gate.

    Other broadcasting is refused, so a (B, D) gate is never taken for (T, D). On a GPU the primal, the JVP (primal and
    tangents in one launch) and the VJP are one kernel each; elsewhere, and at every other order, the formulas run. It
    computes in float32, in float64 for float64 x.

    Args:
        x: The residual stream, shape (B, ..., D); float16, bfloat16, float32 or float64.
        gate: g, a shape named above; any of those dtypes.
        h: The branch, of x's shape; any of those dtypes.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        TypeError: If an argument is not a tensor of a dtype named above.
        ValueError: If shapes or devices do not agree.

    Source: Peebles and Xie (2023), Scalable Diffusion Models with Transformers.
    """
    _check(x, gate, h)
    aligned = _aligned_shape(x, gate)
    axes = None if gate.dim() <= 2 else _three_axes(x, aligned)  # with fewer, all that lies between two axes is shared
    way = standing(x, gate, h)
    if way:
        gates = gate.reshape(aligned)
        # PyTorch's pullback of addcmul multiplies by its factor, 1, in a pass of its own for every cotangent.
        return x + gates * h if way in (RECORDED, NESTED) else torch.addcmul(x, gates, h)
    axes = _three_axes(x, aligned) if axes is None else axes
    rows = [size for size, _ in axes]
    x_rows, h_rows = x.reshape(rows), h.reshape(rows)
    gates = gate.reshape([1 if shared else size for size, shared in axes])
    y = op(x_rows, gates, h_rows) if _is_compiling() else op.call_flat((x_rows, gates, h_rows))[0]
    return y.reshape(x.shape)


def _aligned_shape(x: Tensor, gate: Tensor) -> tuple[int, ...]:
    """gate's shape with as many axes as x, by the rules of the public docstring."""
    shape = tuple(gate.shape)
    if gate.dim() == 2 and x.dim() > 2:
        shape = (shape[0], *(1,) * (x.dim() - 2), shape[1])
    elif gate.dim() <= 1:
        shape = (*(1,) * (x.dim() - gate.dim()), *shape)
    # Not `in`: for Dynamo a size that it does not know is in no tuple of numbers.
    if len(shape) != x.dim() or any(g != 1 and g != n for g, n in zip(shape, x.shape, strict=True)):
        raise ValueError(
            f"gated_residual: gate must have shape {tuple(x.shape)} with some sizes 1, or "
            f"{(*x.shape[:1], *x.shape[-1:])} or {tuple(x.shape[-1:])}, to match x's shape {tuple(x.shape)}, got "
            f"{tuple(gate.shape)}."
        )
    return shape


def _three_axes(x: Tensor, gate: Sequence[int]) -> list[tuple[int, bool]]:
    """Sizes of x as (samples, tokens, channels), and whether gate is shared along each.

    A gate is shared by tokens; where it is shared to the very end of x, by the last axis too.

    Args:
        x: The residual stream.
        gate: gate's shape, with as many axes.

    Returns:
        Three pairs.

    Raises:
        ValueError: If what lies between two shared axes is not shared.
    """
    sizes = list(x.shape)
    shared = [i for i, (g, n) in enumerate(zip(gate, sizes, strict=True)) if g != n]
    if not shared:
        return [(prod(sizes[:-1]), False), (1, False), (prod(sizes[-1:]), False)]
    first, last = shared[0], shared[-1]
    if any(gate[i] != 1 for i in range(first, last + 1)):
        raise ValueError(
            f"gated_residual: gate's axes of size 1 must be neighbours, got gate {tuple(gate)} for x {tuple(sizes)}; "
            "use gate.expand(x.shape)."
        )
    if last == len(sizes) - 1:
        return [(prod(sizes[:first]), False), (prod(sizes[first:last]), True), (sizes[last], True)]
    return [(prod(sizes[:first]), False), (prod(sizes[first : last + 1]), True), (prod(sizes[last + 1 :]), False)]


def _check(x: Any, gate: Any, h: Any) -> None:
    """Refuse what is not a gated residual before anything is computed."""
    for name, tensor in (("x", x), ("gate", gate), ("h", h)):
        check_floating("gated_residual", name, tensor)
        if tensor.device != x.device:
            raise ValueError(
                f"gated_residual: {name} must be on x's device {x.device}, got {tensor.device}; use .to(x.device)."
            )
    if h.shape != x.shape:
        raise ValueError(f"gated_residual: h must have x's shape {tuple(x.shape)}, got {tuple(h.shape)}.")
