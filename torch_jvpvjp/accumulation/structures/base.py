"""What every structure knows of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, TypeAlias, Union

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from . import colouring
from .counts import Counts, constant
from .index import Index, Integers, frozen

Values: TypeAlias = Union[Tensor, "tuple[Values, ...]"]

LISTABLE = 2**27
"""The most entries of which a list is made; a pattern with more is refused, never rounded."""


class Structure(ABC):
    """The shape (m, n) of a matrix and the pattern of its entries.

    A kind that is `listed` stores the entries of its pattern as they stand, row by row (CSR order); a `constant` kind
    stores none, its entries being ones; any other kind is factored, and `plain` in `plain.py` multiplies it out.
    """

    name: ClassVar[str]
    kind: ClassVar[str]  # in files; the name unless the class says otherwise
    listed: ClassVar[bool] = False
    constant: ClassVar[bool] = False
    precedence: ClassVar[int] = 0  # whose rule is asked first where those of both sides would do
    m: int
    n: int

    KINDS: ClassVar[dict[str, type[Structure]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in cls.__dict__:
            cls.kind = cls.__dict__.get("kind", cls.name)
            Structure.KINDS[cls.kind] = Structure.KINDS[cls.name] = cls

    @property
    @abstractmethod
    def entries(self) -> int:
        """The number of entries that are stored."""

    # ---- the pattern ----

    def row_profile(self) -> Counts:
        """The number of entries of each row; of a full matrix where the kind does not say."""
        return constant(self.m, self.n)

    def column_profile(self) -> Counts:
        """The number of entries of each column."""
        return constant(self.n, self.m)

    def row_intervals(self) -> tuple[Integers, Integers]:
        """The columns [first, last) that row r holds, of a kind whose rows hold neighbouring columns."""
        return np.zeros(self.m, np.int64), np.full(self.m, self.n, np.int64)

    def list_entries(self) -> tuple[Integers, Integers]:
        """The pattern as (indptr, indices) of CSR, indices ascending; `csr` is the guarded way to it."""
        first, last = self.row_intervals()
        counts = np.maximum(last - first, 0)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return indptr, np.arange(indptr[-1]) - np.repeat(indptr[:-1] - first, counts)

    @property
    def nnz(self) -> int:
        """The number of entries that can differ from zero."""
        return self.row_profile().total

    def row_counts(self) -> Integers:
        """The number of entries of each row, int64 of shape (m,)."""
        return self.row_profile().array()

    def column_counts(self) -> Integers:
        """The number of entries of each column, int64 of shape (n,)."""
        return self.column_profile().array()

    def pattern(self) -> sparse.csr_array:
        """The pattern as a boolean SciPy array, (m, n)."""
        indptr, indices = csr(self)
        return sparse.csr_array((np.ones(indices.size, bool), indices, indptr), shape=(self.m, self.n))

    # ---- the values ----

    def value_shape(self) -> tuple[int, ...]:
        """The shape of the values of a listed kind."""
        return (self.nnz,)

    def csr_values(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The entries row by row, (nnz,).

        Args:
            values: Values of this structure.
            like: Tensor whose dtype and device the entries of a constant kind take; integers if None.

        Returns:
            The entries in CSR order.
        """
        if self.constant:
            return ones(self.nnz, like)
        if self.listed:
            return values.reshape(-1)
        entries = self.dense(values, like).reshape(-1)  # of a factored kind, which may have zeros: I ⊗ W has
        return entries if self.nnz == self.m * self.n else entries[entry_positions(self).tensor(entries.device)]

    def from_csr(self, entries: Tensor) -> Values:
        """The values of a listed or constant kind whose entries, row by row, are `entries`."""
        return () if self.constant else entries.reshape(self.value_shape())

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The (m, n) matrix whose stored entries are `values`.

        Args:
            values: Values of this structure.
            like: Tensor whose dtype and device a kind without values takes; torch's defaults if None.

        Returns:
            The matrix.

        Raises:
            NotImplementedError: If the kind is factored and does not say how.
        """
        if not (self.listed or self.constant):
            raise NotImplementedError(f"{type(self).__name__}: a structure must define dense(values, like=None).")
        if self.constant and like is None:
            like = torch.empty(0)
        entries = self.csr_values(values, like)
        positions = entry_positions(self).tensor(entries.device)
        return entries.new_zeros(self.m * self.n).index_add(0, positions, entries).reshape(self.m, self.n)

    def gather_values(self, dense: Tensor) -> Values:
        """Read the values out of a dense matrix.

        Args:
            dense: Matrix (m, n) with no entries outside the pattern (they would be dropped).

        Returns:
            The values.

        Raises:
            ValueError: If the shape is another, or the kind is factored, so that a matrix does not say its values.
        """
        if not (self.listed or self.constant):
            raise ValueError(
                f"gather_values: the {self.name} structure must not be factored to be read out of a matrix, "
                f"got {self}; read the values of its plain form instead."
            )
        self._check_shape("gather_values", "dense", dense, self.n)
        if self.constant:
            return ()
        return self.from_csr(entry_positions(self).take(dense.reshape(-1), 0))

    # ---- the colouring ----

    @property
    def colours(self) -> int:
        """The number of colours of `colouring`: so many tangents give every entry."""
        return _coloured(self)[1]

    def colouring(self) -> Integers:
        """A colour for every column, (n,): columns of one colour share no row.

        The number of colours is the least possible for the tagged kinds, and for a general pattern what a greedy
        colouring finds, which is an upper bound of the least.

        Returns:
            Colours from 0, int64.
        """
        return _coloured(self)[0]

    def decompress(self, compressed: Tensor) -> Values:
        """Read the values out of the sums of the columns of each colour.

        Args:
            compressed: (m, colours), J times the tangents: column q is the sum of the columns of colour q.

        Returns:
            The values.

        Raises:
            ValueError: If the shape is another, or the kind is factored, so that columns do not say its values.
        """
        if not (self.listed or self.constant):
            raise ValueError(
                f"decompress: the {self.name} structure must not be factored to be decompressed, got {self}; "
                "decompress its plain form instead."
            )
        self._check_shape("decompress", "compressed", compressed, self.colours)
        if self.constant:
            return ()
        positions = _compressed_positions(self).tensor(compressed.device)
        return self.from_csr(compressed.reshape(-1).index_select(0, positions))

    def _check_shape(self, function: str, argument: str, matrix: Tensor, columns: int) -> None:
        if tuple(matrix.shape) != (self.m, columns):
            raise ValueError(
                f"{function}: {argument} must have shape ({self.m}, {columns}) for {self}, got {tuple(matrix.shape)}."
            )

    # ---- the transpose ----

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return Transposed(self)

    def transpose_values(self, values: Any) -> Values:
        """The values of the transpose."""
        return values

    # ---- files ----

    def to_data(self) -> dict[str, Any]:
        """The structure as a dictionary for JSON: its kind, m, n and what else it is made of."""
        data: dict[str, Any] = {"kind": self.kind, "m": self.m, "n": self.n}
        for field in fields(self):  # pyright: ignore[reportArgumentType] - every structure is a dataclass
            value = getattr(self, field.name)
            if isinstance(value, Structure):
                value = value.to_data()
            data["idx" if field.name == "index" else field.name] = (
                value.array.tolist() if isinstance(value, Index) else value
            )
        return data


@dataclass(frozen=True)
class Transposed(Structure):
    """The transpose of a structure that has no kind of its own for it; values are those of `inner`."""

    name: ClassVar[str] = "transposed"
    precedence: ClassVar[int] = 3
    inner: Structure

    @property
    def m(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of rows."""
        return self.inner.n

    @property
    def n(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of columns."""
        return self.inner.m

    @property
    def entries(self) -> int:
        """The number of entries that `inner` stores."""
        return self.inner.entries

    def row_profile(self) -> Counts:
        """The column counts of `inner`."""
        return self.inner.column_profile()

    def column_profile(self) -> Counts:
        """The row counts of `inner`."""
        return self.inner.row_profile()

    def list_entries(self) -> tuple[Integers, Integers]:
        """The pattern of `inner`, column by column."""
        flipped = self.inner.pattern().T.tocsr()
        flipped.sort_indices()
        return flipped.indptr.astype(np.int64), flipped.indices.astype(np.int64)

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The transpose of the matrix of `inner`."""
        return self.inner.dense(values, like).mT

    def transposed(self) -> Structure:
        """The structure that was transposed."""
        return self.inner


def ones(count: int, like: Tensor | None) -> Tensor:
    """`count` ones in the dtype and on the device of `like`; integers, which take any dtype they meet, without one."""
    return (
        torch.ones(count, dtype=torch.int64)
        if like is None
        else torch.ones(count, dtype=like.dtype, device=like.device)
    )


@lru_cache(maxsize=512)
def csr(structure: Structure) -> tuple[Integers, Integers]:
    """The pattern of a structure as (indptr, indices) of CSR, listed once.

    Args:
        structure: Any structure.

    Returns:
        indptr (m + 1,) and indices (nnz,), ascending in each row.

    Raises:
        ValueError: If there are too many entries to list.
    """
    if max(structure.nnz, structure.m, structure.n) > LISTABLE:
        raise ValueError(
            f"structure: the pattern of {structure} must have at most {LISTABLE} rows, columns and entries to be "
            f"listed, got ({structure.m}, {structure.n}) with {structure.nnz}; use a structure whose products need no "
            "list (dense, diagonal, block-diagonal)."
        )
    return structure.list_entries()


@lru_cache(maxsize=256)
def coordinates(structure: Structure) -> tuple[Index, Index]:
    """The (row, column) of every entry in CSR order."""
    indptr, indices = csr(structure)
    return frozen(np.repeat(np.arange(structure.m), np.diff(indptr))), frozen(indices)


@lru_cache(maxsize=256)
def entry_positions(structure: Structure) -> Index:
    """The position row · n + column of every entry in the flattened matrix."""
    rows, columns = coordinates(structure)
    return frozen(rows.array * structure.n + columns.array)


@lru_cache(maxsize=512)
def _coloured(structure: Structure) -> tuple[Integers, int]:
    indptr, indices = csr(structure)
    return colouring.columns(indptr, indices, structure.n)


@lru_cache(maxsize=256)
def _compressed_positions(structure: Structure) -> Index:
    rows, columns = coordinates(structure)
    return frozen(rows.array * structure.colours + structure.colouring()[columns.array])


def require(function: str, condition: bool, required: str, came: str) -> None:
    """Refuse arguments that make no structure.

    Args:
        function: Who speaks.
        condition: What must hold.
        required: The condition in words.
        came: What came instead.

    Raises:
        ValueError: If the condition does not hold.
    """
    if not condition:
        raise ValueError(f"{function}: {required}, got {came}.")


def require_sizes(function: str, **sizes: int) -> None:
    """Refuse sizes that are not integers from 0.

    Args:
        function: Who speaks.
        **sizes: The sizes by their names.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is negative.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool):
            raise TypeError(f"{function}: {name} must be an int, got {type(size).__name__}.")
        require(function, size >= 0, f"{name} must be at least 0", str(size))
