"""Greedy: always the cheapest join of two neighbouring blocks."""

from __future__ import annotations

from typing import NamedTuple

from ..bracket import Action, Bracket, Mode, multiply, pull, push
from ..cost import Price
from ..problem import Problem
from .registry import register_strategy


class _Join(NamedTuple):
    price: Price
    steps: int
    position: int  # of the upstream block
    brackets: list[Bracket]


@register_strategy("greedy")
def greedy(problem: Problem) -> list[Bracket]:
    """Join the neighbours that are cheapest to join, until one block is left; on ties fewer steps, then upstream.

    A join of two blocks forms the raw factors that it must, or carries one block through a raw neighbour.
    O(q²) joins are priced.

    Args:
        problem: What is to be planned.

    Returns:
        The brackets.
    """
    if problem.length == 1:
        return [problem.best_leaf(1)]
    spans = [(index, index) for index in range(1, problem.length + 1)]
    formed: set[tuple[int, int]] = set()
    brackets: list[Bracket] = []
    while len(spans) > 1:
        join = min(_join(problem, formed, spans, position) for position in range(len(spans) - 1))
        upstream, downstream = spans[join.position], spans[join.position + 1]
        joined = (downstream[0], upstream[1])
        spans[join.position : join.position + 2] = [joined]
        formed.add(joined)
        brackets += join.brackets
    return _merge_sweeps(problem, brackets)


def _join(problem: Problem, formed: set[tuple[int, int]], spans: list[tuple[int, int]], position: int) -> _Join:
    """Return the cheapest way to join the blocks at `position` and `position + 1`."""
    (k, i), (j, _) = spans[position], spans[position + 1]
    upstream = [] if (k, i) in formed else [problem.best_leaf(i)]
    downstream = [] if (j, k + 1) in formed else [problem.best_leaf(j)]
    ways = [[*upstream, *downstream, multiply(j, k, i)]]
    if downstream:  # raw, so it may be pushed through
        ways.append([*upstream, push(j, k, i)])
    if upstream:
        ways.append([*downstream, pull(j, k, i)])
    allowed = [way for way in ways if problem.allows(way[-1])]
    return min(_Join(sum(map(problem.price, way)), len(way), position, way) for way in allowed)


def _merge_sweeps(problem: Problem, brackets: list[Bracket]) -> list[Bracket]:
    """Return the brackets with sweeps that continue one another in one mode made one, where its tape fits."""
    sweeps: dict[tuple[int, int], Bracket] = {}
    others: list[Bracket] = []
    for bracket in brackets:  # operands come before results
        if bracket.action is not Action.ELIMINATE:
            others.append(bracket)
            continue
        child = sweeps.get(bracket.operands[0])
        if child is not None and child.mode is bracket.mode:
            merged = bracket._replace(k=child.k)
            if problem.allows(merged):
                del sweeps[child.span]
                bracket = merged
        sweeps[bracket.span] = bracket
    assert all(bracket.mode in {Mode.TANGENT, Mode.ADJOINT} for bracket in sweeps.values())
    return [*others, *sweeps.values()]
