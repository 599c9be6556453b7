"""Dynamic programming: the optimum of every block from the optima of its parts.

With C(j, i) the optimum for the block J_j … J_i and S(j, i) its structure:

    C(i, i) = best leaf
    C(j, i) = min over i ≤ k < j of
        C(k, i)             + Σ_{l=k+1..j} push(l, S(l-1, i))                         by tangents
                  C(j, k+1) + Σ_{l=i..k} pull(l, S(j, l+1))     if the tape fits      by adjoints
        C(k, i)             + Σ_{l=k+1..j} compressed(l, colours of S(j, i))          by compressed tangents
        C(k, i) + C(j, k+1) + multiply(S(j, k+1), S(k, i))                            by a product

All blocks of one length are computed at once, in NumPy. Where prices of products must be asked for one by one, only
those are whose operands alone cost less than the best that is known.

Dense chains without sweeps are solved by their geometry; limits on held entries, factored structures, which depend on
the bracketing, and schedules on several workers by programs of their own.

Source: Naumann, arXiv 2003.05755 and 2406.11862.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..bracket import Bracket, multiply, pull, push, push_compressed
from ..cost import Fma
from ..problem import Problem
from .matrix_chain import multiply_order
from .parallel import parallel_plan
from .pareto import least_peak, least_price, least_price_within
from .registry import register_strategy
from .repeats import with_repeats
from .tables import Array, Tables

_JOINS = (push, pull, push_compressed, multiply)  # in the order of preference on ties
_ROUNDING = 1e-12  # floats that differ by less than this part of them are a tie


@register_strategy("dynamic_programming")
def dynamic_programming(problem: Problem) -> list[Bracket]:
    """The optimal plan, exactly; with threads, the best schedule that the search in `parallel` finds.

    Args:
        problem: What is to be planned.

    Returns:
        The brackets.

    Raises:
        InfeasiblePlanError: If no plan keeps to peak_entries.
    """  # noqa: DOC502 (raised by least_price_within)
    sequential = optimal_brackets if problem.associative else least_price
    if problem.threads is not None:
        return parallel_plan(problem, sequential)
    if problem.least_peak:
        return least_peak(problem, sequential)
    if problem.peak_entries is not None:
        return least_price_within(problem, sequential)
    return with_repeats(problem, sequential)


def optimal_brackets(problem: Problem) -> list[Bracket]:
    """Return the plan of the least price for a chain whose structures do not depend on the bracketing."""
    leaves = [problem.best_leaf(index) for index in range(1, problem.length + 1)]
    if problem.length == 1:
        return leaves
    if _only_multiplies(problem):
        return leaves + multiply_order(problem.dims)
    choice = _solve(Tables(problem, [problem.price(leaf) for leaf in leaves]))
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


def _only_multiplies(problem: Problem) -> bool:
    """Return whether the products of dense matrices at m · k · n each are all there is to choose."""
    kind = type(problem.objective)
    indices = range(1, problem.length + 1)
    return (
        problem.all_dense
        and problem.batch == 1
        and getattr(kind, "multiply", None) is Fma.multiply
        and getattr(kind, "multiply_dense", None) is Fma.multiply_dense
        and not any(problem.can_push(index) or problem.can_pull(index) for index in indices)
    )


def _solve(tables: Tables) -> Array:
    """Return choice[i, s] = join · s + (k - i), for the block of s + 1 factors that starts at i, from 0."""
    q = len(tables.leaves)
    step = int(tables.exact)  # what each step adds to an integer, so that ties go to fewer steps
    from_start = np.zeros((q, q), tables.dtype)  # C of the block of s + 1 factors that starts at i
    from_end = np.zeros((q, q), tables.dtype)  # C of the block of s + 1 factors that ends at j
    counts = np.ones((q, q), np.int64)  # steps of the block of s + 1 factors that starts at i, for floats
    from_start[:, 0] = from_end[:, 0] = tables.leaves + step
    choice = np.zeros((q, q), np.int64)
    for s in range(1, q):
        best = _Best(tables, s, counts)
        # Row i is the block i .. j = i + s; column t splits it after k = i + t.
        upstream = from_start[: q - s, :s]  # C(k, i)
        downstream = from_end[s:, s - 1 :: -1]  # C(j, k+1), a block of s - t factors
        for join, prices in _sweeps(tables, s, upstream, downstream):
            best.offer(join, prices)
        prices = tables.dense_products(s) if tables.problem.all_dense else tables.counted_products(s)
        if prices is None:
            best.search(upstream + downstream)
        else:
            prices += upstream  # in place: fresh memory is what costs most here
            prices += downstream
            best.offer(_JOINS.index(multiply), prices)
        from_start[: q - s, s] = from_end[s:, s] = best.price + step
        counts[: q - s, s] = best.steps + 1
        choice[: q - s, s] = best.choice
    return choice


def _sweeps(tables: Tables, s: int, upstream: Array, downstream: Array) -> Iterator[tuple[int, Array]]:
    """Yield the prices (q - s, s) of each kind of sweep there is, after its place in `_JOINS`."""
    sweeps = tables.pushes(s, upstream), tables.pulls(s, downstream), tables.compressed_pushes(s, upstream)
    yield from ((join, prices) for join, prices in enumerate(sweeps) if prices is not None)


class _Best:
    """The best join so far of each block of s + 1 factors."""

    def __init__(self, tables: Tables, s: int, counts: Array) -> None:
        rows = len(tables.leaves) - s
        self.tables, self.s, self.rows = tables, s, np.arange(rows)
        self.counts = counts
        self.price = np.full(rows, tables.huge, tables.dtype)
        self.steps = np.full(rows, 4 * len(tables.leaves))  # needed for floats only: integers count them themselves
        self.choice = np.zeros(rows, np.int64)

    def offer(self, join: int, prices: Array) -> None:
        """Take the best split of a join where it is better: cheaper, or of fewer steps at one price."""
        if self.tables.exact:
            split = prices.argmin(axis=1)
            self._take(self.rows, join, split, prices[self.rows, split], self.steps)
            return
        least = prices.min(axis=1)
        tied = prices <= (least * (1 + _ROUNDING))[:, None]
        steps = np.where(tied, self._steps(join), 4 * len(self.tables.leaves))
        split = steps.argmin(axis=1)
        self._take(self.rows, join, split, least, steps[self.rows, split])

    def _steps(self, join: int) -> Array:
        """Return the steps of the operands of a join, (q - s, s)."""
        s, rows = self.s, self.rows[:, None]
        splits = np.arange(s)
        upstream = self.counts[rows, splits]
        downstream = self.counts[rows + splits + 1, s - 1 - splits]
        if _JOINS[join] is multiply:
            return upstream + downstream
        return downstream if _JOINS[join] is pull else upstream

    def _take(self, rows: Array, join: int, split: Array, price: Array, steps: Array) -> None:
        """Take a join of some rows where it is better."""
        better = price < self.price[rows]
        if not self.tables.exact:
            before, slack = self.price[rows], 1 + _ROUNDING
            tie = np.isfinite(price) & (price <= before * slack) & (before <= price * slack)
            better = np.where(tie, steps < self.steps[rows], better)
        taken = rows[better]
        self.price[taken], self.choice[taken] = price[better], join * self.s + split[better]
        self.steps[taken] = steps[better]

    def search(self, operands: Array) -> None:
        """Price the product of the cheapest operands of each block, then all whose operands cost less than the best."""
        join = _JOINS.index(multiply)
        prices = np.full_like(operands, self.tables.huge)
        cheapest = operands.argmin(axis=1)
        for first in (True, False):
            if first:
                rows, splits = self.rows, cheapest
            else:
                operands[self.rows, cheapest] = self.tables.huge
                rows, splits = np.nonzero(operands < self.price[:, None])
            if rows.size:
                asked = self.tables.product_prices(rows, rows + splits, rows + self.s)
                prices[rows, splits] = operands[rows, splits] + asked
                self.offer(join, prices)
