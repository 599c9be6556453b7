"""Products with I + J: (I + J) B = B + J B, and (I + J)(I + K) = I + (J + K + J K)."""

from __future__ import annotations

from typing import Any

from .addition import addition
from .base import Structure, Values
from .dense import Dense, Identity
from .factored import IdentityPlus, Kronecker, PlusLowRank, typed
from .plain import plain, plain_values
from .product import Product, product, product_rule


@product_rule(IdentityPlus, IdentityPlus)
def _residual_residual(left: IdentityPlus, right: IdentityPlus) -> Product:
    if not (isinstance(left.inner, Dense) and isinstance(right.inner, Dense)):
        return _sums(left, right)
    inner = product(left.inner, right.inner)
    return Product(IdentityPlus(inner.result), inner.fma, lambda j, k: j + k + j @ k)


@product_rule(IdentityPlus, Structure)
def _residual_times(left: IdentityPlus, right: Structure) -> Product:
    if not isinstance(left.inner, Dense):
        return _sums(left, right)
    inner = product(left.inner, right)
    total = addition(inner.result, right)
    return Product(total.result, inner.fma, lambda j, b: total.apply(inner.apply(j, b), b))


@product_rule(Structure, IdentityPlus)
def _times_residual(left: Structure, right: IdentityPlus) -> Product:
    if not isinstance(right.inner, Dense):
        return _sums(left, right)
    inner = product(left, right.inner)
    total = addition(inner.result, left)
    return Product(total.result, inner.fma, lambda a, j: total.apply(inner.apply(a, j), a))


def _sums(left: Structure, right: Structure) -> Product:
    """The product of two structures, their I + J added up first."""
    rule = product(_summed(left), _summed(right))
    return Product(rule.result, rule.fma, lambda a, b: rule.apply(_summed_values(left, a), _summed_values(right, b)))


def _summed(structure: Structure) -> Structure:
    """I + J as a sum in structure, J not dense: the identity joins the samples or the base that J is made of."""
    match structure:
        case IdentityPlus(inner=Kronecker(left=Identity() as samples, right=inner)):
            return Kronecker(samples, IdentityPlus(inner))
        case IdentityPlus(inner=PlusLowRank(base=base, rank=rank)):
            return PlusLowRank(addition(Identity(base.n), base).result, rank)
        case IdentityPlus(inner=inner) if not isinstance(inner, Dense):
            return plain(structure)
        case _:
            return structure


def _summed_values(structure: Structure, values: Any) -> Values:
    match structure:
        case IdentityPlus(inner=Kronecker(left=Identity())):
            return values
        case IdentityPlus(inner=PlusLowRank(base=base)):
            s, u, v = values
            return typed(addition(Identity(base.n), base).apply((), s), u), u, v
        case IdentityPlus(inner=inner) if not isinstance(inner, Dense):
            return plain_values(structure, values)
        case _:
            return values
