"""Root-mean-square normalisation: Triton kernels and their launchers for every point of its derivative tower.

One row x of n elements, its tangent ẋ and the gain w (absent: all ones), in normalised coordinates:

    r = (mean(x²) + eps)^(-1/2),    x̂ = r x,    v = r ẋ,    μ = mean(x̂ v)

    y  = x̂ ∘ w                                                                                  primal
    ẏ  = J(ẋ, ẇ) = (v − μ x̂) ∘ w + x̂ ∘ ẇ                                                        JVP
    Jᵀȳ:  x̄ = r (g − mean(x̂ g) x̂),  g = w ∘ ȳ;    w̄ = Σ_rows x̂ ∘ ȳ                                VJP

Differentiating ⟨a, J(ẋ, ẇ)⟩ once more, with g = w ∘ a, h = ẇ ∘ a, A = mean(g v), B = mean(x̂ g), C = mean(x̂ h):

    S_x = ∂⟨a, J⟩/∂x = r (h − (A + C − 3 μ B) x̂ − B v − μ g)                                      second order
    S_w = ∂⟨a, J⟩/∂w = Σ_rows a ∘ (v − μ x̂)

In v and x̂ no power of r beyond r² arises, so nothing overflows that need not. r is recomputed by every kernel: the row
is in registers anyway, and a saved r would cost bytes.

A pointer that is None is absent, and its code with it. A loop over `range(0, stop, BLOCK_N)` runs over the chunks of a
row; where a tile holds the whole row, stop is the constant BLOCK_N, the loop dissolves, and what it loaded stays in
registers. Tensors are (groups K, rows M, columns N), weights (K, N), see `_layout`. Arithmetic is float64 if x is
float64, else float32; y, ẏ, x̄ have the dtype of x, weight gradients that of the weight.
"""

from __future__ import annotations

from .forward import rms_norm_forward
from .jvp import rms_norm_jvp
from .second_order import rms_norm_second_order
from .variants import aot_variants
from .vjp import rms_norm_vjp

__all__ = ["aot_variants", "rms_norm_forward", "rms_norm_jvp", "rms_norm_second_order", "rms_norm_vjp"]
