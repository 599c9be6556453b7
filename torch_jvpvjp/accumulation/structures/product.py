"""The product of two structures: what it is, costs and does."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .algebra import cost, product_structure, zero_of
from .base import Structure, Values
from .dense import Dense, Identity, Zero
from .execution import apply_product
from .factored import first_tensor
from .plain import is_plain, plain, plain_values


class Block(NamedTuple):
    """A matrix held in its structure."""

    structure: Structure
    values: Values

    def dense(self, like: Tensor | None = None) -> Tensor:
        """Return the full (m, n) matrix, of the dtype and on the device of `like` if it stores no values."""
        matrix = self.structure.dense(self.values, like)
        if matrix.dtype.is_floating_point or matrix.dtype.is_complex:
            return matrix
        return matrix.to(torch.get_default_dtype()) if like is None else matrix.to(like)  # of ones alone


class Product(NamedTuple):
    """What multiplying two structures gives, costs and does."""

    result: Structure
    fma: int
    apply: Callable[[Any, Any], Values]  # (values of A, values of B) -> values of A B


_Rule = Callable[[Any, Any], Product]
_RULES: dict[tuple[type[Structure], type[Structure]], _Rule] = {}


def product_rule(left: type[Structure], right: type[Structure]) -> Callable[[_Rule], _Rule]:
    """Return a decorator for the rule by which a `left` is multiplied by a `right`: structures in, `Product` out.

    A rule for the very types goes before one for their base classes; among these, that of the class of higher
    `precedence` does, which is how a sum of low rank takes its other factor apart before a Kronecker product does.
    """

    def register(rule: _Rule) -> _Rule:
        _RULES[left, right] = rule
        product.cache_clear()
        _resolved.cache_clear()
        return rule

    return register


@lru_cache(maxsize=65536)
def product(left: Structure, right: Structure) -> Product:
    """The product A B of two structures, exact in its fma count.

    Args:
        left: Structure of A, (m, k).
        right: Structure of B, (k, n).

    Returns:
        The structure of A B, the fused multiply-adds it takes, and the function that does it.

    Raises:
        ValueError: If the inner sizes differ.
    """
    if left.n != right.m:
        raise ValueError(
            f"product: the inner sizes of ({left.m}, {left.n}) and ({right.m}, {right.n}) must be equal, "
            f"got {left.n} and {right.m}."
        )
    return _resolved(type(left), type(right))(left, right)


@lru_cache(maxsize=4096)
def _resolved(left: type[Structure], right: type[Structure]) -> _Rule:
    """The rule for two kinds."""
    if (left, right) in _RULES:
        return _RULES[left, right]
    fitting = [pair for pair in _RULES if issubclass(left, pair[0]) and issubclass(right, pair[1])]
    fitting.sort(key=lambda pair: max(kind.precedence for kind in pair), reverse=True)
    return _RULES[fitting[0]] if fitting else plain_product


def multiply(left: Block, right: Block) -> Block:
    """Return the product of two blocks, computed in its structure; mixed dtypes are promoted."""
    rule = product(left.structure, right.structure)
    a, b = same_dtype(left.values, right.values)
    return Block(rule.result, rule.apply(a, b))


def plain_product(left: Structure, right: Structure, unfolding: int = 0) -> Product:
    """The product of two structures multiplied out first, at no cost unless `unfolding` says otherwise.

    Args:
        left: Structure of A.
        right: Structure of B.
        unfolding: Multiplications that the multiplying out takes.

    Returns:
        The product.
    """
    one, two = plain(left), plain(right)
    result = product_structure(one, two)
    fma, apply = unfolding + cost(one, two), apply_product(one, two, result)
    if one is left and two is right:
        return Product(result, fma, apply)

    def values(a: Any, b: Any) -> Values:
        like = first_tensor((a, b))
        return apply(plain_values(left, a, like), plain_values(right, b, like))

    return Product(result, fma, values)


def work(left: Structure, right: Structure) -> int:
    """The multiplications of A B as a part of a factored product, where an identity is passed over."""
    return 0 if isinstance(left, Identity) or isinstance(right, Identity) else product(left, right).fma


def same_dtype(a: Values, b: Values) -> tuple[Values, Values]:
    """Nested values of two blocks, all in their common dtype; integers, made of ones alone, join the others' device."""
    tensors = [*_tensors(a), *_tensors(b)]
    if len({tensor.dtype for tensor in tensors}) < 2:
        return a, b
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    like = next(tensor for tensor in tensors if tensor.dtype != torch.int64)
    return _cast(a, dtype, like.device), _cast(b, dtype, like.device)


def _tensors(values: Values) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for part in values for tensor in _tensors(part)]


def _cast(values: Values, dtype: torch.dtype, device: torch.device) -> Values:
    if isinstance(values, Tensor):
        return values.to(device if values.dtype == torch.int64 else values.device, dtype)
    return tuple(_cast(part, dtype, device) for part in values)


@product_rule(Dense, Dense)
def _dense_dense(left: Dense, right: Dense) -> Product:
    return Product(Dense(left.m, right.n), left.m * left.n * right.n, torch.matmul)


@product_rule(Zero, Structure)
def _zero_times(left: Zero, right: Structure) -> Product:
    return Product(zero_of(left.m, right.n), 0, _nothing(left.m, right.n))


@product_rule(Structure, Zero)
def _times_zero(left: Structure, right: Zero) -> Product:
    return Product(zero_of(left.m, right.n), 0, _nothing(left.m, right.n))


def _nothing(m: int, n: int) -> Callable[[Any, Any], Values]:
    if m and n:
        return lambda a, b: ()
    return lambda a, b: Zero(m, n).dense((), first_tensor((a, b)))


@product_rule(Identity, Structure)
def _identity_times(left: Identity, right: Structure) -> Product:
    # I B = B ; counted as the entries that the pattern of I B sums, so that a bracketing's cost is that of its patterns
    return Product(right, right.nnz if is_plain(right) else right.entries, lambda a, b: b)


@product_rule(Structure, Identity)
def _times_identity(left: Structure, right: Identity) -> Product:
    return Product(left, left.nnz if is_plain(left) else left.entries, lambda a, b: a)
