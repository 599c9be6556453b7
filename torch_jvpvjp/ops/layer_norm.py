"""Layer normalisation: the public face."""

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor

from ._arguments import check_floating, is_floating
from ._native import AS_IT_STANDS, REVERSED, standing
from ._norms import op
from ._norms.arguments import check_eps, check_shape, check_weight, fits
from ._norms.cpu import watched_layer_norm

__all__ = ["layer_norm", "op"]

_is_compiling = torch.compiler.is_dynamo_compiling


def layer_norm(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation over the last axes; signature and semantics of ``torch.nn.functional.layer_norm``.

    With ⟨·⟩ the mean over the normalised axes, P t = t − ⟨t⟩, r = (⟨(P x)²⟩ + ε)^(-1/2), x̂ = r P x and g = w ∘ ȳ:

        y = x̂ ∘ w + b
        ẏ = r (P ẋ − ⟨x̂ ẋ⟩ x̂) ∘ w + x̂ ∘ ẇ + ḃ
        x̄ = r (P g − ⟨x̂ g⟩ x̂),    w̄ = Σ over rows of x̂ ∘ ȳ,    b̄ = Σ over rows of ȳ

    It is the RMS norm of the centred row, and P is symmetric: the second order is that of :func:`rms_norm` with
    operands and results centred. It is right at every order, where PyTorch's is silently wrong when forward mode is
    differentiated. On a GPU the primal, the JVP (primal and tangents in one launch), the VJP and the second order are
    one kernel each; elsewhere, and at every other order, the formulas run. It computes in float32, in float64 for
    float64 input; the kernels and the second order take means about a row's first element, so that rows far from 0
    lose nothing there, and the second order of constant rows is exactly 0.

    Args:
        input: x, shape (*batch, *normalized_shape); float16, bfloat16, float32 or float64.
        normalized_shape: Sizes of the axes to normalise over, the last of the input's; at least one.
        weight: Gain w, shape normalized_shape; any of those dtypes. Absent means ones.
        bias: b, shape normalized_shape; any of those dtypes. Absent means zeros.
        eps: ε, added under the root; finite.

    Returns:
        y, of the shape and dtype of input.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes or devices do not agree, or eps is not finite.

    Source: Ba, Kiros and Hinton (2016), Layer Normalization.
    """
    way = standing(input, weight, bias)
    native = way in REVERSED  # and so dense tensors of one dtype on one device
    if (
        (native or is_floating(input))
        and type(normalized_shape) is tuple
        and len(normalized_shape) == 1
        and input.shape[-1:] == normalized_shape
        and (weight is None or (weight.shape == normalized_shape if native else fits(weight, normalized_shape, input)))
        and (bias is None or (bias.shape == normalized_shape if native else fits(bias, normalized_shape, input)))
    ):
        ndim = 1  # what nearly every call is, decided at once
    else:
        ndim = _check(input, normalized_shape, weight, bias)
    if type(eps) is not float or not 0 < eps < inf:
        check_eps("layer_norm", eps)
        eps = float(eps)
    if way in AS_IT_STANDS and input.numel():
        return torch.layer_norm(input, normalized_shape, weight, bias, eps)
    arguments = (input, weight, bias, ndim, eps, True, 0.0, False)
    if native and input.numel():
        return watched_layer_norm(*arguments)
    if _is_compiling():
        return op(*arguments)
    return op.call_flat(arguments)[0]  # a call of the op would only look at the arguments again


def _check(x: Any, normalized_shape: Any, weight: Any, bias: Any) -> int:
    """Refuse what is not a layer norm before anything is computed; return the number of normalised axes."""
    check_floating("layer_norm", "input", x)
    shape = check_shape("layer_norm", x, normalized_shape)
    check_weight("layer_norm", "weight", weight, x, shape, "normalized_shape")
    check_weight("layer_norm", "bias", bias, x, shape, "normalized_shape")
    return len(shape)
