"""Root-mean-square normalisation: the public face."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import cpu as _cpu  # noqa: F401 -- registers kernels, as the next does
from . import kernels as _kernels  # noqa: F401
from .rules import op

__all__ = ["op", "rms_norm"]

_FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_is_compiling = torch.compiler.is_compiling
_EPS32, _EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def rms_norm(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Root-mean-square normalisation over the last axes; signature and semantics of ``torch.nn.functional.rms_norm``.

    With r = (mean(x²) + ε)^(-1/2), ⟨·⟩ the mean over the normalised axes and g = w ∘ ȳ:

        y = r x ∘ w
        ẏ = r (ẋ − r² ⟨x ẋ⟩ x) ∘ w + r x ∘ ẇ
        x̄ = r (g − r² ⟨x g⟩ x),    w̄ = Σ over rows of r x ∘ ȳ

    and, for the second order, with a a cotangent of ẏ, g = a ∘ w and μ = ⟨x ẋ⟩:

        ∂⟨a, ẏ⟩/∂x = r a∘ẇ − r³ [(⟨g ẋ⟩ + ⟨a∘ẇ, x⟩) x + ⟨g x⟩ ẋ + μ g] + 3 r⁵ μ ⟨g x⟩ x

    On a GPU the primal, the JVP (primal and tangents in one launch), the VJP and the second order are one kernel each;
    elsewhere, and at every other order, the formulas run. It computes in float32, in float64 for float64 input.

    Args:
        input: x, shape (*batch, *normalized_shape); float16, bfloat16, float32 or float64.
        normalized_shape: Sizes of the axes to normalise over, the last of the input's; at least one.
        weight: Gain w, shape normalized_shape; any of those dtypes. Absent means ones.
        eps: ε, added under the root; positive. Absent means the machine epsilon of the dtype it computes in, as PyTorch
            has it.

    Returns:
        y, of the shape and dtype of input.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes or devices do not agree, or eps <= 0.

    Source: Zhang and Sennrich (2019), Root Mean Square Layer Normalization.
    """
    if (
        isinstance(input, Tensor)
        and input.dtype in _FLOATS
        and type(normalized_shape) is tuple
        and len(normalized_shape) == 1
        and input.shape[-1:] == normalized_shape
        and (
            weight is None
            or (
                isinstance(weight, Tensor)
                and weight.shape == normalized_shape
                and weight.dtype in _FLOATS
                and weight.device == input.device
            )
        )
    ):
        ndim = 1  # what nearly every call is, decided at once
    else:
        ndim = _check(input, normalized_shape, weight)
    if eps is None:
        eps = _EPS64 if input.dtype == torch.float64 else _EPS32
    elif type(eps) is not float or not eps > 0:
        _check_eps(eps)
    if _is_compiling():
        return op(input, weight, ndim, eps)
    return op.call_flat((input, weight, ndim, eps))[0]  # a call of the op would only look at the arguments again


def _check_eps(eps: Any) -> None:
    if isinstance(eps, bool) or not isinstance(eps, float | int):
        raise TypeError(f"rms_norm: eps must be a positive number or None, got {type(eps).__name__}.")
    if not eps > 0:
        raise ValueError(f"rms_norm: eps must be positive, got {eps}.")


def _check(x: Any, normalized_shape: Any, weight: Any) -> int:
    """Refuse what is not an RMS norm before anything is computed; return the number of normalised axes."""
    if not isinstance(x, Tensor):
        raise TypeError(f"rms_norm: input must be a Tensor, got {type(x).__name__}.")
    if x.dtype not in _FLOATS:
        raise TypeError(f"rms_norm: input must be float16, bfloat16, float32 or float64, got {x.dtype}; use .to().")
    if not isinstance(normalized_shape, tuple | list):
        raise TypeError(
            f"rms_norm: normalized_shape must be a tuple or list of ints, such as ({x.shape[-1] if x.dim() else 1},), "
            f"got {normalized_shape!r}."
        )
    shape = tuple(normalized_shape)
    if not shape or tuple(x.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"rms_norm: normalized_shape must be the last sizes of input's shape {tuple(x.shape)}, at least one, got "
            f"{shape}."
        )
    if weight is not None:
        if not isinstance(weight, Tensor):
            raise TypeError(f"rms_norm: weight must be a Tensor or None, got {type(weight).__name__}.")
        if weight.dtype not in _FLOATS:
            raise TypeError(
                f"rms_norm: weight must be float16, bfloat16, float32 or float64, got {weight.dtype}; use .to()."
            )
        if tuple(weight.shape) != shape:
            raise ValueError(
                f"rms_norm: weight must have shape {shape}, as normalized_shape says, got {tuple(weight.shape)}."
            )
        if weight.device != x.device:
            raise ValueError(
                f"rms_norm: weight must be on input's device {x.device}, got {weight.device}; use .to(input.device)."
            )
    return len(shape)
