"""A rate that depends on a size: measured at knots, interpolated between them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
_TABLE = 4096  # sizes up to here are looked up, not interpolated; a knot beyond it extends the table


@dataclass(frozen=True)
class Curve:
    """A positive rate over a positive size: a straight line in the logarithms between knots, constant outside them.

    It is exact on its knots and monotone between two of them.

    Args:
        knots: Sizes, increasing.
        rates: The rate at each.

    Raises:
        ValueError: If there is no knot, the sizes do not increase, or one number is not positive and finite.
    """

    knots: tuple[float, ...]
    rates: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.knots or len(self.knots) != len(self.rates):
            raise ValueError(
                f"Curve: knots and rates must be equally many, at least one, got {len(self.knots)} and "
                f"{len(self.rates)}."
            )
        if not all(math.isfinite(number) and number > 0 for number in (*self.knots, *self.rates)):
            raise ValueError(f"Curve: knots and rates must be positive and finite, got {self.knots} and {self.rates}.")
        if any(a >= b for a, b in zip(self.knots, self.knots[1:], strict=False)):
            raise ValueError(f"Curve: knots must increase, got {self.knots}.")

    @classmethod
    def constant(cls, rate: float) -> Curve:
        """Return the same rate for every size."""
        return cls((1.0,), (rate,))

    @classmethod
    def of_seconds(cls, knots: Sequence[float], seconds: Sequence[float]) -> Curve:
        """The rate size / seconds, made so that no larger size takes less time than a smaller one.

        Args:
            knots: Sizes, increasing.
            seconds: The time that each took.

        Returns:
            The curve.
        """
        at_least = np.maximum.accumulate(np.asarray(seconds, np.float64))
        return cls(tuple(map(float, knots)), tuple((np.asarray(knots, np.float64) / at_least).tolist()))

    def at(self, size: float) -> float:
        """Return the rate at a size."""
        if size <= self.knots[0]:
            return self.rates[0]
        if size >= self.knots[-1]:
            return self.rates[-1]
        place = bisect_left(self.knots, size)
        low, high = self.knots[place - 1], self.knots[place]
        if size == high:
            return self.rates[place]
        weight = math.log(size / low) / math.log(high / low)
        return self.rates[place - 1] ** (1 - weight) * self.rates[place] ** weight

    def inverse(self, size: int) -> float:
        """Return 1 / rate at an integer size."""
        table = self._inverse_list
        return table[size] if size < len(table) else table[-1]

    def inverse_of(self, sizes: Array) -> Array:
        """Return 1 / rate at each size, for arrays of integers; sizes beyond 2^63 may be Python integers."""
        return self._inverse_table[np.minimum(sizes, len(self._inverse_table) - 1).astype(np.int64)]

    def inverse_at(self, sizes: Array) -> Array:
        """Return 1 / rate at each size, for arrays of any positive numbers."""
        if len(self.knots) == 1:
            return np.full(np.shape(sizes), 1 / self.rates[0])
        return np.exp(-np.interp(np.log(sizes), np.log(self.knots), np.log(self.rates)))

    @cached_property
    def _inverse_list(self) -> list[float]:
        return self._inverse_table.tolist()

    @cached_property
    def _inverse_table(self) -> Array:
        sizes = np.arange(1, max(_TABLE, math.ceil(self.knots[-1])) + 1, dtype=np.float64)
        return np.concatenate(([0.0], self.inverse_at(sizes)))  # size 0 takes no time
