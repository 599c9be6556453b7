"""RMS norm and layer norm: Triton kernels and their launchers for every point of their derivative tower.

One row x of n elements, its tangent ẋ, the gain W = offset + w (absent: all ones) and the bias b; with P = I − 11ᵀ/n
for layer norm and P = I for RMS norm, in normalised coordinates:

    r = (mean((P x)²) + eps)^(-1/2),    x̂ = r P x,    v = r P ẋ,    μ = mean(x̂ v)

    y  = x̂ ∘ W + b                                                                                  primal
    ẏ  = J(ẋ, ẇ, ḃ) = (v − μ x̂) ∘ W + x̂ ∘ ẇ + ḃ                                                     JVP
    Jᵀȳ:  x̄ = r P (g − mean(x̂ g) x̂),  g = W ∘ ȳ;    w̄ = Σ_rows x̂ ∘ ȳ,    b̄ = Σ_rows ȳ                VJP

Differentiating ⟨a, J(ẋ, ẇ, ḃ)⟩ once more, with g = W ∘ a, h = ẇ ∘ a, A = mean(g v), B = mean(x̂ g), C = mean(x̂ h):

    S_x = ∂⟨a, J⟩/∂x = r P (h − (A + C − 3 μ B) x̂ − B v − μ g)                                        second order
    S_w = ∂⟨a, J⟩/∂w = Σ_rows a ∘ (v − μ x̂)

A layer norm is the RMS norm of the centred row, and P is symmetric: its kernels are those of RMS norm, with x and ẋ
centred where they are loaded and x̄ where it is stored. A modulation x̂ ∘ (1 + scale) + shift is an offset of 1, with
weight and bias in groups.

In v and x̂ no power of r beyond r² arises, so nothing overflows that need not. r is recomputed by every kernel: the row
is in registers anyway, and a saved r would cost bytes. A mean is taken about the row's first element, so that a row far
from 0 is centred as exactly as one about 0.

A pointer that is None is absent, and its code with it. A loop over `range(0, stop, BLOCK_N)` runs over the chunks of a
row; where a tile holds the whole row, stop is the constant BLOCK_N, the loop dissolves, and what it loaded stays in
registers. Tensors are (groups K, rows M, columns N), weights (K, N), see `_layout`. Arithmetic is float64 if x is
float64, else float32; y, ẏ, x̄ have the dtype of x, weight gradients that of the weight.
"""

from __future__ import annotations

from ._pieces import Norm
from .forward import norm_forward
from .jvp import norm_jvp
from .pair import Side, pair_forward, pair_jvp, pair_vjp
from .second_order import Second, norm_second_order
from .variants import aot_variants
from .vjp import norm_vjp

__all__ = [
    "Norm",
    "Second",
    "Side",
    "aot_variants",
    "norm_forward",
    "norm_jvp",
    "norm_second_order",
    "norm_vjp",
    "pair_forward",
    "pair_jvp",
    "pair_vjp",
]
