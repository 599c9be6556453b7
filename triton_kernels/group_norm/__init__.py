"""Group norm with an activation: Triton kernels and their launchers for primal, JVP, VJP and the second order.

The L = D·S elements x of a group (D channels of S sites), their tangents ẋ, gain w and shift b of their channels:

    m = mean(x),  r = (mean((x − m)²) + eps)^(-1/2),  x̂ = r (x − m),  v = r ẋ,  z = x̂ w + b

    y = f(z)                                                                                     primal
    ẏ = f′(z) ((v − mean(v) − mean(x̂ v) x̂) w + x̂ ẇ + ḃ)                                          JVP
    x̄ = r (g − mean(g) − mean(x̂ g) x̂),  z̄ = f′(z) ȳ,  g = w z̄;   w̄ = Σ x̂ z̄,  b̄ = Σ z̄             VJP

with f the identity or SiLU; `second_order` has its own equations. A program works on one group: N·G of them per K.
Where the group fits a tile it is read once; else the program loops over tiles and reads it again for each pass, mostly
from the second-level cache.

Row operands are (K, N, C, S), or (K, N, S, C) with channels last, samples contiguous (else copied); weights are (K, C);
K may be 1 against the others' K. Arithmetic is float64 if x is float64, else float32; y, ẏ, x̄ have the dtype of x, the
moments that of the arithmetic, weight gradients that of the weight. A pointer that is None is absent.
"""

from __future__ import annotations

from .forward import group_norm_forward
from .jvp import group_norm_jvp
from .second_order import Second, group_norm_second_order
from .variants import aot_variants
from .vjp import group_norm_vjp

__all__ = [
    "Second",
    "aot_variants",
    "group_norm_forward",
    "group_norm_jvp",
    "group_norm_second_order",
    "group_norm_vjp",
]
