"""What the product and the sum of two plain structures are and cost: sizes only, exact at any size."""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import LISTABLE, Structure, csr
from .blocks import Stacked
from .canonical import band_widths, bands_of, block_count, blocks_of, nested, recognised, valued
from .counts import dot
from .dense import Dense, Diagonal, Identity, ScaledIdentity, Zero
from .index import Integers, frozen
from .selection import Gather, Scatter


def cost(left: Structure, right: Structure) -> int:
    """The multiplications of A B: Σ_l nnz(A[:, l]) · nnz(B[l, :])."""
    return dot(left.column_profile(), right.row_profile())


def product_structure(left: Structure, right: Structure) -> Structure:
    """The structure of A B: its pattern is the boolean product of the two patterns.

    What stores no values stays so under its own kind: gathers of gathers, scatters of scatters, multiples of the
    identity.

    Args:
        left: Plain structure of A.
        right: Plain structure of B, with as many rows as A has columns.

    Returns:
        The canonical structure of A B.
    """
    match left, right:
        case (Identity(), _):
            return right
        case (_, Identity()):
            return left
        case (Zero(), _) | (_, Zero()):
            return zero_of(left.m, right.n)
        case (ScaledIdentity(), ScaledIdentity()):
            return left
        case (Gather(), Gather()):
            return Gather(right.n, frozen(right.index.array[left.index.array]))
        case (Scatter(), Scatter()):
            return Scatter(left.m, frozen(left.index.array[right.index.array]))
        case (Diagonal() | ScaledIdentity(), _):
            return valued(right)
        case (_, Diagonal() | ScaledIdentity()):
            return valued(left)
        case _:
            return _tagged(left, right) or _with_full_factor(left, right) or _listed(left, right)


def zero_of(m: int, n: int) -> Structure:
    """The structure of no entries; a matrix without room for any counts as full."""
    return Zero(m, n) if m and n else Dense(m, n)


def _tagged(left: Structure, right: Structure) -> Structure | None:
    """A B where a formula says it, None elsewhere."""
    m, k, n = left.m, left.n, right.n
    if m == 0 or n == 0:
        return Dense(m, n)
    a, b = block_count(left), block_count(right)
    # of nested blocks the larger remain
    if a is not None and b is not None and nested(left, right):
        return blocks_of(min(a, b), m, n)
    if a is not None and isinstance(right, Stacked) and right.b % a == 0:
        return Dense(m, n)  # a block spans whole samples, and these meet every column
    if (one := band_widths(left)) is not None and (two := band_widths(right)) is not None:
        (kl, ku), (kl_right, ku_right) = one, two
        # Row r meets every column within the sum of the widths, unless it is empty (r > k − 1 + kl) or the column is;
        # an empty row or column that lies in the sum's band breaks it.
        rows_hold = m - kl <= k or n - 1 < k - kl_right
        columns_hold = n - ku_right <= k or m - 1 < k - ku
        if k and rows_hold and columns_hold:
            return bands_of(m, n, kl + kl_right, ku + ku_right)
    return None


def _with_full_factor(left: Structure, right: Structure) -> Structure | None:
    """A B with a dense factor: full but for the rows or columns that the other leaves empty; None of other factors."""
    m, n = left.m, right.n
    if isinstance(left, Dense):
        if right.column_profile().least > 0:
            return Dense(m, n)
        columns = np.flatnonzero(right.column_counts())
        _refuse_long_list(left, right, m * columns.size)
        return recognised(m, n, np.arange(m + 1) * columns.size, np.tile(columns, m))
    if isinstance(right, Dense):
        if left.row_profile().least > 0:
            return Dense(m, n)
        counts = np.where(left.row_counts() > 0, n, 0)
        _refuse_long_list(left, right, int(counts.sum()))
        return recognised(m, n, _pointers(counts), np.tile(np.arange(n), int((counts > 0).sum())))
    return None


