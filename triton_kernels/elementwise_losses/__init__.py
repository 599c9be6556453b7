"""Elementwise losses: y = s Σ e(x, t) over the elements of a row, its tangents, and what is pulled back through it.

    y = s Σ e(x, t)                             primal
    ẏ = s Σ e_x ẋ + e_t ṫ                       JVP
    x̄ = s ȳ e_x,    t̄ = s ȳ e_t                 VJP

With d = x − t, p = exp(x), log m = log((p + q)/2), q the target or its exponential:

    mse        e = d²
    huber      e = ½ d² where |d| ≤ δ, else δ (|d| − ½ δ)
    kl         e = t (log t − x), 0 where t = 0
    kl_log     e = exp(t) (t − x)
    js         e = ½ p (x − log m) + ½ q (log q − log m), terms with p = 0 or q = 0 being 0
    js_log     the same with log q = t

Sums are deterministic: each program adds a fixed part of a row, and the parts are added in a fixed order. Tensors are
(groups K, rows M, elements N), see `_layout`; a sum over one element is the loss without reduction, and is a map.
"""

from __future__ import annotations

from .loss import elementwise_loss, elementwise_loss_vjp
from .variants import aot_variants

__all__ = ["aot_variants", "elementwise_loss", "elementwise_loss_vjp"]
