"""Log-softmax: the public face."""

import torch
from torch import Tensor

from ._softmaxes.face import along_axis
from ._softmaxes.kernels import register_cpu, register_triton
from ._softmaxes.tower import declare

__all__ = ["op", "log_softmax"]

op = declare("log_softmax")
register_triton(op, "log_softmax")
register_cpu(op, "log_softmax")


def log_softmax(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    dim: int,
    *,
    scale: float = 1.0,
    mask: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Logarithm of softmax along an axis; ``torch.nn.functional.log_softmax`` with a scale and a mask.

    With z = s x where kept and -∞ elsewhere, p = exp(y) and ⟨p, v⟩ = Σ p v along the axis:

        y = z − log Σ exp(z)
        ẏ = s (ẋ − ⟨p, ẋ⟩)        where kept, else 0
        x̄ = s (ȳ − p Σ ȳ)         likewise, the sum over what is kept

    and, for the second order, with a a cotangent of ẏ:

        ∂⟨a, ẏ⟩/∂x = −s p ∘ ẏ Σ a

    What is not kept is -∞ with zero derivatives. A row of which nothing is kept, or nothing but -∞, is all that where
    there is a mask; without one it gives NaN, as in PyTorch. On a GPU primal, JVP, VJP and each point of second order
    are one kernel; it computes in float32, in float64 for float64 input. The backward keeps the output and the mask.

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
    return along_axis(op, torch.log_softmax, input, dim, scale, mask, dtype)
