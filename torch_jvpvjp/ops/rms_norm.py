"""Root-mean-square normalisation: the public face."""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from ..registration.push import is_pulled_alone
from ._arguments import check_floating, is_floating
from ._memory_order import inverse, memory_order
from ._native import OP, RECORDED, VALUE, standing
from ._norms import op
from ._norms.arguments import EPS32, EPS64, check_shape, check_weight, eps_of, fits, is_rounded

__all__ = ["op", "rms_norm"]

_is_compiling = torch.compiler.is_dynamo_compiling
# Entries up to which PyTorch's function, six small steps that are right in every order, is recorded in less time.
_SMALL = 1 << 16


def rms_norm(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
    casting: str = "torch",
) -> Tensor:
    """Root-mean-square normalisation over the last axes; signature and semantics of ``torch.nn.functional.rms_norm``.

    With r = (mean(x²) + ε)^(-1/2), ⟨·⟩ the mean over the normalised axes, W = weight_offset + w and g = W ∘ ȳ:

        y = r x ∘ W
        ẏ = r (ẋ − r² ⟨x ẋ⟩ x) ∘ W + r x ∘ ẇ
        x̄ = r (g − r² ⟨x g⟩ x),    w̄ = Σ over rows of r x ∘ ȳ

    and, for the second order, with a a cotangent of ẏ, g = a ∘ W and μ = ⟨x ẋ⟩:

        ∂⟨a, ẏ⟩/∂x = r a∘ẇ − r³ [(⟨g ẋ⟩ + ⟨a∘ẇ, x⟩) x + ⟨g x⟩ ẋ + μ g] + 3 r⁵ μ ⟨g x⟩ x

    On a GPU the primal, the JVP (primal and tangents in one launch), the VJP and the second order are one kernel each;
    elsewhere, and at every other order, the formulas run. It computes in float32, in float64 for float64 input.

    Args:
        input: x, shape (*batch, *normalized_shape); float16, bfloat16, float32 or float64.
        normalized_shape: Sizes of the axes to normalise over, the last of the input's; at least one.
        weight: Gain w, shape normalized_shape; any of those dtypes. Absent means a gain of ones.
        eps: ε, added under the root; finite. Absent means the machine epsilon of the dtype it computes in, as PyTorch
            has it.
        weight_offset: Added to the weight where there is one; 1.0 for models that keep w − 1, such as Gemma.
        casting: Where a half-precision value is rounded. "torch" and "gemma" round once, at the end, as
            ``torch.nn.functional.rms_norm`` and the GemmaRMSNorm of transformers do. "llama" rounds r x to input's
            dtype before the gain too, as its LlamaRMSNorm does, and asks for a weight of input's dtype. Derivatives are
            those of exact arithmetic, rounded once, in every case.

    Returns:
        y, of the shape and dtype of input; its axes in memory in the order of input's if those normalised over are last
        there.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes or devices do not agree, eps is not finite, or casting is unknown or unfit for the dtypes.

    Source: Zhang and Sennrich (2019), Root Mean Square Layer Normalization.
    """
    kind = standing(input, weight)
    # and so dense tensors of one dtype on one device
    native = kind == VALUE or (kind != OP and input.numel() <= _SMALL and (kind == RECORDED or is_pulled_alone()))
    if (
        (native or is_floating(input))
        and type(normalized_shape) is tuple
        and len(normalized_shape) == 1
        and input.shape[-1:] == normalized_shape
        and (weight is None or (weight.shape == normalized_shape if native else fits(weight, normalized_shape, input)))
    ):
        ndim = 1  # what nearly every call is, decided at once
    else:
        ndim = _check(input, normalized_shape, weight)
    if (
        native
        and casting == "torch"
        and type(weight_offset) is float
        and (weight is None or not weight_offset)
        and (eps is None or (type(eps) is float and 0 < eps < inf))
        and input.numel()
    ):
        return torch.rms_norm(input, normalized_shape, weight, eps)
    if eps is None:
        eps = EPS64 if input.dtype == torch.float64 else EPS32
    elif type(eps) is not float or not 0 < eps < inf:
        eps = eps_of("rms_norm", eps, input)
    rounded = False
    if casting != "torch" or type(weight_offset) is not float:
        rounded = is_rounded("rms_norm", casting, weight_offset, input, weight)
    order = memory_order(input)
    if order is None or order[-ndim:] != [*range(input.dim() - ndim, input.dim())]:
        return _call((input, weight, None, ndim, eps, False, float(weight_offset), rounded))
    rows = input.permute(order)
    return _call((rows, weight, None, ndim, eps, False, float(weight_offset), rounded)).permute(inverse(order))


def _call(arguments: tuple[Any, ...]) -> Tensor:
    if _is_compiling():
        return op(*arguments)
    return op.call_flat(arguments)[0]  # a call of the op would only look at the arguments again


def _check(x: Any, normalized_shape: Any, weight: Any) -> int:
    """Refuse what is not an RMS norm before anything is computed; return the number of normalised axes."""
    check_floating("rms_norm", "input", x)
    shape = check_shape("rms_norm", x, normalized_shape)
    check_weight("rms_norm", "weight", weight, x, shape, "normalized_shape")
    return len(shape)
