"""Products with S + U V, which keep the low rank apart.

(S + U V)(T + W X) = S T + (S W + U (V W)) X + U (V T), of rank r + r'; less if S or T is zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .base import Structure, Values
from .dense import Dense, Zero
from .factored import PlusLowRank, first_tensor, typed
from .product import Product, product, product_rule, work

_Parts = Callable[[Any, Any], tuple[Values, Tensor, Tensor]]


@product_rule(PlusLowRank, PlusLowRank)
def _low_rank_low_rank(left: PlusLowRank, right: PlusLowRank) -> Product:
    s, t, r, q = left.base, right.base, left.rank, right.rank
    if isinstance(s, Zero) and isinstance(t, Zero):
        return _both_low(left, right)
    base = product(s, t)
    fma = work(s, t) + work(s, Dense(s.n, q)) + r * left.n * q + work(Dense(r, t.m), t)
    fma += r * q * right.n if isinstance(s, Zero) else left.m * r * q

    def parts(a: Any, b: Any) -> tuple[Values, Tensor, Tensor]:
        (sv, u, v), (tv, w, x) = a, b
        if isinstance(s, Zero):  # U [V T + (V W) X]
            return (), u, _full(Dense(r, t.m), t, v, tv) + (v @ w) @ x
        pushed = _full(s, Dense(s.n, q), sv, w) + u @ (v @ w)
        if isinstance(t, Zero):  # [S W + U (V W)] X
            return (), pushed, x
        pulled = _full(Dense(r, t.m), t, v, tv)
        return typed(base.apply(sv, tv), u), torch.cat([pushed, u], 1), torch.cat([x, pulled], 0)

    rank = r if isinstance(s, Zero) else q if isinstance(t, Zero) else r + q
    return _plus(base.result, rank, fma, parts)


def _both_low(left: PlusLowRank, right: PlusLowRank) -> Product:
    # (U V)(W X) = U [(V W) X] = [U (V W)] X : the inner matrix goes to the side that leaves the smaller rank
    r, q = left.rank, right.rank
    into_right = (r, r * q * right.n) <= (q, left.m * r * q)

    def parts(a: Any, b: Any) -> tuple[Values, Tensor, Tensor]:
        (_, u, v), (_, w, x) = a, b
        inner = v @ w
        return ((), u, inner @ x) if into_right else ((), u @ inner, x)

    fma = r * left.n * q + (r * q * right.n if into_right else left.m * r * q)
    return _plus(Zero(left.m, right.n), min(r, q), fma, parts)


@product_rule(PlusLowRank, Structure)
def _low_rank_times(left: PlusLowRank, right: Structure) -> Product:
    # (S + U V) B = S B + U (V B)
    s, across = left.base, Dense(left.rank, left.n)
    base = product(s, right)

    def parts(a: Any, b: Any) -> tuple[Values, Tensor, Tensor]:
        sv, u, v = a
        return typed(base.apply(sv, b), u), u, _full(across, right, v, b)

    return _plus(base.result, left.rank, work(s, right) + work(across, right), parts)


@product_rule(Structure, PlusLowRank)
def _times_low_rank(left: Structure, right: PlusLowRank) -> Product:
    # A (S + U V) = A S + (A U) V
    s, across = right.base, Dense(right.m, right.rank)
    base = product(left, s)

    def parts(a: Any, b: Any) -> tuple[Values, Tensor, Tensor]:
        sv, u, v = b
        return typed(base.apply(a, sv), v), _full(left, across, a, u), v

    return _plus(base.result, right.rank, work(left, s) + work(left, across), parts)


def _plus(base: Structure, rank: int, fma: int, parts: _Parts) -> Product:
    """S + U V in structure; folded into S where that is dense."""
    if not isinstance(base, Dense):
        return Product(PlusLowRank(base, rank), fma, parts)

    def folded(a: Any, b: Any) -> Values:
        s, u, v = parts(a, b)
        return torch.addmm(s, u, v) if isinstance(s, Tensor) else u @ v  # without rows or columns there is no S

    return Product(base, fma + base.m * rank * base.n, folded)


def _full(left: Structure, right: Structure, a: Any, b: Any) -> Tensor:
    """A B as a full matrix."""
    rule = product(left, right)
    return rule.result.dense(rule.apply(a, b), first_tensor((a, b)))
