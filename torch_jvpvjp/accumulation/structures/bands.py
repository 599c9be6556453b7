"""Bands and triangles; values are the entries row by row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np

from .base import Structure, Values, coordinates, require, require_sizes
from .counts import Counts, band_rows
from .index import Index, Integers, frozen


class _Band:
    """What a band −kl ≤ c − r ≤ ku knows of itself."""

    m: int
    n: int

    def band(self) -> tuple[int, int]:
        """The (kl, ku)."""
        raise NotImplementedError

    @property
    def entries(self) -> int:
        """The number of entries that are stored, those of the band."""
        return self.row_profile().total

    def row_profile(self) -> Counts:
        """The entries of each row."""
        return band_rows(self.m, self.n, *self.band())

    def column_profile(self) -> Counts:
        """The entries of each column: the rows of the transposed band."""
        kl, ku = self.band()
        return band_rows(self.n, self.m, ku, kl)

    def row_intervals(self) -> tuple[Integers, Integers]:
        """Row r holds the columns from r − kl to r + ku."""
        kl, ku = (min(width, self.m + self.n) for width in self.band())
        rows = np.arange(self.m)
        return np.maximum(rows - kl, 0), np.minimum(rows + ku + 1, self.n)

    @property
    def colours(self) -> int:
        """The number of colours, that of the diagonals: one period of the band."""
        kl, ku = self.band()
        return min(kl + ku + 1, self.n)

    def colouring(self) -> Integers:
        """A colour for every column: they repeat with the width of the band."""
        return np.arange(self.n) % max(self.colours, 1)

    def transpose_values(self, values: Any) -> Values:
        """The values of the transpose."""
        structure: Any = self
        return transpose_order(structure).take(values, 0)


@lru_cache(maxsize=256)
def transpose_order(structure: Structure) -> Index:
    """The CSR positions of the entries of a structure, column by column: the order of its transpose's entries."""
    rows, columns = coordinates(structure)
    return frozen(np.lexsort((rows.array, columns.array)))


@dataclass(frozen=True)
class Banded(_Band, Structure):
    """The entries (r, c) with −kl ≤ c − r ≤ ku, values (nnz,) row by row."""

    name: ClassVar[str] = "banded"
    listed: ClassVar[bool] = True
    m: int
    n: int
    kl: int
    ku: int

    def __post_init__(self) -> None:
        require_sizes("Banded", m=self.m, n=self.n, kl=self.kl, ku=self.ku)

    def band(self) -> tuple[int, int]:
        """The (kl, ku), no wider than the matrix."""
        return min(self.kl, max(self.m - 1, 0)), min(self.ku, max(self.n - 1, 0))

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return Banded(self.n, self.m, self.ku, self.kl)


@dataclass(frozen=True)
class LowerTriangular(_Band, Structure):
    """The entries (r, c) with c ≤ r, values (nnz,) row by row."""

    name: ClassVar[str] = "lower-triangular"
    kind: ClassVar[str] = "lower_tri"
    listed: ClassVar[bool] = True
    m: int
    n: int

    def __post_init__(self) -> None:
        require_sizes("LowerTriangular", m=self.m, n=self.n)

    def band(self) -> tuple[int, int]:
        """The (kl, ku) of a band that holds them all."""
        return max(self.m - 1, 0), 0

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return UpperTriangular(self.n, self.m)


@dataclass(frozen=True)
class UpperTriangular(_Band, Structure):
    """The entries (r, c) with c ≥ r, values (nnz,) row by row."""

    name: ClassVar[str] = "upper-triangular"
    kind: ClassVar[str] = "upper_tri"
    listed: ClassVar[bool] = True
    m: int
    n: int

    def __post_init__(self) -> None:
        require_sizes("UpperTriangular", m=self.m, n=self.n)

    def band(self) -> tuple[int, int]:
        """The (kl, ku) of a band that holds them all."""
        return 0, max(self.n - 1, 0)

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return LowerTriangular(self.n, self.m)


def band_of(m: int, n: int, kl: int, ku: int) -> Structure:
    """The one structure that stands for a band: a triangle where it is one.

    Args:
        m: Rows.
        n: Columns.
        kl: Diagonals below the main one, less than m.
        ku: Diagonals above the main one, less than n.

    Returns:
        A triangle or a Banded; the caller has seen to full and diagonal matrices.
    """
    require("band_of", kl < m and ku < n, "kl must be less than m and ku less than n", f"{(m, n, kl, ku)}")
    if ku == 0 and kl == m - 1:
        return LowerTriangular(m, n)
    if kl == 0 and ku == n - 1:
        return UpperTriangular(m, n)
    return Banded(m, n, kl, ku)
