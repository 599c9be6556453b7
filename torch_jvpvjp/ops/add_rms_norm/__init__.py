"""The RMS norm of a sum, which is returned as well: the public face."""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from ...registration.autocast import is_autocast
from .._arguments import check_floating
from .._native import VALUE, standing
from .._norms.arguments import check_device, check_shape, check_weight, eps_of, is_rounded
from . import kernels as _kernels  # noqa: F401 -- registers them
from .rules import op

__all__ = ["add_rms_norm", "op"]

_is_compiling = torch.compiler.is_dynamo_compiling


def add_rms_norm(
    input: Tensor,  # noqa: A002 -- as rms_norm has it
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
    casting: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Add a residual and normalise the sum, as a pre-norm transformer does between its layers: y and the sum.

    With z the residual, s = x + z rounded to the dtype of x, and N the norm of :func:`rms_norm` with Jacobian J at s:

        y = N(s, w)
        ẏ = J(ẋ + ż, ẇ),    ṡ = ẋ + ż
        x̄ = z̄ = J_xᵀ ȳ + s̄,    w̄ = J_wᵀ ȳ

    On a GPU the primal, the JVP (values and tangents) and the VJP are one launch each, sums included; at the second
    order the norm is one launch, and sums are beside it. The pullback keeps s and y, and neither x nor z.

    Args:
        input: x, shape (*batch, *normalized_shape); float16, bfloat16, float32 or float64.
        residual: z, of the shape, dtype and device of input; under autocast of any dtype, and both are cast to the
            wider one, as their sum is.
        normalized_shape: Sizes of the axes to normalise over, the last of the input's; at least one.
        weight: Gain w, shape normalized_shape; any of those dtypes. Absent means a gain of ones.
        eps: ε, added under the root; finite. Absent means the machine epsilon of the dtype it computes in.
        weight_offset: Added to the weight where there is one, see :func:`rms_norm`.
        casting: "torch", "llama" or "gemma", see :func:`rms_norm`.

    Returns:
        y and s, of the shape and dtype of input (under autocast, of the sum).

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes, dtypes or devices do not agree, eps is not finite, or casting is unknown or does not fit.

    Source: Zhang and Sennrich (2019), Root Mean Square Layer Normalization.
    """
    name = "add_rms_norm"
    if (
        standing(input, residual, weight) == VALUE  # and so dense tensors of one dtype on one device
        and residual is not None
        and residual.shape == input.shape
        and type(normalized_shape) is tuple
        and len(normalized_shape) == 1
        and input.shape[-1:] == normalized_shape
        and (weight is None or (weight.shape == normalized_shape and not weight_offset))
        and type(weight_offset) is float
        and (eps is None or (type(eps) is float and 0 < eps < inf))
        and casting == "torch"
        and input.numel()
    ):  # what nearly every call on a CPU is, decided at once
        total = input + residual
        return torch.rms_norm(total, normalized_shape, weight, eps), total
    input, residual = _summands(input, residual)  # noqa: A001
    shape = check_shape(name, input, normalized_shape)
    check_weight(name, "weight", weight, input, shape, "normalized_shape")
    eps = eps_of(name, eps, input)
    rounded = is_rounded(name, casting, weight_offset, input, weight)
    arguments = (input, residual, weight, len(shape), eps, float(weight_offset), rounded)
    return op(*arguments) if _is_compiling() else op.call_flat(arguments)  # pyright: ignore[reportReturnType]


def _summands(x: Any, residual: Any) -> tuple[Tensor, Tensor]:
    """The two in one dtype, under autocast the wider; what cannot be added is refused before anything is computed."""
    name = "add_rms_norm"
    check_floating(name, "input", x)
    check_floating(name, "residual", residual)
    if residual.dtype != x.dtype and is_autocast(x.device.type):
        dtype = torch.promote_types(x.dtype, residual.dtype)
        x, residual = x.to(dtype), residual.to(dtype)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"{name}: residual must have the shape and dtype of input, {tuple(x.shape)} and {x.dtype}, got "
            f"{tuple(residual.shape)} and {residual.dtype}; use .expand() or .to()."
        )
    check_device(name, "residual", residual, "input", x)
    return x, residual
