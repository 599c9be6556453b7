"""The sum of two structures, kept in structure."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .algebra import sum_structure
from .base import Structure, Values
from .dense import Dense, Identity, Zero
from .factored import IdentityPlus, Kronecker, PlusLowRank, first_tensor, typed
from .plain import plain, plain_values
from .product import Block, same_dtype
from .sums import apply_sum


class Sum(NamedTuple):
    """What adding two structures gives, costs and does."""

    result: Structure
    fma: int
    apply: Callable[[Any, Any], Values]  # (values of A, values of B) -> values of A + B


@lru_cache(maxsize=65536)
def addition(left: Structure, right: Structure) -> Sum:
    """The sum A + B of two structures.

    Args:
        left: Structure of A, (m, n).
        right: Structure of B, (m, n).

    Returns:
        The structure of A + B, the additions it takes (the entries that both have), and the function that does it.

    Raises:
        ValueError: If the shapes differ.
    """
    if (left.m, left.n) != (right.m, right.n):
        raise ValueError(
            f"addition: the shapes of left and right must be equal, "
            f"got ({left.m}, {left.n}) and ({right.m}, {right.n})."
        )
    match left, right:
        case (Zero(), _):
            return Sum(right, 0, lambda a, b: b)
        case (_, Zero()):
            return Sum(left, 0, lambda a, b: a)
        case (PlusLowRank(), PlusLowRank()):
            return _low_ranks(left, right)
        case (PlusLowRank(), _):
            return _low_rank_plus(left, right)
        case (_, PlusLowRank()):
            return _swapped(_low_rank_plus(right, left))
        case (Identity(), Dense()):
            return Sum(IdentityPlus(right), 0, lambda a, b: b)
        case (Dense(), Identity()):
            return Sum(IdentityPlus(left), 0, lambda a, b: a)
        case (Identity(), Kronecker(left=Identity())):
            return _sample_by_sample(_split(left, right.left.n), right)
        case (Kronecker(left=Identity()), Identity()):
            return _sample_by_sample(left, _split(right, left.left.n))
        case (Kronecker(left=Identity()), Kronecker(left=Identity())) if left.left == right.left:
            return _sample_by_sample(left, right)
        case _:
            return _plain_sum(left, right)


def add(left: Block, right: Block) -> Block:
    """Return the sum of two blocks, computed in its structure; mixed dtypes are promoted."""
    rule = addition(left.structure, right.structure)
    a, b = same_dtype(left.values, right.values)
    return Block(rule.result, rule.apply(a, b))


def _swapped(rule: Sum) -> Sum:
    return Sum(rule.result, rule.fma, lambda a, b: rule.apply(b, a))


def _plain_sum(left: Structure, right: Structure) -> Sum:
    one, two = plain(left), plain(right)
    result = sum_structure(one, two)

    def values(a: Any, b: Any) -> Values:
        like = first_tensor((a, b))
        return apply_sum(one, two, result, like)(plain_values(left, a, like), plain_values(right, b, like))

    return Sum(result, one.nnz + two.nnz - result.nnz, values)


def _low_ranks(left: PlusLowRank, right: PlusLowRank) -> Sum:
    # (S + U V) + (T + W X) = (S + T) + [U W] [V; X]
    base, rank = addition(left.base, right.base), left.rank + right.rank

    def values(a: Any, b: Any) -> Values:
        (s, u, v), (t, w, x) = a, b
        return typed(base.apply(s, t), u), torch.cat([u, w], 1), torch.cat([v, x], 0)

    if isinstance(base.result, Dense):
        return _folded(base.result, rank, base.fma, values)
    return Sum(PlusLowRank(base.result, rank), base.fma, values)


def _low_rank_plus(left: PlusLowRank, right: Structure) -> Sum:
    # (S + U V) + T = (S + T) + U V
    base = addition(left.base, right)

    def values(a: Any, b: Any) -> Values:
        s, u, v = a
        return typed(base.apply(s, b), u), u, v

    if isinstance(base.result, Dense):
        return _folded(base.result, left.rank, base.fma, values)
    return Sum(PlusLowRank(base.result, left.rank), base.fma, values)


def _folded(base: Dense, rank: int, fma: int, parts: Callable[[Any, Any], Any]) -> Sum:
    def values(a: Any, b: Any) -> Values:
        s, u, v = parts(a, b)
        return torch.addmm(s, u, v)

    return Sum(base, fma + base.m * rank * base.n, values)


def _split(identity: Identity, b: int) -> Kronecker:
    """I_n as I_b ⊗ I_{n/b}."""
    return Kronecker(Identity(b), Identity(identity.n // max(b, 1)))


def _sample_by_sample(left: Kronecker, right: Kronecker) -> Sum:
    # I ⊗ A + I ⊗ B = I ⊗ (A + B), an identity having no values
    inner = addition(left.right, right.right)

    def values(a: Any, b: Any) -> Values:
        return (), typed(inner.apply(a[1] if a else (), b[1] if b else ()), first_tensor((a, b)))

    return Sum(Kronecker(left.left, inner.result), inner.fma, values)
