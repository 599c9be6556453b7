"""A general sparsity pattern."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from scipy import sparse

from .bands import transpose_order
from .base import Structure, Values, require_sizes
from .counts import Counts, Listed
from .index import Index, IndexLike, Integers, frozen


@dataclass(frozen=True, init=False)
class Pattern(Structure):
    """The entries that a CSR pattern lists, values (nnz,) in its order."""

    name: ClassVar[str] = "pattern"
    listed: ClassVar[bool] = True
    m: int
    n: int
    indptr: Index
    indices: Index

    def __init__(self, m: int, n: int, indptr: IndexLike, indices: IndexLike) -> None:
        """Take a pattern in CSR form; `Pattern.of` takes a matrix.

        Args:
            m: Rows.
            n: Columns.
            indptr: Row r holds indices[indptr[r] : indptr[r + 1]]; m + 1 integers.
            indices: Columns, ascending in each row.

        Raises:
            ValueError: If that is no pattern of CSR with ascending columns.
        """
        indptr, indices = Index(indptr), Index(indices)
        require_sizes("Pattern", m=m, n=n)
        pointers, columns = indptr.array, indices.array
        ends = (int(pointers[0]), int(pointers[-1])) if pointers.size == m + 1 else None
        if ends != (0, columns.size) or (np.diff(pointers) < 0).any():
            raise ValueError(
                f"Pattern: indptr must be m + 1 = {m + 1} ascending integers from 0 to {columns.size}, the number of "
                f"indices, got {indptr}; Pattern.of(matrix) makes them."
            )
        if columns.size and (columns.min() < 0 or columns.max() >= n):
            raise ValueError(
                f"Pattern: indices must lie in 0 ≤ index < n = {n}, got {columns.min()} to {columns.max()}."
            )
        rows = np.repeat(np.arange(m), np.diff(pointers))
        if (np.diff(rows * max(n, 1) + columns) <= 0).any():
            raise ValueError("Pattern: indices must ascend in each row, got others; Pattern.of(matrix) sorts them.")
        self._keep(m, n, indptr, indices)

    def _keep(self, m: int, n: int, indptr: Index, indices: Index) -> None:
        for field, value in (("m", m), ("n", n), ("indptr", indptr), ("indices", indices)):
            object.__setattr__(self, field, value)

    @staticmethod
    def in_order(m: int, n: int, indptr: Index, indices: Index) -> Pattern:
        """The pattern of arrays that are known to be CSR with ascending columns, as SciPy's are; nothing is checked.

        Args:
            m: Rows.
            n: Columns.
            indptr: m + 1 row pointers.
            indices: Columns, ascending in each row.

        Returns:
            The pattern.
        """
        made = object.__new__(Pattern)
        made._keep(m, n, indptr, indices)
        return made

    @staticmethod
    def of(matrix: Any) -> Pattern:
        """The pattern of the entries of a matrix that are not zero.

        Args:
            matrix: SciPy sparse array, or anything NumPy makes a matrix of.

        Returns:
            The pattern.
        """
        array = sparse.csr_array(matrix if sparse.issparse(matrix) else np.asarray(matrix) != 0)
        array.sum_duplicates()
        array.eliminate_zeros()
        array.sort_indices()
        shape: Any = array.shape
        m, n = shape
        return Pattern.in_order(int(m), int(n), frozen(array.indptr), frozen(array.indices))

    def __hash__(self) -> int:
        return hash((self.m, self.n, self.indptr, self.indices))

    def __repr__(self) -> str:
        return f"Pattern({self.m}, {self.n}, nnz={len(self.indices)})"

    @property
    def entries(self) -> int:
        """The number of entries that are stored, nnz."""
        return len(self.indices)

    def row_profile(self) -> Counts:
        """The entries of each row."""
        return _row_profile(self)

    def column_profile(self) -> Counts:
        """The entries of each column."""
        return _column_profile(self)

    def list_entries(self) -> tuple[Integers, Integers]:
        """The pattern itself."""
        return self.indptr.array, self.indices.array

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return Pattern.of(self.pattern().T)

    def transpose_values(self, values: Any) -> Values:
        """The values column by column."""
        return transpose_order(self).take(values, 0)


@lru_cache(maxsize=4096)
def _row_profile(pattern: Pattern) -> Listed:
    return Listed(np.diff(pattern.indptr.array))


@lru_cache(maxsize=4096)
def _column_profile(pattern: Pattern) -> Listed:
    return Listed(np.bincount(pattern.indices.array, minlength=pattern.n))
