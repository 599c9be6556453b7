"""A linear layer's epilogue: Triton kernel and launcher for what follows its matrix product in a JVP.

With p = x Wᵀ and ṗ = ẋ Wᵀ + x Ẇᵀ from cuBLAS, f the activation:

    z = p + b,    y = f(z),    ẏ = f′(z) (ṗ + ḃ)

Everything else that is pointwise in a linear layer's tower of derivatives is `pointwise.pointwise_jet` at z.
"""

from __future__ import annotations

from .epilogue import linear_epilogue
from .variants import aot_variants

__all__ = ["aot_variants", "linear_epilogue"]
