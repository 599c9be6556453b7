"""Softmax: the public face."""

import torch
from torch import Tensor

from ._arithmetic import FLOATS
from ._native import reversed_only
from ._softmaxes.arguments import check_dim, prepared
from ._softmaxes.kernels import register_cpu, register_triton
from ._softmaxes.tower import declare

__all__ = ["op", "softmax"]

_is_compiling = torch.compiler.is_compiling
op = declare("softmax")
register_triton(op, "softmax")
register_cpu(op, "softmax")


def softmax(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    dim: int,
    *,
    scale: float = 1.0,
    mask: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Softmax along an axis; ``torch.nn.functional.softmax`` with a scale and a mask.

    With z = s x where kept and -∞ elsewhere, p = y and ⟨p, v⟩ = Σ p v along the axis:

        y = exp(z) / Σ exp(z)
        ẏ = s p ∘ (ẋ − ⟨p, ẋ⟩)
        x̄ = s p ∘ (ȳ − ⟨p, ȳ⟩)

    and, for the second order, with a a cotangent of ẏ:

        ∂⟨a, ẏ⟩/∂x = s [ẏ ∘ (a − ⟨p, a⟩) − p ⟨ẏ, a⟩]

    A row of which nothing is kept, or nothing but -∞, gives zeros with zero derivatives where there is a mask; without
    one it gives NaN, as in PyTorch. On a GPU primal, JVP, VJP and each point of second order are one kernel; it
    computes in float32, in float64 for float64 input. The backward keeps the output alone.

    Args:
        input: x, any shape; float16, bfloat16, float32 or float64.
        dim: The axis.
        scale: s, finite.
        mask: Boolean, True where kept, broadcasting to input's shape; it is never expanded. Absent keeps all.
        dtype: Dtype that input is brought to first. Absent keeps it; under autocast on a GPU it is float32.

    Returns:
        y, of the shape of input, and of dtype or input's dtype.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes or devices do not agree, dim is out of range, or scale is not finite.

    Source: Bridle (1990), Probabilistic interpretation of feedforward classification network outputs.
    """
    if (
        mask is None
        and dtype is None
        and type(scale) is float
        and scale == 1.0
        and dim == -1
        and type(input) is Tensor
        and input.dim()
        and (input.dtype is torch.float32 or (input.dtype in FLOATS and not torch.is_autocast_enabled("cuda")))
    ):
        scale = 1.0  # what nearly every call is, decided at once
    else:
        input, scale = prepared("softmax", input, scale, mask, dtype)  # noqa: A001
        dim = check_dim("softmax", input, dim)
        if not input.dim():
            return softmax(
                input.reshape(1), -1, scale=scale, mask=None if mask is None else mask.reshape(1)
            ).reshape(())
    if mask is None and scale == 1 and reversed_only(input):
        return torch.softmax(input, dim)
    if _is_compiling():
        return op(input, mask, dim, scale)
    return op.call_flat((input, mask, dim, scale))[0]  # a call of the op would only look at the arguments again
