"""Exhaustive: every plan there is, priced one by one; the judge of all other strategies."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from ..bracket import Bracket, accumulate, multiply, pull, push
from ..problem import Problem
from .registry import register_strategy

PLAN_LIMIT = 1_000_000

_Tree = tuple[int, tuple[Bracket, ...]]  # price and brackets of one way to form a block


@register_strategy("exhaustive")
def exhaustive(problem: Problem) -> list[Bracket]:
    """Enumerate all plans and take the cheapest, on ties the one of fewest steps.

    It assumes nothing of its optimum, so it can judge those that do.

    Args:
        problem: What is to be planned.

    Returns:
        The brackets.

    Raises:
        ValueError: If the chain has more than `PLAN_LIMIT` plans.
    """
    plans = _count(problem)
    if plans > PLAN_LIMIT:
        raise ValueError(
            f"exhaustive: the chain must have at most {PLAN_LIMIT:,} plans, got {plans:,} for {problem.length} "
            f"factors; use strategy='dynamic_programming'."
        )

    @cache
    def ways(j: int, i: int) -> list[_Tree]:
        return list(enumerate_ways(j, i))

    def enumerate_ways(j: int, i: int) -> Iterator[_Tree]:
        if i == j:
            leaves = [accumulate(i, mode) for mode in problem.leaf_modes(i)]
            yield from ((problem.price(leaf), (leaf,)) for leaf in leaves)
        for k in range(i, j):
            for step in filter(problem.allows, (multiply(j, k, i), push(j, k, i), pull(j, k, i))):
                price = problem.price(step)
                operands = [ways(*span) for span in step.operands]
                if len(operands) == 1:
                    yield from ((price + cost, (*steps, step)) for cost, steps in operands[0])
                else:
                    for cost, steps in operands[0]:
                        yield from ((price + cost + c, (*steps, *s, step)) for c, s in operands[1])

    best = min(enumerate_ways(problem.length, 1), key=lambda tree: (tree[0], len(tree[1])))
    return list(best[1])


def _count(problem: Problem) -> int:
    """Return the number of plans, without enumerating them."""

    @cache
    def count(j: int, i: int) -> int:
        if i == j:
            return len(problem.leaf_modes(i))
        total = 0
        for k in range(i, j):
            for step in filter(problem.allows, (multiply(j, k, i), push(j, k, i), pull(j, k, i))):
                ways = 1
                for span in step.operands:
                    ways *= count(*span)
                total += ways
        return total

    return count(problem.length, 1)
