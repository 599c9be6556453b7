"""Pointwise functions: one Triton kernel for every function of `_jets` and every point of its derivative tower.

With f the function at x, and p, q, b tangents or cotangents:

    y = f(x)        f′(x) p        f′(x) q        f″(x) p q + f′(x) b

A launcher asks for any of them, which makes the primal, the JVP, the VJP and all of the second order: the Jacobian is
diagonal, so that pushing forward and pulling back are the same product. Tensors are (groups K, elements N, 1), see
`_layout`; where all groups share x, its jet is computed once for the K directions.
"""

from __future__ import annotations

from .jet import pointwise_jet
from .variants import aot_variants

__all__ = ["aot_variants", "pointwise_jet"]
