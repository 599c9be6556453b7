"""The cost of every product of neighbouring blocks of patterns, from the counts of their rows and columns."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problem import Problem
from ..structure import Structure, product

_Array = np.ndarray[Any, Any]
MOST_PRICES = 2**25  # of all products of a chain
MOST_COUNTS = 2**23  # of the rows and columns of all its blocks


class Kinds:
    """The structures that the blocks of a chain have, each once: `of[j, i]` is the place in `structures` of S(j, i)."""

    def __init__(self, problem: Problem) -> None:
        q = problem.length
        self.structures: list[Structure] = []
        self.of = np.zeros((q, q), np.int64)  # factors from 0
        if problem.all_dense:  # nobody asks
            return
        places: dict[Structure, int] = {}

        def place_of(structure: Structure) -> int:
            place = places.setdefault(structure, len(places))
            if place == len(self.structures):
                self.structures.append(structure)
            return place

        own = np.array([place_of(factor.jacobian) for factor in problem.factors])
        np.fill_diagonal(self.of, own)
        joined: dict[tuple[int, int], int] = {}
        below = own  # of the blocks of s factors that start at i
        for s in range(1, q):
            # J_j · (J_j-1 … J_i), which few pairs of structures stand for in a chain whose stages recur
            pairs = np.stack([own[s:], below[:-1]], 1)
            unique, where = np.unique(pairs, axis=0, return_inverse=True)
            for left, right in map(tuple, unique.tolist()):
                if (left, right) not in joined:
                    joined[left, right] = place_of(product(self.structures[left], self.structures[right]).result)
            below = np.array([joined[left, right] for left, right in map(tuple, unique.tolist())])[where.reshape(-1)]
            self.of[np.arange(s, q), np.arange(q - s)] = below


class ProductCounts:
    """Σ_l nnz(A[:, l]) · nnz(B[l, :]) for A = S(j, k+1) and B = S(k, i), all of them, in int64.

    Where all columns of A have as many entries, or all rows of B, that is a product of two numbers; for the others,
    with one k, the sums are the entries of a matrix product: column counts of all A times row counts of all B.
    """

    def __init__(self, q: int, kinds: Kinds) -> None:
        self.columns = [structure.column_counts() for structure in kinds.structures]
        self.rows = [structure.row_counts() for structure in kinds.structures]
        self.entries = np.array([counts.sum() for counts in self.rows], np.int64)
        self.each_column, self.each_row = _common(self.columns), _common(self.rows)
        prices = [self._split_after(kinds.of[k + 1 :, k + 1], kinds.of[k, : k + 1]).reshape(-1) for k in range(q - 1)]
        self.offsets = np.cumsum([0, *(price.size for price in prices)])  # where those that are split after k begin
        self.prices = np.concatenate(prices)

    def _split_after(self, a: _Array, b: _Array) -> _Array:
        """Return the cost of each of the structures a times each of the structures b."""
        each_column, each_row = self.each_column[a], self.each_row[b]
        by_columns = each_column[:, None] * self.entries[b]
        by_rows = self.entries[a][:, None] * each_row
        prices = np.where(each_column[:, None] >= 0, by_columns, by_rows)
        uneven_a, uneven_b = np.flatnonzero(each_column < 0), np.flatnonzero(each_row < 0)
        if uneven_a.size and uneven_b.size:
            # In float64, whose products are fast; `of` saw to it that every sum is below 2^53 and so exact.
            columns = np.stack([self.columns[kind] for kind in a[uneven_a]]).astype(np.float64)
            rows = np.stack([self.rows[kind] for kind in b[uneven_b]]).astype(np.float64)
            prices[np.ix_(uneven_a, uneven_b)] = columns @ rows.T
        return prices

    @classmethod
    def of(cls, problem: Problem, kinds: Kinds) -> ProductCounts | None:
        """Return the costs of the products of a chain; None if it is dense, or too large to count it all beforehand."""
        q, width = problem.length, max(problem.dims)
        if q == 1 or problem.all_dense or not problem.associative:
            return None
        if q**3 // 6 > MOST_PRICES or len(kinds.structures) * 2 * width > MOST_COUNTS or width**3 >= 2**53:
            return None
        return cls(q, kinds)

    def fma(self, i: _Array, k: _Array, j: _Array) -> _Array:
        """Return the costs for blocks that begin at factor i, end at j and are split after k, from 0."""
        return self.prices[self.offsets[k] + (j - k - 1) * (k + 1) + i]


def _common(counts: list[_Array]) -> _Array:
    """Return the count that all rows (or columns) of a structure have, 0 if there is none, -1 if they differ."""
    alike = [-1 if row.size and row.min() < row.max() else int(row[:1].sum()) for row in counts]
    return np.array(alike, np.int64)
