"""Cross-entropy, row by row: Triton kernels and launchers for its derivative tower.

One row x of n logits, optionally capped, z = κ tanh(x / κ), with first and second derivative z′ and z″; its target as
weights τ of the classes, from class weights w, label smoothing ε and a class t or probabilities q:

    τ_j = (1 − ε) w_t [j = t] + (ε/n) w_j    or    τ_j = w_j ((1 − ε) q_j + ε/n),        σ = Σ τ
    L = log Σ exp z,    p = exp(z − L),    ℓ = Σ τ (L − z)                                primal: ℓ and L
    ż = z′ẋ,    L̇ = Σ p ż,    ℓ̇ = Σ τ (L̇ − ż) + τ̇ (L − z)                                JVP: ℓ̇ and L̇

With c, e the cotangents of ℓ, L, and a, d those of ℓ̇, L̇, and h = a σ + d, G = c σ + e + a σ̇:

    x̄ = (G p − c τ) z′ at a = d = 0,      q̄ = w (1 − ε) c (L − z)                         VJP
    ẋ̄ = (h p − a τ) z′,                   q̇̄ = w (1 − ε) a (L − z)                         VJP of the JVP, and
    x̄ = [G p + h p (ż − L̇) − c τ − a τ̇] z′ + (h p − a τ) z″ ẋ,                           JVP and VJP of the VJP
    q̄ = w (1 − ε) [c (L − z) + a (L̇ − ż)]

Neither p nor the one-hot τ is ever in memory: a row is read once for the primal and JVP (the online sum of
exponentials), once for the VJP where L is known, twice for the second order. What is known of L is L and what it lacks
as rounded: exp(z − L) alone is as wrong as L is, whose rounding is relative to L. A row whose class is ignored is not
read and gives zeros whatever its logits; one whose class does not exist gives NaN. Tensors are (groups K, outer O,
classes n, inner I), one number for each row (K, O, I), see `softmax._tiles`. Arithmetic is float64 if the logits are,
else float32.
"""

from __future__ import annotations

from .forward import cross_entropy_forward
from .second_order import cross_entropy_second_order
from .variants import aot_variants
from .vjp import cross_entropy_vjp

__all__ = ["aot_variants", "cross_entropy_forward", "cross_entropy_second_order", "cross_entropy_vjp"]
