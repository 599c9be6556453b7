"""RMS norm on the CPU: PyTorch's own primal, and a pullback in as few ops as it takes.

On a small tensor an op costs mostly its dispatch, so the pullback works in place on what it has just made.
"""

from typing import Any

import torch
from torch import Tensor

from .._devices import triton_devices
from .rules import op


def _primal(x: Tensor, weight: Tensor | None, normalized_ndim: int, eps: float) -> Tensor:
    """y by ``torch.rms_norm``; by the formula where a weight has batch axes or another dtype."""
    if weight is None or (weight.dim() == normalized_ndim and weight.dtype == x.dtype):
        # A slice of a shape takes longer to make and to parse than a tuple of one size.
        shape = (x.shape[-1],) if normalized_ndim == 1 else x.shape[-normalized_ndim:]
        return torch.rms_norm(x, shape, weight, eps)
    return op.formula(x, weight, normalized_ndim, eps)


def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
    """x̄ = r (g − ⟨x̂ g⟩ x̂),  w̄ = Σ x̂ ∘ ȳ,  with g = w ∘ ȳ; by the formula unless all is one dtype and one axis wide."""
    x, weight, normalized_ndim, eps = inputs
    y_bar = cotangents.y
    plain = normalized_ndim == 1 and x.dtype in (torch.float32, torch.float64)
    if not plain or x.shape != y_bar.shape or (weight is not None and (weight.dim() != 1 or weight.dtype != x.dtype)):
        return op.vjp.op.formula(cotangents, inputs, needs=needs)
    n = x.shape[-1]
    r = (x * x).sum(-1, True).div_(n).add_(eps).rsqrt_()
    unit = x * r  # x̂
    x_bar = w_bar = None
    if needs[1]:
        w_bar = unit * y_bar
        w_bar = w_bar.sum(tuple(range(x.dim() - 1))) if x.dim() > 1 else w_bar
    if needs[0]:
        g = y_bar if weight is None else y_bar * weight
        inner = (unit * g).sum(-1, True).div_(n)  # ⟨x̂ g⟩
        x_bar = torch.addcmul(g, unit, inner, value=-1).mul_(r)
    return x_bar, w_bar


if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(_primal)
    op.vjp.kernel("cpu")(_vjp)
