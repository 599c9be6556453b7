"""Softmax: the public face."""

import torch
from torch import Tensor

from ._softmaxes.face import along_axis
from ._softmaxes.kernels import register_cpu, register_triton
from ._softmaxes.tower import declare

__all__ = ["op", "softmax"]

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
    return along_axis(op, torch.softmax, input, dim, scale, mask, dtype)
