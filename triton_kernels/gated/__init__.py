"""Gated linear units: one Triton kernel for every function of `_jets` and every point of the derivative tower.

With f the function at the gate g, and u what it gates:

    y = f u                                                                primal
    ẏ = J(ġ, u̇) = f′ ġ u + f u̇                                             JVP
    Jᵀa = (f′ u a, f a)                                                    VJP
    S = ∂⟨a, J(ġ, u̇)⟩/∂(g, u) = (a (f″ ġ u + f′ u̇), a f′ ġ)                second order

Tensors are (groups K, rows M, columns N), see `_layout`, any strides between rows: the two halves of a packed tensor
are read where they lie, and the gradients of both are written into one packed tensor. Where all groups share g and u,
the jet is computed once for the K directions. Where rows follow one another in memory they are one long row.
"""

from __future__ import annotations

from .product import gated_product
from .variants import aot_variants

__all__ = ["aot_variants", "gated_product"]
