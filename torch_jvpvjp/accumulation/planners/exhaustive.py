"""Exhaustive: every plan there is, priced one by one; the judge of all other strategies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from ..bracket import Bracket, Mode, accumulate, multiply, pull, push, push_compressed
from ..cost import Price
from ..infeasible import InfeasiblePlanError
from ..problem import Problem, is_compressible
from ..structure import Structure
from .orders import least_of_all_orders
from .parallel import shortest_of
from .registry import register_strategy

PLAN_LIMIT = 1_000_000
LIMITED_PLAN_LIMIT = 20_000  # where every order of a plan is tried too


class _Tree(NamedTuple):
    """One way to form a block."""

    price: Price
    brackets: tuple[Bracket, ...]
    structure: Structure
    held: tuple[int, ...]  # what each step leaves held


@register_strategy("exhaustive")
def exhaustive(problem: Problem) -> list[Bracket]:
    """Enumerate all plans and take the cheapest, on ties the one of fewest steps.

    It assumes nothing of its optimum, so it can judge those that do. Where held entries are limited, or come first,
    every order of evaluation of a plan is tried; with threads, every schedule of a plan.

    Args:
        problem: What is to be planned.

    Returns:
        The brackets, operands before results.

    Raises:
        ValueError: If the chain has more than `PLAN_LIMIT` plans, or `LIMITED_PLAN_LIMIT` where orders are tried too.
        InfeasiblePlanError: If no plan keeps to peak_entries.
    """  # noqa: DOC502 (the latter is raised by _within)
    limited = problem.peak_entries is not None or problem.least_peak
    most = LIMITED_PLAN_LIMIT if limited else PLAN_LIMIT
    plans = _count(problem)
    if plans > most:
        raise ValueError(
            f"exhaustive: the chain must have at most {most:,} plans, got {plans:,} for {problem.length} "
            f"factors; use strategy='dynamic_programming'."
        )
    trees = _trees(problem)
    if problem.threads is not None:
        return shortest_of(problem, (list(tree.brackets) for tree in trees))
    if limited:
        return _within(problem, sorted(trees, key=_cost))
    return list(min(trees, key=_cost).brackets)


def _cost(tree: _Tree) -> tuple[Price, int]:
    return tree.price, len(tree.brackets)


def _within(problem: Problem, trees: list[_Tree]) -> list[Bracket]:
    """The first of the trees that keeps to the limit, or the first of those of the least peak.

    Args:
        problem: What is to be planned.
        trees: All plans, cheapest first.

    Returns:
        The brackets, in the order that holds least.

    Raises:
        InfeasiblePlanError: If there is none.
    """
    limit, smallest, best = problem.peak_entries, None, None
    for tree in trees:
        peak, order = least_of_all_orders(tree.brackets, tree.held)
        if smallest is None or peak < smallest:
            smallest, best = peak, order
        if not problem.least_peak and limit is not None and peak <= limit:
            return order
    assert smallest is not None and best is not None
    if limit is not None and smallest > limit:
        raise InfeasiblePlanError(
            f"exhaustive: no plan holds at most peak_entries={limit} entries of computed blocks at every step; the "
            f"smallest feasible budget is {smallest}.",
            smallest=smallest,
        )
    return best


def _trees(problem: Problem) -> Iterator[_Tree]:
    """Yield every plan."""

    @cache
    def ways(j: int, i: int) -> list[_Tree]:
        return list(enumerate_ways(j, i))

    priced: dict[tuple[object, ...], tuple[Structure, Price, int] | None] = {}

    def price(step: Bracket, structures: list[Structure]) -> tuple[Structure, Price, int] | None:
        result = problem.outcome(step, structures)
        if step.mode is Mode.COMPRESSED and not is_compressible(result):
            return None
        return result, problem.price(step, structures), problem.held(step, result)

    def join(step: Bracket, operands: tuple[_Tree, ...]) -> Iterator[_Tree]:
        structures = [operand.structure for operand in operands]
        key = step if problem.associative else (step, *structures)
        if key not in priced:
            priced[key] = price(step, structures)
        known = priced[key]
        if known is not None:
            total = known[1] + sum(operand.price for operand in operands)
            steps = tuple(bracket for operand in operands for bracket in operand.brackets)
            held = tuple(entries for operand in operands for entries in operand.held)
            yield _Tree(total, (*steps, step), known[0], (*held, known[2]))

    def enumerate_ways(j: int, i: int) -> Iterator[_Tree]:
        if i == j:
            for mode in problem.leaf_modes(i):
                yield from join(accumulate(i, mode), ())
        for k in range(i, j):
            for step in _joins(problem, j, k, i):
                if len(step.operands) == 1:
                    for operand in ways(*step.operands[0]):
                        yield from join(step, (operand,))
                else:
                    for upstream in ways(k, i):
                        for downstream in ways(j, k + 1):
                            yield from join(step, (upstream, downstream))

    return enumerate_ways(problem.length, 1)


def _joins(problem: Problem, j: int, k: int, i: int) -> list[Bracket]:
    joins = [multiply(j, k, i), push(j, k, i), pull(j, k, i)]
    joins += [] if problem.all_dense else [push_compressed(j, k, i)]
    return [step for step in joins if problem.allows(step)]


def _count(problem: Problem) -> int:
    """Return the number of plans, without enumerating them."""

    @cache
    def count(j: int, i: int) -> int:
        if i == j:
            return len(problem.leaf_modes(i))
        total = 0
        for k in range(i, j):
            for step in _joins(problem, j, k, i):
                ways = 1
                for span in step.operands:
                    ways *= count(*span)
                total += ways
        return total

    return count(problem.length, 1)
