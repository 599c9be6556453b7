"""Log-sum-exp: the public face."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._native import FIRST_ORDER, WIDE, standing
from .._softmaxes.arguments import check_dim, prepared
from . import kernels as _kernels  # noqa: F401 -- registers them
from .rules import op

__all__ = ["logsumexp", "op"]

_is_compiling = torch.compiler.is_dynamo_compiling


def logsumexp(
    input: Tensor,  # noqa: A002 -- the name torch.logsumexp gives it
    dim: int | Sequence[int],
    keepdim: bool = False,
    *,
    scale: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Logarithm of the sum of exponentials; ``torch.logsumexp`` with a scale and a mask.

    With z = s x where kept and -∞ elsewhere, p = exp(z − y) and ⟨p, v⟩ = Σ p v along the axes:

        y = log Σ exp(z)
        ẏ = s ⟨p, ẋ⟩
        x̄ = s p ȳ

    and, for the second order, with a a cotangent of ẏ:

        ∂⟨a, ẏ⟩/∂x = s² a p ∘ (ẋ − ⟨p, ẋ⟩)

    Where a mask keeps nothing, or nothing but -∞, y is -∞ with zero derivatives; without a mask derivatives are NaN
    there, as in PyTorch. On a GPU primal, JVP, VJP and each point of second order are one kernel; it computes in
    float32, in float64 for float64 input. Several axes are brought together first, at the price of a copy unless they
    are the last.

    Args:
        input: x, any shape; float16, bfloat16, float32 or float64.
        dim: The axis, or several.
        keepdim: Whether the axes stay, with size 1.
        scale: s, finite.
        mask: Boolean, True where kept, broadcasting to input's shape. Absent keeps all.

    Returns:
        y, of input's dtype, and of its shape without the axes.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes or devices do not agree, dim is out of range, twice or absent, or scale is not finite.
    """
    way = standing(input)
    native = mask is None and way in FIRST_ORDER and input.dtype in WIDE
    if native and type(scale) is float and scale == 1.0 and type(dim) is int and -input.dim() <= dim < input.dim():
        return torch.logsumexp(input, dim, keepdim)  # what nearly every call on a CPU is, decided at once
    input, scale = prepared("logsumexp", input, scale, mask, None)  # noqa: A001
    if not input.dim():
        _axes(input, dim)
        input, mask = input.reshape(1), None if mask is None else mask.reshape(1)  # noqa: A001
        return logsumexp(input, -1, scale=scale, mask=mask).reshape(())
    axes = _axes(input, dim)
    if native and scale == 1:
        return torch.logsumexp(input, axes, keepdim)
    if len(axes) == 1:
        y = _call(input, mask, axes[0], scale)
    else:
        sizes = [1 if axis - input.dim() in axes else size for axis, size in enumerate(input.shape)]
        together, mask = _together(input, mask, axes)
        y = _call(together, mask, -1, scale).reshape(sizes)
    return y if keepdim else y.squeeze(axes)


def _call(x: Tensor, mask: Tensor | None, dim: int, scale: float) -> Tensor:
    return op(x, mask, dim, scale) if _is_compiling() else op.call_flat((x, mask, dim, scale))[0]


def _axes(x: Tensor, dim: Any) -> tuple[int, ...]:
    """The axes, each from the end."""
    if not isinstance(dim, tuple | list):
        return (check_dim("logsumexp", x, dim),)
    axes = tuple(check_dim("logsumexp", x, axis) for axis in dim)
    if not axes or len(set(axes)) != len(axes):
        raise ValueError(f"logsumexp: dim must name at least one axis, each once, got {tuple(dim)}.")
    return axes


def _together(x: Tensor, mask: Tensor | None, axes: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
    """The tensors with the axes brought together at the end."""
    last = tuple(range(-len(axes), 0))
    if mask is not None:
        padded = mask.reshape((*(1,) * (x.dim() - mask.dim()), *mask.shape))
        sizes = [size if axis - x.dim() in axes else -1 for axis, size in enumerate(x.shape)]
        mask = padded.expand(sizes).movedim(axes, last).flatten(-len(axes))
    return x.movedim(axes, last).flatten(-len(axes)), mask
