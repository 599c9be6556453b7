"""Counts of entries per row or column, exact at any size: runs along which the count is linear."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from .index import Integers


@dataclass(frozen=True)
class Runs:
    """Counts as runs (length, first, slope): entry t of a run is first + slope · t."""

    runs: tuple[tuple[int, int, int], ...]

    @property
    def size(self) -> int:
        """How many counts there are; not `len`, which stops at 2^63."""
        return sum(length for length, _, _ in self.runs)

    @property
    def total(self) -> int:
        """The sum of all counts."""
        return sum(length * first + slope * (length * (length - 1) // 2) for length, first, slope in self.runs)

    @property
    def least(self) -> int:
        """The smallest count, 0 if there is none."""
        return min((min(first, first + slope * (length - 1)) for length, first, slope in self.runs), default=0)

    @property
    def most(self) -> int:
        """The largest count, 0 if there is none."""
        return max((max(first, first + slope * (length - 1)) for length, first, slope in self.runs), default=0)

    def array(self) -> Integers:
        """The counts one by one."""
        parts = [first + slope * np.arange(length, dtype=np.int64) for length, first, slope in self.runs]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Listed:
    """Counts listed one by one."""

    counts: Integers

    @property
    def size(self) -> int:
        """How many counts there are."""
        return self.counts.size

    @cached_property
    def total(self) -> int:
        """The sum of all counts."""
        return int(self.counts.sum())

    @cached_property
    def least(self) -> int:
        """The smallest count, 0 if there is none."""
        return int(self.counts.min(initial=np.iinfo(np.int64).max)) if self.counts.size else 0

    @cached_property
    def most(self) -> int:
        """The largest count, 0 if there is none."""
        return int(self.counts.max(initial=0))

    def array(self) -> Integers:
        """The counts one by one."""
        return self.counts


Counts = Runs | Listed


def constant(length: int, count: int) -> Runs:
    """The same count `length` times."""
    return Runs(((length, count, 0),)) if length else Runs(())


@lru_cache(maxsize=65536)
def band_rows(m: int, n: int, kl: int, ku: int) -> Runs:
    """Row counts of the (m, n) band −kl ≤ c − r ≤ ku: max(0, min(n, r + ku + 1) − max(0, r − kl)) in row r."""

    def count(r: int) -> int:
        return max(0, min(n, r + ku + 1) - max(0, r - kl))

    # the count is linear between the rows where a bound starts or stops to bind
    cuts = sorted({0, m, *(min(max(cut, 0), m) for cut in (kl, n - ku - 1, n + kl))})
    runs: list[tuple[int, int, int]] = []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        slope = count(start + 1) - count(start) if stop - start > 1 else 0
        runs.append((stop - start, count(start), slope))
    return Runs(tuple(runs))


def dot(a: Counts, b: Counts) -> int:
    """Σ_l a_l b_l, exact."""
    if isinstance(a, Runs) and isinstance(b, Runs):
        return _dot_runs(a, b)
    for even, other in ((a, b), (b, a)):
        if isinstance(even, Runs) and even.least == even.most:
            return even.most * other.total
    x, y = a.array(), b.array()
    if a.most * b.most * a.size < 2**63:
        return int(np.dot(x, y))
    return sum(i * j for i, j in zip(x.tolist(), y.tolist(), strict=True))


def _dot_runs(a: Runs, b: Runs) -> int:
    # Σ_{t<L} (p + q t)(u + v t) = p u L + (p v + q u) L(L−1)/2 + q v (L−1)L(2L−1)/6 over every common run of length L
    left, right = list(reversed(a.runs)), list(reversed(b.runs))
    result = 0
    while left and right:
        (m, p, q), (n, u, v) = left.pop(), right.pop()
        length = min(m, n)
        result += p * u * length + (p * v + q * u) * (length * (length - 1) // 2)
        result += q * v * ((length - 1) * length * (2 * length - 1) // 6)
        if m > length:
            left.append((m - length, p + q * length, q))
        if n > length:
            right.append((n - length, u + v * length, v))
    return result
