"""The prices of every step that a chain's blocks can be joined by, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate as running_sum
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..cost import Fma, Price, check_finite
from ..problem import Problem, colours_of, is_compressible
from .counts import Kinds, ProductCounts

Array = np.ndarray[Any, Any]


class Tables:
    """The prices of a problem as arrays; index s stands for a block of s + 1 factors, rows count factors from 0.

    Integers are kept exactly: in int64 where a bound shows that no sum can overflow, else as Python integers. They are
    scaled by more than the number of steps that a plan can have, so that every step can add one and ties go to fewer.
    Floats are not scaled.

    Args:
        problem: What is to be planned.
        leaf_prices: Price of the best leaf of each factor.
    """

    def __init__(self, problem: Problem, leaf_prices: list[Price]) -> None:
        q = problem.length
        self.problem = problem
        indices = range(1, q + 1)
        pushable = [problem.can_push(index) for index in indices]
        pullable = [problem.can_pull(index) and problem.tape_fits(index, index) for index in indices]
        counted = _is_fma(problem)
        self.kinds = Kinds(problem)
        ups, downs = ([], []) if counted else _sweeps(problem, self.kinds, pushable, pullable)
        # No plan that forms and multiplies all costs more than `formed`, so no optimum does.
        dearest = problem.objective.multiply_dense(*[max(problem.dims)] * 3) * problem.batch
        formed = sum(leaf_prices) + (q - 1) * dearest
        swept = _dearest_sweep(problem) if counted else max((row[-1] for row in (*ups, *downs) if row), default=0)
        self.exact = isinstance(formed + swept, int)
        check_finite(formed + swept)
        self.scale = 2 * q if self.exact else 1  # a plan has at most 2 q - 1 steps
        self.huge: Price = 4 * self.scale * (formed + swept + 1) if self.exact else float("inf")
        self.dtype = self._dtype()
        self.leaves = self._scaled(leaf_prices)
        integers = np.int64 if max(problem.dims) < 2**63 else object
        self.dims = np.array(problem.dims, self.dtype if self.exact else integers)
        self.counts = ProductCounts.of(problem, self.kinds) if counted and self.dtype is np.int64 else None
        if counted and (problem.all_dense or self.counts is not None):
            self.ups = self._counted_sweeps(pushable, up=True)
            self.downs = self._counted_sweeps(pullable, up=False)
        else:
            ups, downs = (ups, downs) if ups or downs else _sweeps(problem, self.kinds, pushable, pullable)
            self.ups, self.downs = self._square(ups, q), self._square(downs, q)
        compressible = [can and problem.can_compress(index) for index, can in enumerate(pushable, 1)]
        self.barred_up, self.barred_down = _barred(pushable), _barred(pullable)
        self.barred_compressed = _barred(compressible)
        self.compressible = not problem.all_dense and any(compressible)
        self.tape = np.array(problem.tape_sums, np.int64 if problem.tape_sums[-1] < 2**63 else object)
        self._colour_sums: dict[tuple[int, int], Array] = {}
        self._pairs: dict[int, Price] = {}

    def _dtype(self) -> Any:
        if not self.exact:
            return np.float64
        known = getattr(type(self.problem.objective), "multiply", None) is Fma.multiply
        return np.int64 if known and 2 * self.huge < 2**63 else object

    # ---- sweeps ----------------------------------------------------------------------------------------------------

    def pushes(self, s: int, upstream: Array) -> Array | None:
        """Return the prices (q - s, s) of pushing J_k … J_i on through the factors up to j; None if nothing can be."""
        if self.ups is None:
            return None
        i, k, j = self._places_of(s)
        price = upstream + (self.ups[: len(i), s, None] - self.ups[: len(i), :s])
        return np.where(self.barred_up[j + 1] == self.barred_up[k + 1], price, self.huge)

    def pulls(self, s: int, downstream: Array) -> Array | None:
        """Return the prices (q - s, s) of pulling J_j … J_k+1 on through the factors down to i."""
        if self.downs is None:
            return None
        i, k, _ = self._places_of(s)
        price = downstream + (self.downs[s:, s, None] - self.downs[s:, s - 1 :: -1])
        allowed = self.barred_down[k + 1] == self.barred_down[i]
        if self.problem.tape_limit is not None:
            allowed &= (self.tape[k + 1] - self.tape[i] <= self.problem.tape_limit).astype(bool)
        return np.where(allowed, price, self.huge)

    def compressed_pushes(self, s: int, upstream: Array) -> Array | None:
        """Return the prices (q - s, s) of pushing J_k … J_i on, compressed by the colours of J_j … J_i."""
        if not self.compressible:
            return None
        price = np.full(upstream.shape, self.huge, self.dtype)
        for i in range(len(upstream)):
            structure = self.problem.structure(i + s + 1, i + 1)
            if not is_compressible(structure) or self.barred_compressed[i + s + 1] != self.barred_compressed[i + s]:
                continue
            k = np.arange(i, i + s)
            sums = self._compressed_sums(i, colours_of(structure))
            allowed = self.barred_compressed[i + s + 1] == self.barred_compressed[k + 1]
            price[i] = np.where(allowed, upstream[i] + (sums[i + s + 1] - sums[k + 1]), self.huge)
        return price

    def _compressed_sums(self, i: int, colours: int) -> Array:
        """Return Σ over the first 0, 1, .. q factors of pushing so many columns of a block that starts at i."""
        problem, first = self.problem, i + 1
        key = colours, first if problem.batch > 1 else 0  # the copies of a block depend on where it starts
        if key not in self._colour_sums:
            prices = (
                problem.compressed_price(index, first, colours) if problem.can_compress(index) else 0
                for index in range(1, problem.length + 1)
            )
            self._colour_sums[key] = self._scaled(list(running_sum(prices, initial=0)))
        return self._colour_sums[key]

    # ---- products --------------------------------------------------------------------------------------------------

    def dense_products(self, s: int) -> Array:
        """Return multiply(S(j, k+1), S(k, i)) for the blocks of s + 1 factors of a dense chain, (q - s, s)."""
        rows = len(self.leaves) - s
        inner = sliding_window_view(self.dims[1:-1], s)  # d_{k+1}, (q - s, s)
        m, n = self.dims[s + 1 :, None], self.dims[:rows, None]
        prices = self.problem.objective.multiply_dense(m, inner, n)
        if self.problem.batch > 1:
            one = (self._copies(s) == 1)[:, None]
            prices = np.where(one, prices, self.problem.objective_of(self.problem.batch).multiply_dense(m, inner, n))
        if self.scale != 1:
            prices *= self.scale
        return prices

    def counted_products(self, s: int) -> Array | None:
        """Return the same for any patterns whose entries can be counted beforehand; None for others."""
        if self.counts is None:
            return None
        i, k, j = self._places_of(s)
        return self.counts.fma(i, k, j).astype(self.dtype) * (self._copies(s)[:, None] * self.scale)

    def product_prices(self, i: Array, k: Array, j: Array) -> Array:
        """Return multiply(S(j, k+1), S(k, i)) for blocks given by factors from 0; every pair is priced once."""
        kinds, pairs = self.kinds, self._pairs
        keys = kinds.of[j, k + 1] * len(kinds.structures) + kinds.of[k, i]
        count = len(kinds.structures) ** 2  # of pairs
        if self.problem.batch > 1:  # further pairs stand for products that there is one of for each sample
            copies = [self.problem.copies(last + 1, first + 1) for last, first in zip(j, i, strict=True)]
            keys = keys + count * (np.array(copies) > 1)
        unique, places = np.unique(keys, return_inverse=True)
        prices: list[Price] = []
        for key in unique.tolist():
            price = pairs.get(key)
            if price is None:
                left, right = divmod(key % count, len(kinds.structures))
                objective = self.problem.objective_of(1 if key < count else self.problem.batch)
                price = pairs[key] = objective.multiply(kinds.structures[left], kinds.structures[right])
            prices.append(price)
        return self._scaled(prices)[places.reshape(-1)]

    # ---- sweeps counted in fma, all at once ------------------------------------------------------------------------

    def _counted_sweeps(self, allowed: list[bool], *, up: bool) -> Array | None:
        """Return at [i, s] the running price of carrying block i up s factors, at [j, s] of carrying block j down."""
        if not any(allowed):
            return None
        q, factors = len(self.leaves), self.problem.factors
        block, through = np.ogrid[:q, :q]  # the end of the block that stays, and the factor that is passed
        costs = [factor.jvp_cost if up else factor.vjp_cost for factor in factors]
        links = zip(factors, allowed, costs, strict=True)
        raw = np.array([cost if can and cost and not factor.given else 0 for factor, can, cost in links], self.dtype)
        sizes = self.dims[:-1] if up else self.dims[1:]
        prices = sizes[:, None] * raw
        given = np.array([can and bool(f.given) for f, can in zip(factors, allowed, strict=True)])
        ahead = through > block if up else through < block
        if given.any():
            prices = prices + np.where(given & ahead, self._given_products(block, through, up=up), 0)
        if self.problem.batch > 1:
            since = np.array(self.problem.shared_since[1:]) - 1
            one = block >= since[through] if up else through >= since[block]
            prices = prices * np.where(one, 1, self.problem.batch)
        prices = np.where(ahead, prices, 0)
        if not up:
            prices = prices[:, ::-1]
        sums = np.cumsum(prices, axis=1, dtype=self.dtype) * self.scale
        own = np.arange(q)[:, None] if up else q - 1 - np.arange(q)[:, None]
        return np.take_along_axis(sums, np.minimum(own + np.arange(q), q - 1), axis=1)

    def _given_products(self, block: Array, through: Array, *, up: bool) -> Array:
        """Return what passing one given factor takes, (q, q); of no meaning where the factor is not ahead."""
        if self.counts is None:  # all is dense
            inner = self.dims[:-1] * self.dims[1:]
            return inner * (self.dims[:-1, None] if up else self.dims[1:, None])
        last = len(self.leaves) - 1
        if up:
            k = np.maximum(through - 1, 0)
            return self.counts.fma(np.minimum(block, k), k, np.maximum(through, k + 1))
        k = np.minimum(through, last - 1)
        return self.counts.fma(k, k, np.maximum(block, k + 1))

    # ---- helpers ---------------------------------------------------------------------------------------------------

    def _copies(self, s: int) -> Array:
        rows = range(1, len(self.leaves) - s + 1)
        return np.array([self.problem.copies(i + s, i) for i in rows], self.dtype)

    def _places_of(self, s: int) -> tuple[Array, Array, Array]:
        i = np.arange(len(self.leaves) - s)[:, None]
        return i, i + np.arange(s), i + s

    def _scaled(self, prices: list[Any]) -> Array:
        return np.array(prices, self.dtype) * self.scale

    def _square(self, rows: list[list[Price]], q: int) -> Array | None:
        if not rows:
            return None
        return self._scaled([row + [row[-1]] * (q - len(row)) for row in rows])


def _is_fma(problem: Problem) -> bool:
    """Return whether products and sweeps cost what `Fma` says."""
    kind = type(problem.objective)
    return all(
        getattr(kind, name, None) is getattr(Fma, name) for name in ("multiply", "multiply_dense", "push", "pull")
    )


def _dearest_sweep(problem: Problem) -> int:
    """Return fma that no sweep over the whole chain exceeds."""
    widest = max(problem.dims)
    costs = (max(f.jvp_cost or 0, f.vjp_cost or 0, widest**2 if f.given else 0) for f in problem.factors)
    return widest * sum(costs) * problem.batch


def _barred(allowed: list[bool]) -> Array:
    return np.array(list(running_sum((not can for can in allowed), initial=0)))


def _sweeps(
    problem: Problem, kinds: Kinds, pushable: list[bool], pullable: list[bool]
) -> tuple[list[list[Price]], list[list[Price]]]:
    """Return the running prices of carrying the block that starts at i up, and the block that ends at j down."""
    q, indices = problem.length, range(1, problem.length + 1)
    prices = SweepPrices(problem, kinds)
    ups: Iterator[list[Price]] = (_running(q - i, i, pushable, prices.push, +1) for i in indices)
    downs: Iterator[list[Price]] = (_running(j - 1, j, pullable, prices.pull, -1) for j in indices)
    return list(ups) if any(pushable) else [], list(downs) if any(pullable) else []


def _running(
    steps: int, start: int, allowed: list[bool], price: Callable[[int, int], Price], direction: int
) -> list[Price]:
    """Return 0, then the running price of carrying the one-factor block at `start` through its next `steps` factors."""
    passed = (start + direction * step for step in range(1, steps + 1))
    return list(running_sum((price(index, start) if allowed[index - 1] else 0 for index in passed), initial=0))


class SweepPrices:
    """Prices of carrying a block through a factor, each asked for once: those of like factors and blocks are the same.

    Args:
        problem: What is to be planned.
        kinds: The structures of its blocks.
    """

    def __init__(self, problem: Problem, kinds: Kinds) -> None:
        self.problem = problem
        numbers: dict[Any, int] = {}
        # A label is for people, and makes like factors differ.
        self._factors = [numbers.setdefault(replace(f, label=""), len(numbers)) for f in problem.factors]
        self._blocks: list[list[int]] = kinds.of.tolist()
        self._pushes: dict[tuple[int, int, int], Price] = {}
        self._pulls: dict[tuple[int, int, int], Price] = {}

    def push(self, index: int, i: int) -> Price:
        """Return the price of pushing the block J_index-1 … J_i through factor `index`, counted from 1."""
        problem = self.problem
        block = problem.dims[i - 1] if problem.all_dense else self._blocks[index - 2][i - 1]
        key = self._factors[index - 1], block, problem.copies(index, i)
        price = self._pushes.get(key)
        if price is None:
            price = self._pushes[key] = problem.push_price(index, i)
        return price

    def pull(self, index: int, j: int) -> Price:
        """Return the price of pulling the block J_j … J_index+1 through factor `index`."""
        problem = self.problem
        block = problem.dims[j] if problem.all_dense else self._blocks[j - 1][index]
        key = self._factors[index - 1], block, problem.copies(j, index)
        price = self._pulls.get(key)
        if price is None:
            price = self._pulls[key] = problem.pull_price(index, j)
        return price
