"""The structure of a Jacobian: which of its entries can differ from zero, and what that makes a product cost.

A `Structure` knows sizes only, so that planning never touches a tensor; a `Block` is a structure with the tensor of its
stored entries. To add a structure, write one class and one `@product_rule` for each neighbour it multiplies cheaply:
any pair without a rule is multiplied as two dense matrices, which is right, if dear.

Laws: `product` is associative in its result (the structure of a block does not depend on the bracketing), and
`multiply(a, b).dense() == a.dense() @ b.dense()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor


class Structure(ABC):
    """The shape (m, n) of a matrix and the pattern of its entries."""

    name: ClassVar[str]
    m: int
    n: int

    @property
    @abstractmethod
    def entries(self) -> int:
        """The number of entries that are stored."""

    @abstractmethod
    def dense(self, values: Tensor) -> Tensor:
        """The (m, n) matrix whose stored entries are `values`."""


@dataclass(frozen=True)
class Dense(Structure):
    """No structure: every entry is stored, values of shape (m, n)."""

    name: ClassVar[str] = "dense"
    m: int
    n: int

    @property
    def entries(self) -> int:
        """The number of entries that are stored, m · n."""
        return self.m * self.n

    def dense(self, values: Tensor) -> Tensor:
        """Return the matrix itself."""
        return values


@dataclass(frozen=True)
class Diagonal(Structure):
    """A square diagonal matrix, diag(d), values d of shape (n,)."""

    name: ClassVar[str] = "diagonal"
    n: int

    @property
    def m(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of rows, which is n."""
        return self.n

    @property
    def entries(self) -> int:
        """The number of entries that are stored, n."""
        return self.n

    def dense(self, values: Tensor) -> Tensor:
        """Return the matrix diag(d)."""
        return torch.diag_embed(values)


class Block(NamedTuple):
    """A matrix held in its structure."""

    structure: Structure
    values: Tensor

    def dense(self) -> Tensor:
        """Return the full (m, n) matrix."""
        return self.structure.dense(self.values)


class Product(NamedTuple):
    """What multiplying two structures gives, costs and does."""

    result: Structure
    fma: int
    apply: Callable[[Tensor, Tensor], Tensor]  # (values of A, values of B) -> values of A B


_Rule = Callable[[Any, Any], Product]
_RULES: dict[tuple[type[Structure], type[Structure]], _Rule] = {}


def product_rule(left: type[Structure], right: type[Structure]) -> Callable[[_Rule], _Rule]:
    """Return a decorator for the rule by which a `left` is multiplied by a `right`: structures in, `Product` out."""

    def register(rule: _Rule) -> _Rule:
        _RULES[left, right] = rule
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
    rule = _RULES.get((type(left), type(right)))
    if rule is not None:
        return rule(left, right)
    return Product(
        Dense(left.m, right.n),
        left.m * left.n * right.n,
        lambda a, b: left.dense(a) @ right.dense(b),
    )


def multiply(left: Block, right: Block) -> Block:
    """Return the product of two blocks, computed in its structure; mixed dtypes are promoted."""
    rule = product(left.structure, right.structure)
    a, b = left.values, right.values
    if a.dtype != b.dtype:
        dtype = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
    return Block(rule.result, rule.apply(a, b))


@product_rule(Dense, Dense)
def _dense_dense(left: Dense, right: Dense) -> Product:
    return Product(Dense(left.m, right.n), left.m * left.n * right.n, torch.matmul)


@product_rule(Diagonal, Dense)
def _diagonal_dense(left: Diagonal, right: Dense) -> Product:
    # (diag(d) B)_rc = d_r B_rc : the rows of B are scaled
    return Product(right, right.entries, lambda d, b: d[:, None] * b)


@product_rule(Dense, Diagonal)
def _dense_diagonal(left: Dense, right: Diagonal) -> Product:
    # (A diag(d))_rc = A_rc d_c : the columns of A are scaled
    return Product(left, left.entries, torch.mul)


@product_rule(Diagonal, Diagonal)
def _diagonal_diagonal(left: Diagonal, right: Diagonal) -> Product:
    return Product(right, right.entries, torch.mul)
