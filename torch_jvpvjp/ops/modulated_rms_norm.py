"""Modulated root-mean-square normalisation: the public face."""

from math import inf

from torch import Tensor

from ._norms import op
from ._norms.arguments import check_eps
from ._norms.modulation import modulated

__all__ = ["modulated_rms_norm", "op"]


def modulated_rms_norm(x: Tensor, shift: Tensor | None, scale: Tensor, eps: float = 1e-6) -> Tensor:
    """Root-mean-square normalisation over the last axis, without weights, then a shift and a scale of each sample.

    With ⟨·⟩ the mean over the last axis, r = (⟨x²⟩ + ε)^(-1/2), x̂ = r x and g = (1 + s) ∘ ȳ:

        y = x̂ ∘ (1 + s) + t
        ẏ = r (ẋ − ⟨x̂ ẋ⟩ x̂) ∘ (1 + s) + x̂ ∘ ṡ + ṫ
        x̄ = r (g − ⟨x̂ g⟩ x̂),    s̄ = Σ x̂ ∘ ȳ,    t̄ = Σ ȳ,  over the rows that share s and t

    It is :func:`rms_norm` with a gain 1 + s and a bias t that vary over samples, in the same kernels: normalising and
    modulating are one launch, and so are value and tangents of x, shift and scale together.

    Args:
        x: Input, shape (*batch, n); float16, bfloat16, float32 or float64.
        shift: t, or None for no shift; shape (*lead, n); any of those dtypes. lead is either as long as batch, each
            size that of x or 1, such as (B, 1, n), (1, T, n) or (B, T, n) for x of (B, T, n); or shorter: then it is
            the first few batch axes of x, and t is shared along the others, such as (B, n) for one shift a sample.
        scale: s, likewise, but always there; its shape may differ from that of shift.
        eps: ε, added under the root; finite.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes or devices do not agree, or eps is not finite.

    Source: Peebles and Xie (2023), Scalable Diffusion Models with Transformers; Zhang and Sennrich (2019).
    """
    if type(eps) is not float or not 0 < eps < inf:
        check_eps("modulated_rms_norm", eps)
    return modulated("modulated_rms_norm", x, shift, scale, eps, centred=False)
