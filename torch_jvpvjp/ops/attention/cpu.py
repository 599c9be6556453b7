"""Kernels for CPU tensors: PyTorch's fused attention where it is right, else stripes of rows; never an N×N matrix."""

from typing import Any

import torch
from torch import Tensor

from .._arithmetic import wide
from .._devices import triton_devices
from .arguments import UNBOUNDED
from .inputs import operands_of
from .rules import op
from .tower import stripes

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _fits_fused(inputs: Any) -> bool:
    """Whether PyTorch's kernel computes this: alike heads, no option but top-left causal, something to see."""
    q, k, v = inputs.query, inputs.key, inputs.value
    return (
        inputs.right in (UNBOUNDED, 0)
        and inputs.left == UNBOUNDED
        and (inputs.right == UNBOUNDED or inputs.offset == 0)
        and all(t is None for t in (inputs.bias, inputs.mask, inputs.slopes, inputs.ranges))
        and inputs.softcap == 0
        and inputs.dropout_p == 0
        and q.dim() == k.dim() == v.dim()
        and q.shape[:-2] == k.shape[:-2]
        and q.shape[-1] == v.shape[-1]
        and min(q.numel(), k.numel()) > 0
    )


def _four(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors with vmap's axis merged into the batch and a last stride of 1: without it PyTorch's kernel is wrong."""
    unit = (t if t.stride(-1) == 1 else t.contiguous() for t in tensors)
    return tuple(t.flatten(0, 1) if t.dim() == 5 else t for t in unit)


def primal(*args: Any) -> tuple[Tensor, Tensor]:
    """o and ℓ: fused, or stripe by stripe."""
    inputs = op.signature.inputs_type(*args)
    if _fits_fused(inputs):
        query = inputs.query
        tensors = _four(query, inputs.key, inputs.value)
        o, lse = _FUSED(*tensors, 0.0, inputs.right == 0, scale=inputs.scale)
        return o.reshape(query.shape), lse.reshape(query.shape[:-1])
    return stripes.primal(inputs)


def vjp(cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The cotangents of the arguments, fused or stripe by stripe, with o and ℓ read off the outputs."""
    w, lse_bar = cotangents
    if w is not None and lse_bar is None and any(needs) and _fits_fused(inputs):
        o, lse = outputs
        w, query, key, value, o = _four(w, inputs.query, inputs.key, inputs.value, o)
        lse = wide(lse.flatten(0, 1) if lse.dim() == 4 else lse, query)
        found = _FUSED_BACKWARD(w, query, key, value, o, lse, 0.0, inputs.right == 0, scale=inputs.scale)
        return *(t.reshape(a.shape) for t, a in zip(found, operands_of(inputs), strict=False)), None
    return stripes.vjp(cotangents, inputs, outputs, needs=needs)


# ---- registration ----------------------------------------------------------------------------------------------------

# In the interpreter CPU tensors take the Triton kernels.
if "cpu" not in triton_devices():
    op.kernel("cpu")(primal)
    op.jvp.kernel("cpu")(stripes.jvp)
    op.vjp.kernel("cpu")(vjp)
    op.jvp.vjp.kernel("cpu")(stripes.jvp_vjp)
    op.vjp.jvp.kernel("cpu")(stripes.vjp_jvp)
    op.vjp.vjp.kernel("cpu")(stripes.vjp_vjp)
