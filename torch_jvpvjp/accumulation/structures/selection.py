"""One entry in each row (gathers), or in each column (scatters)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from .base import Structure, Values, require, require_sizes
from .counts import Counts, Listed, constant
from .index import Index, IndexLike, Integers, frozen


class _Rows:
    """What gathers share: row r holds column index[r]."""

    n: int
    index: Index

    @property
    def m(self) -> int:
        """The number of rows, that of the indices."""
        return len(self.index)

    @property
    def entries(self) -> int:
        """The number of entries that are stored: one a row, a value or an index."""
        return len(self.index)

    def row_profile(self) -> Counts:
        """One entry in each row."""
        return constant(len(self.index), 1)

    def column_profile(self) -> Counts:
        """How often each column is read."""
        return Listed(np.bincount(self.index.array, minlength=self.n))

    def row_intervals(self) -> tuple[Integers, Integers]:
        """Row r holds column index[r]."""
        return self.index.array, self.index.array + 1

    @property
    def colours(self) -> int:
        """The number of colours, 1: no two columns share a row."""
        return min(self.n, 1)

    def colouring(self) -> Integers:
        """One colour for all columns."""
        return np.zeros(self.n, np.int64)


class _Columns:
    """What scatters share: column c holds row index[c]."""

    m: int
    index: Index

    @property
    def n(self) -> int:
        """The number of columns, that of the indices."""
        return len(self.index)

    @property
    def entries(self) -> int:
        """The number of entries that are stored: one a column, a value or an index."""
        return len(self.index)

    def row_profile(self) -> Counts:
        """How many columns are summed into each row."""
        return Listed(np.bincount(self.index.array, minlength=self.m))

    def column_profile(self) -> Counts:
        """One entry in each column."""
        return constant(len(self.index), 1)

    def list_entries(self) -> tuple[Integers, Integers]:
        """The pattern as CSR: the columns sorted by their row."""
        counts = np.bincount(self.index.array, minlength=self.m)
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]), by_row(self.index).array


@lru_cache(maxsize=256)
def by_row(index: Index) -> Index:
    """The columns in the order of their rows: CSR entry t of a scatter is that of column by_row[t]."""
    return frozen(np.argsort(index.array, kind="stable"))


@lru_cache(maxsize=256)
def _by_column(index: Index) -> Index:
    return frozen(np.argsort(by_row(index).array, kind="stable"))


@dataclass(frozen=True, init=False)
class Gather(_Rows, Structure):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Row r has a single 1 at column index[r], values (): permutations, slices, expands."""

    name: ClassVar[str] = "gather"
    constant: ClassVar[bool] = True
    n: int
    index: Index

    def __init__(self, n: int, index: IndexLike) -> None:
        """Read `n` columns at `index`."""
        _take(self, "n", n, index)

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return Scatter(self.n, self.index)


@dataclass(frozen=True, init=False)
class WeightedGather(_Rows, Structure):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Row r has a single entry, at column index[r], values (m,)."""

    name: ClassVar[str] = "weighted-gather"
    listed: ClassVar[bool] = True
    n: int
    index: Index

    def __init__(self, n: int, index: IndexLike) -> None:
        """Read `n` columns at `index`, weighted."""
        _take(self, "n", n, index)

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return WeightedScatter(self.n, self.index)


@dataclass(frozen=True, init=False)
class Scatter(_Columns, Structure):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Column c has a single 1 at row index[c], values (): sums, pads, concatenations."""

    name: ClassVar[str] = "scatter"
    constant: ClassVar[bool] = True
    m: int
    index: Index

    def __init__(self, m: int, index: IndexLike) -> None:
        """Add columns into `m` rows at `index`."""
        _take(self, "m", m, index)

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return Gather(self.m, self.index)


@dataclass(frozen=True, init=False)
class WeightedScatter(_Columns, Structure):  # pyright: ignore[reportIncompatibleVariableOverride]
    """Column c has a single entry, at row index[c], values (n,) column by column."""

    name: ClassVar[str] = "weighted-scatter"
    listed: ClassVar[bool] = True
    m: int
    index: Index

    def __init__(self, m: int, index: IndexLike) -> None:
        """Add columns into `m` rows at `index`, weighted."""
        _take(self, "m", m, index)

    def csr_values(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The entries row by row."""
        return by_row(self.index).take(values, 0)

    def from_csr(self, entries: Tensor) -> Values:
        """The values, column by column, of entries row by row."""
        return _by_column(self.index).take(entries, 0)

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return WeightedGather(self.m, self.index)


def _take(structure: Any, field: str, size: int, index: IndexLike) -> None:
    """Set the fields of a frozen gather or scatter, whose indices must lie below `size`."""
    function, index = type(structure).__name__, Index(index)
    require_sizes(function, **{field: size})
    low, high = (int(index.array.min()), int(index.array.max())) if len(index) else (0, -1)
    require(function, low >= 0 and high < size, f"index must lie in 0 ≤ index < {field} = {size}", f"{low} to {high}")
    object.__setattr__(structure, field, size)
    object.__setattr__(structure, "index", index)
