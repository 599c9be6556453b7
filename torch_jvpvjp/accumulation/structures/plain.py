"""What a factored structure multiplies out to: a plain structure, and its values."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .algebra import sum_structure, zero_of
from .bands import transpose_order
from .base import Structure, Transposed, Values, csr
from .blocks import Stacked
from .canonical import block_count, blocks_of, recognised, valued
from .dense import Dense, Diagonal, Identity, ScaledIdentity, Zero
from .factored import IdentityPlus, Kronecker, RowKronecker, first_tensor, listed_kronecker, promoted
from .index import Index, frozen
from .sums import apply_sum


def is_plain(structure: Structure) -> bool:
    """Whether the entries are stored as they stand, or are ones."""
    return structure.listed or structure.constant


@lru_cache(maxsize=4096)
def plain(structure: Structure) -> Structure:
    """The plain structure with the pattern of a given one.

    Args:
        structure: Any structure.

    Returns:
        A plain one as it is, a factored one multiplied out; `Dense` for a kind that is not of this package.
    """
    if is_plain(structure):
        return structure
    match structure:
        case Kronecker():
            return _plain_kronecker(structure)
        case IdentityPlus():
            return sum_structure(Identity(structure.n), plain(structure.inner))
        case RowKronecker():
            return valued(Stacked(structure.b, structure.o, structure.k))
        case Transposed():
            return recognised(structure.m, structure.n, *csr(structure))
        case _:
            return Dense(structure.m, structure.n)


def plain_values(structure: Structure, values: Any, like: Tensor | None = None) -> Values:
    """The values of `plain(structure)`.

    Args:
        structure: Any structure.
        values: Its values.
        like: Tensor whose dtype and device entries take that are not stored.

    Returns:
        The values multiplied out.
    """
    if is_plain(structure):
        return values
    target = plain(structure)
    if isinstance(target, Dense):
        return structure.dense(values, like)
    match structure:
        case Kronecker():
            return _kronecker_values(structure, values, target, first_tensor(values, like))
        case IdentityPlus():
            inner = plain(structure.inner)
            entries = plain_values(structure.inner, values, like)
            return apply_sum(Identity(structure.n), inner, target, like)((), entries)
        case RowKronecker():
            return target.from_csr(values[:, None, :].expand(-1, structure.o, -1).reshape(-1))
        case Transposed():
            inner = plain(structure.inner)
            entries = inner.csr_values(plain_values(structure.inner, values, like), like)
            return target.from_csr(transpose_order(inner).take(entries, 0))
        case _:
            return structure.dense(values, like)


def _plain_kronecker(structure: Kronecker) -> Structure:
    left, right = plain(structure.left), plain(structure.right)
    m, n = structure.m, structure.n
    if isinstance(left, Zero) or isinstance(right, Zero):
        return zero_of(m, n)
    blocks = block_count(right)
    if blocks is not None and isinstance(left, Identity | Diagonal | ScaledIdentity):
        return blocks_of(left.n * blocks, m, n)
    if m == 0 or n == 0 or (isinstance(left, Dense) and isinstance(right, Dense)):
        return Dense(m, n)
    indptr, indices, _, _ = listed_kronecker(left, right)
    return recognised(m, n, indptr, indices)


def _kronecker_values(structure: Kronecker, values: Any, target: Structure, like: Tensor | None) -> Values:
    left, right = plain(structure.left), plain(structure.right)
    a, b = plain_values(structure.left, values[0], like), plain_values(structure.right, values[1], like)
    if target.constant:
        return ()
    if block_count(right) is not None and isinstance(left, Identity):
        # the blocks of B again and again, without a copy where B is one block
        entries = right.csr_values(b, like)
        return entries.expand(left.n, -1).reshape(target.value_shape())
    first, second = promoted(left.csr_values(a, like), right.csr_values(b, like))
    if isinstance(left, Diagonal | ScaledIdentity) and block_count(right) is not None:
        return torch.outer(first, second).reshape(target.value_shape())
    one, two = _kronecker_positions(left, right)
    return target.from_csr(one.take(first, 0) * two.take(second, 0))


@lru_cache(maxsize=64)
def _kronecker_positions(left: Structure, right: Structure) -> tuple[Index, Index]:
    _, _, one, two = listed_kronecker(left, right)
    return frozen(one), frozen(two)
