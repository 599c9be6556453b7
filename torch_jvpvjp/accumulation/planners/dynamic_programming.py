"""Dynamic programming: the optimum of every block from the optima of its parts.

With C(j, i) the optimum for the block J_j … J_i and S(j, i) its structure:

    C(i, i) = best leaf
    C(j, i) = min over i ≤ k < j of
        C(k, i)             + Σ_{l=k+1..j} push(l, S(l-1, i))                         by tangents
                  C(j, k+1) + Σ_{l=i..k} pull(l, S(j, l+1))     if the tape fits      by adjoints
        C(k, i) + C(j, k+1) + multiply(S(j, k+1), S(k, i))                            by a product

All blocks of one length are computed at once, in NumPy: in int64 where a bound shows that no sum can overflow, else on
arrays of Python integers, by the same code and as exactly. Ties go to fewer steps, hence to longer sweeps: every price
is scaled by more than the number of steps that a plan can have, and every step adds one.

Source: Naumann, arXiv 2003.05755 and 2406.11862.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate as running_sum
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..bracket import Bracket, multiply, pull, push
from ..problem import Problem
from .registry import register_strategy

_Array = np.ndarray[Any, Any]
_JOINS = (push, pull, multiply)  # in the order of preference on ties


@register_strategy("dynamic_programming")
def dynamic_programming(problem: Problem) -> list[Bracket]:
    """The optimal plan, exactly, in O(q³) elementary operations.

    Args:
        problem: What is to be planned.

    Returns:
        The brackets.
    """
    leaves = [problem.best_leaf(index) for index in range(1, problem.length + 1)]
    choice = _solve(_Tables(problem, [problem.price(leaf) for leaf in leaves]))
    brackets: list[Bracket] = []
    blocks = [(problem.length, 1)]
    while blocks:  # no recursion: a chain may be longer than Python's stack is deep
        j, i = blocks.pop()
        if i == j:
            brackets.append(leaves[i - 1])
            continue
        join, split = divmod(int(choice[i - 1, j - i]), j - i)
        brackets.append(_JOINS[join](j, i + split, i))
        blocks += brackets[-1].operands
    return brackets


def _solve(tables: _Tables) -> _Array:
    """Return choice[i, s] = join · s + (k - i), for the block of s + 1 factors that starts at i, from 0."""
    q = len(tables.leaves)
    from_start = np.zeros((q, q), tables.dtype)  # C of the block of s + 1 factors that starts at i
    from_end = np.zeros((q, q), tables.dtype)  # C of the block of s + 1 factors that ends at j
    from_start[:, 0] = from_end[:, 0] = tables.leaves
    choice = np.zeros((q, q), np.int64)
    rows = np.arange(q)
    for s in range(1, q):
        # Row i is the block i .. j = i + s; column t splits it after k = i + t.
        upstream = from_start[: q - s, :s]  # C(k, i)
        downstream = from_end[s:, s - 1 :: -1]  # C(j, k+1), a block of s - t factors
        best = which = None
        for join, prices in tables.candidates(s, upstream, downstream):
            split = prices.argmin(axis=1)
            price = prices[rows[: q - s], split]
            if best is None or which is None:
                best, which = price, join * s + split
            else:
                better = price < best
                best, which = np.where(better, price, best), np.where(better, join * s + split, which)
        assert best is not None and which is not None
        from_start[: q - s, s] = from_end[s:, s] = best + 1  # one more step
        choice[: q - s, s] = which
    return choice


class _Tables:
    """The prices of a problem as arrays, scaled; index s stands for a block of s + 1 factors."""

    def __init__(self, problem: Problem, leaf_prices: list[int]) -> None:
        q = problem.length
        self.problem = problem
        self.scale = 2 * q  # a plan has at most 2 q - 1 steps
        indices = range(1, q + 1)
        pushable = [problem.can_push(index) for index in indices]
        pullable = [problem.can_pull(index) and problem.tape_fits(index, index) for index in indices]
        # Running prices of carrying the block that starts at i up, and the block that ends at j down.
        ups = [_running(q - i, i, pushable, problem.push_price, +1) for i in indices] if any(pushable) else []
        downs = [_running(j - 1, j, pullable, problem.pull_price, -1) for j in indices] if any(pullable) else []
        # No plan that forms and multiplies all costs more than `formed`, so no optimum does.
        formed = sum(leaf_prices) + (q - 1) * problem.objective.multiply_dense(*[max(problem.dims)] * 3)
        swept = max((row[-1] for row in (*ups, *downs)), default=0)
        self.huge = 4 * self.scale * (formed + swept + 1)
        self.dtype = np.int64 if 2 * max(self.huge, sum(problem.tape_sums[-1:])) < 2**63 else object
        self.leaves = self._scaled(leaf_prices) + 1
        self.ups, self.downs = self._square(ups, q), self._square(downs, q)
        self.barred_up = np.array(list(running_sum((not can for can in pushable), initial=0)))
        self.barred_down = np.array(list(running_sum((not can for can in pullable), initial=0)))
        self.tape = np.array(problem.tape_sums, self.dtype)
        self.dims = np.array(problem.dims, self.dtype)

    def candidates(self, s: int, upstream: _Array, downstream: _Array) -> Iterator[tuple[int, _Array]]:
        """Yield the prices (q - s, s) of each kind of join, after its place in `_JOINS`."""
        i = np.arange(len(upstream))[:, None]
        k, j = i + np.arange(s), i + s
        if self.ups is not None:
            price = upstream + (self.ups[: len(i), s, None] - self.ups[: len(i), :s])
            yield 0, np.where(self.barred_up[j + 1] == self.barred_up[k + 1], price, self.huge)
        if self.downs is not None:
            price = downstream + (self.downs[s:, s, None] - self.downs[s:, s - 1 :: -1])
            allowed = self.barred_down[k + 1] == self.barred_down[i]
            if self.problem.tape_limit is not None:
                allowed &= (self.tape[k + 1] - self.tape[i] <= self.problem.tape_limit).astype(bool)
            yield 1, np.where(allowed, price, self.huge)
        price = self._products(s)
        price += upstream  # in place: fresh memory is what costs most here
        price += downstream
        yield 2, price

    def _products(self, s: int) -> _Array:
        """Return multiply(S(j, k+1), S(k, i)) for the blocks of s + 1 factors, (q - s, s)."""
        rows = len(self.leaves) - s
        if self.problem.all_dense:
            inner = sliding_window_view(self.dims[1:-1], s)  # d_{k+1}, (q - s, s)
            m, n = self.dims[s + 1 :, None], self.dims[:rows, None]
            prices = self.problem.objective.multiply_dense(m, inner, n)
            prices *= self.scale
            return prices
        structure, price = self.problem.structure, self.problem.objective.multiply
        return self._scaled([
            [price(structure(i + s, k + 1), structure(k, i)) for k in range(i, i + s)] for i in range(1, rows + 1)
        ])

    def _scaled(self, prices: list[Any]) -> _Array:
        return np.array(prices, self.dtype) * self.scale

    def _square(self, rows: list[list[int]], q: int) -> _Array | None:
        if not rows:
            return None
        return self._scaled([row + [row[-1]] * (q - len(row)) for row in rows])


def _running(
    steps: int, start: int, allowed: list[bool], price: Callable[[int, int], int], direction: int
) -> list[int]:
    """Return 0, then the running price of carrying the one-factor block at `start` through its next `steps` factors."""
    passed = (start + direction * step for step in range(1, steps + 1))
    return list(running_sum((price(index, start) if allowed[index - 1] else 0 for index in passed), initial=0))
