"""The one structure that stands for a pattern, so that a block's structure does not depend on how it was bracketed."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from .bands import band_of
from .base import Structure, csr
from .blocks import BlockDiagonal, Pool, Stacked
from .counts import band_rows
from .dense import Dense, Diagonal, Identity, ScaledIdentity, Zero
from .index import Index, Integers, frozen
from .selection import WeightedGather, WeightedScatter
from .sparse import Pattern


@lru_cache(maxsize=4096)
def valued(structure: Structure) -> Structure:
    """The canonical structure with one value an entry and the pattern of a given one.

    Args:
        structure: A plain (listed or constant) structure.

    Returns:
        The first of dense, zero, equal blocks, band, stacked, weighted gather, weighted scatter and pattern that it
        is; by formula wherever the kind says it.
    """
    m, n = structure.m, structure.n
    if m == 0 or n == 0:
        return Dense(m, n)
    blocks, band = block_count(structure), band_widths(structure)
    if blocks is not None:
        return blocks_of(blocks, m, n)
    if band is not None:
        return bands_of(m, n, *band)
    if isinstance(structure, Zero) or structure.nnz == 0:
        return Zero(m, n)
    if isinstance(structure, Stacked):
        return blocks_of(structure.o, m, n) if structure.b == 1 or structure.o == 1 else structure
    return recognised(m, n, *csr(structure))


def block_count(structure: Structure) -> int | None:
    """How many equal full blocks stand along the diagonal, None where the kind says nothing of the sort."""
    match structure:
        case Dense():
            return 1
        case Diagonal() | Identity() | ScaledIdentity():
            return max(structure.n, 1)
        case BlockDiagonal():
            return structure.b
        case Pool():
            return structure.m
        case _:
            return None


def nested(left: Structure, right: Structure) -> bool:
    """Whether both are equal full blocks along the diagonal, those of one inside those of the other."""
    a, b = block_count(left), block_count(right)
    return a is not None and b is not None and (a % b == 0 or b % a == 0)


def band_widths(structure: Structure) -> tuple[int, int] | None:
    """The (kl, ku) of a kind that is a band around the main diagonal, None of any other."""
    match structure:
        case Dense():
            return max(structure.m - 1, 0), max(structure.n - 1, 0)
        case Diagonal() | Identity() | ScaledIdentity():
            return 0, 0
        case _:
            band = getattr(structure, "band", None)
            return None if band is None else band()


def blocks_of(b: int, m: int, n: int) -> Structure:
    """The structure of b equal full blocks along the diagonal of an (m, n) matrix."""
    if m == 0 or n == 0 or b == 1:
        return Dense(m, n)
    if m == b:
        return Diagonal(n) if n == b else Pool(m, n)
    return BlockDiagonal(b, m, n)


def bands_of(m: int, n: int, kl: int, ku: int) -> Structure:
    """The structure of the band −kl ≤ c − r ≤ ku of an (m, n) matrix."""
    kl, ku = min(kl, m - 1), min(ku, n - 1)
    if (kl, ku) == (m - 1, n - 1):
        return Dense(m, n)
    if kl == ku == 0 and m == n:
        return Diagonal(n)
    return band_of(m, n, kl, ku)


def recognised(m: int, n: int, indptr: Integers, indices: Integers) -> Structure:
    """The canonical structure of a pattern that is listed.

    Args:
        m: Rows.
        n: Columns.
        indptr: Row pointers of CSR.
        indices: Columns of the entries, ascending in each row.

    Returns:
        The first of dense, zero, equal blocks, band, stacked, weighted gather, weighted scatter and pattern that it is.
    """
    if indices.size == m * n:
        return Dense(m, n)
    if indices.size == 0:
        return Zero(m, n)
    counts = np.diff(indptr)
    even = int(counts[0]) if bool((counts == counts[0]).all()) else 0
    found = _equal_blocks(m, n, even, indices) or _band(m, n, indptr, indices) or _stacked(m, n, even, indices)
    if found is not None:
        return found
    if even == 1:
        return WeightedGather(n, _frozen(indices))
    if indices.size == n and np.unique(indices).size == n:
        rows = np.empty(n, np.int64)
        rows[indices] = np.repeat(np.arange(m), counts)
        return WeightedScatter(m, frozen(rows))
    return Pattern.in_order(m, n, _frozen(indptr), _frozen(indices))


def _frozen(array: Integers) -> Index:
    return frozen(array if array.flags.owndata and array.dtype == np.int64 else np.array(array, np.int64))


def _equal_blocks(m: int, n: int, even: int, indices: Integers) -> Structure | None:
    if even == 0 or n % even or m % (n // even):
        return None
    blocks = BlockDiagonal(n // even, m, n)
    return blocks_of(blocks.b, m, n) if np.array_equal(blocks.list_entries()[1], indices) else None


def _band(m: int, n: int, indptr: Integers, indices: Integers) -> Structure | None:
    rows = np.flatnonzero(np.diff(indptr))  # that have entries; their columns ascend
    kl, ku = int((rows - indices[indptr[rows]]).max()), int((indices[indptr[rows + 1] - 1] - rows).max())
    # all entries lie in the band, so it is full if it has no more of them
    if kl < 0 or ku < 0 or band_rows(m, n, kl, ku).total != indices.size:
        return None
    return bands_of(m, n, kl, ku)


def _stacked(m: int, n: int, even: int, indices: Integers) -> Structure | None:
    if even == 0 or n % even or m % (n // even):
        return None
    stacked = Stacked(m // (n // even), n // even, even)
    return stacked if np.array_equal(stacked.list_entries()[1], indices) else None
