"""Rotary position embedding: one Triton kernel body, and a launcher, for every point of its derivative tower.

A head of d elements has c pairs (x₁, x₂), read as complex numbers x = x₁ + i x₂, and d − 2c elements behind them that
do not turn. With e = cos + i sin of the row's token:

    first  = a e                    y, a pullback (with ē for e), ...
    second = b e + a ė              ẏ (b = ẋ), the tangent of a pullback, ...

and, the same with the conjugates of e and ė, pulled back to the angles, summed over heads:

    e_first  = Σ x̄ a
    e_second = Σ (ẋ̄ a + x̄ b)

Rope is bilinear in (x, e), so all derivatives of every order are these four sums on other operands. The second half of
a pair stands c elements behind the first (half), or next to it (interleaved).

Row operands are (groups G, batches B, heads, tokens, d), any strides with adjacent d; angles (G, B, tokens or rows of a
table, c); positions (G, B, tokens), rows of the table. G and B may be 1 against the others'. Arithmetic is float64 for
float64 row operands, else float32.
"""

from __future__ import annotations

from .launcher import Angles, Heads, Turned, rope_turn
from .variants import aot_variants

__all__ = ["Angles", "Heads", "Turned", "aot_variants", "rope_turn"]
