"""Softmax, log-softmax and log-sum-exp along any axis: Triton kernels and launchers for their derivative towers.

One row x of n scores, a scale s, a mask of what is kept (elsewhere z = -∞), a tangent ẋ, cotangents:

    z = s x,    L = log Σ exp z,    p = exp(z − L),    ⟨p, v⟩ = Σ p v

    softmax:      y = p        J v = s p ∘ (v − ⟨p, v⟩)        Jᵀ = J
    log_softmax:  y = z − L    J v = s (v − ⟨p, v⟩)            Jᵀ a = s (a − p Σ a)        both 0 where not kept
    logsumexp:    y = L        J v = s ⟨p, v⟩                  Jᵀ a = s p a

So J v and Jᵀ a are one kernel, `_apply_kernel`: an inner product and a pointwise combination of v, p and that product.
Pulling back through softmax and log_softmax reads p off the output, exp(y) or y, and so neither the scores nor the
mask's columns again. Differentiating ⟨a, J v⟩ once more, with ẏ = J v, α = ⟨p, a⟩ and A = Σ a:

    softmax:      s [ẏ ∘ (a − α) − p ⟨ẏ, a⟩]
    log_softmax:  −s A p ∘ ẏ
    logsumexp:    s a p ∘ (s v − ẏ)

A row of which the mask keeps nothing has p = 0: softmax gives zeros, the logarithms -∞, derivatives are zero. Rows
longer than a tile are read in chunks, with the online sum of exponentials. Tensors are (groups K, outer O, columns n,
inner I), see `_tiles`; K = 1 is shared by all groups. Arithmetic is float64 if the scores are, else float32.
"""

from __future__ import annotations

from .apply import softmax_apply
from .pullback import softmax_pullback_vjp
from .second_order import softmax_second_order
from .variants import aot_variants

__all__ = ["aot_variants", "softmax_apply", "softmax_pullback_vjp", "softmax_second_order"]
