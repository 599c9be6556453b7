"""How the sum of two plain structures is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from .base import Structure, Values, entry_positions, ones
from .dense import Dense, Identity, ScaledIdentity, Zero, has_columns_in_front
from .factored import first_tensor
from .index import Index, frozen


def apply_sum(
    left: Structure, right: Structure, result: Structure, like: Tensor | None = None
) -> Callable[[Any, Any], Values]:
    """The function from the values of A and B to those of A + B.

    Args:
        left: Plain structure of A.
        right: Plain structure of B.
        result: Structure of A + B.
        like: Tensor whose dtype and device ones take that meet no values.

    Returns:
        The function.
    """
    if isinstance(left, Zero):
        return lambda a, b: b
    if isinstance(right, Zero):
        return lambda a, b: a
    if isinstance(result, ScaledIdentity):
        return lambda a, b: _scalar(left, a, first_tensor(b, like)) + _scalar(right, b, first_tensor(a, like))
    if isinstance(result, Dense):
        return lambda a, b: _full_sum(left.dense(a, first_tensor(b, like)), right.dense(b, first_tensor(a, like)))
    if left == right == result:
        return lambda a, b: a + b

    def entrywise(a: Any, b: Any) -> Values:
        neighbour = first_tensor((a, b), like)
        first, second = left.csr_values(a, neighbour), right.csr_values(b, neighbour)
        total = first.new_zeros(result.nnz)
        for structure, entries in ((left, first), (right, second)):
            total = total.index_add(0, _places(structure, result).tensor(total.device), entries)
        return result.from_csr(total)

    return entrywise


def _full_sum(a: Tensor, b: Tensor) -> Tensor:
    # A sum lies in memory as its first term does. Vectors that went through an op have their columns in front, and so
    # have those that follow: the other term is brought into that order, once.
    return b + a if has_columns_in_front(b) else a + b


def _scalar(structure: Structure, value: Any, like: Tensor | None) -> Tensor:
    return ones(1, like)[0] if isinstance(structure, Identity) else value


@lru_cache(maxsize=256)
def _places(part: Structure, whole: Structure) -> Index:
    """The place in CSR order of `whole` of every entry of `part`, whose pattern lies inside."""
    return frozen(np.searchsorted(entry_positions(whole).array, entry_positions(part).array))