def _listed(left: Structure, right: Structure) -> Structure:
    """A B by the boolean product of the two patterns."""
    if cost(left, right) > _MANY and (intervals := joined_intervals(left, right)) is not None:
        first, last = intervals
        indptr = _pointers(last - first)
        _refuse_long_list(left, right, int(indptr[-1]))
        return recognised(left.m, right.n, indptr, np.arange(indptr[-1]) - np.repeat(indptr[:-1] - first, last - first))
    pattern: Any = left.pattern() @ right.pattern()
    pattern.sort_indices()
    return recognised(left.m, right.n, pattern.indptr.astype(np.int64), pattern.indices.astype(np.int64))


_MANY = 2**18  # multiplications of a product of patterns beyond which intervals are looked for


def joined_intervals(left: Structure, right: Structure) -> tuple[Integers, Integers] | None:
    """The columns [first, last) that the rows of A B hold, without multiplying, where those of A and B are intervals.

    Row r of A B is the union of the rows of B that row r of A names, which are neighbours. Where each of these touches
    the next, as in bands, triangles, blocks and what becomes of them, the union is an interval.

    Args:
        left: Structure of A.
        right: Structure of B, with as many rows as A has columns.

    Returns:
        Two arrays, equal where a row is empty; None if some row of A, B or A B may be no interval.
    """
    rows, columns = _intervals(left), _intervals(right)
    if rows is None or columns is None:
        return None
    (start, stop), (first, last) = rows, columns
    there = last > first
    touching = (first[1:] <= last[:-1]) & (first[:-1] <= last[1:]) & there[1:] & there[:-1]
    gaps = np.concatenate([np.zeros(1, np.int64), np.cumsum(~touching)])  # above each row of B
    some = stop > start
    start, stop = start[some], stop[some]
    if not start.size or (gaps[stop - 1] != gaps[start]).any():
        return None
    ends = np.stack([start, stop], 1).reshape(-1)  # every second range is between two that are asked for
    low, high = np.zeros(left.m, np.int64), np.zeros(left.m, np.int64)
    low[some] = np.minimum.reduceat(np.append(first, 0), ends)[::2]
    high[some] = np.maximum.reduceat(np.append(last, 0), ends)[::2]
    return low, high


def _intervals(structure: Structure) -> tuple[Integers, Integers] | None:
    """Return the columns [first, last) of each row; None if some row has gaps."""
    indptr, indices = csr(structure)
    counts = np.diff(indptr)
    first, last, some = np.zeros(structure.m, np.int64), np.zeros(structure.m, np.int64), counts > 0
    first[some], last[some] = indices[indptr[:-1][some]], indices[indptr[1:][some] - 1] + 1
    return (first, last) if (last - first == counts).all() else None


def _pointers(counts: Integers) -> Integers:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])


def _refuse_long_list(left: Structure, right: Structure, entries: int) -> None:
    if entries > LISTABLE:
        raise ValueError(
            f"product: the pattern of {left} times {right} must have at most {LISTABLE} entries to be listed, "
            f"got {entries}; drop the empty rows and columns from the factors."
        )


def sum_structure(left: Structure, right: Structure) -> Structure:
    """The structure of A + B: its pattern is the union of the two patterns.

    Args:
        left: Plain structure of A.
        right: Plain structure of B, of the same shape.

    Returns:
        The canonical structure of A + B; multiples of the identity stay so.
    """
    if isinstance(left, Zero):
        return right
    if isinstance(right, Zero):
        return left
    if isinstance(left, Identity | ScaledIdentity) and isinstance(right, Identity | ScaledIdentity):
        return ScaledIdentity(left.n)
    m, n = left.m, left.n
    if m == 0 or n == 0 or isinstance(left, Dense) or isinstance(right, Dense):
        return Dense(m, n)
    a, b = block_count(left), block_count(right)
    if a is not None and b is not None and nested(left, right):
        return blocks_of(min(a, b), m, n)
    if (one := band_widths(left)) is not None and (two := band_widths(right)) is not None:
        return bands_of(m, n, max(one[0], two[0]), max(one[1], two[1]))
    if left == right:
        return valued(left)
    pattern: Any = (left.pattern() + right.pattern()).tocsr()
    pattern.sort_indices()
    return recognised(m, n, pattern.indptr.astype(np.int64), pattern.indices.astype(np.int64))
