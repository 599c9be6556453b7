"""What steps cost where those that are alike run as one call: each launch is paid once for a level of a plan.

A recorded plan runs like steps that do not need one another together. Two steps are such if they are alike, in action,
mode, sizes, structures and factors, and stand at one height above the leaves. An objective that prices a launch apart
from the work, as `time` does by `batched`, then counts it once for all of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .bracket import Action, Bracket
from .cost import Objective, Price, for_copies
from .factor import Factor
from .problem import Problem
from .structure import Structure

_Span = tuple[int, int]


def prices_by_level(
    problem: Problem, brackets: Sequence[Bracket], operands: Mapping[_Span, Sequence[Structure]] | None = None
) -> list[Price]:
    """The prices of the steps of a plan, like steps of one height together.

    Args:
        problem: What they are a plan for.
        brackets: The steps, each after its operands.
        operands: The structures of the operands of each, by the block that it makes, upstream first; those of
            `problem.structure` by default.

    Returns:
        A price for each; where the objective has no `batched`, or entries held or workers are limited, that of the
        step alone.
    """
    blocks = (
        {b.span: [problem.structure(*span) for span in b.operands] for b in brackets} if operands is None else operands
    )
    alone = [problem.price(bracket, blocks[bracket.span]) for bracket in brackets]
    if not runs_together(problem):
        return alone
    heights: dict[_Span, int] = {}
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for place, bracket in enumerate(brackets):
        heights[bracket.span] = 1 + max((heights[span] for span in bracket.operands), default=0)
        alike[heights[bracket.span], *_kind(problem, bracket, blocks[bracket.span])].append(place)
    prices = list(alone)
    for places in alike.values():
        if len(places) > 1:
            bracket = brackets[places[0]]
            together = _together(problem, len(places)).price(bracket, blocks[bracket.span])
            for place in places:
                prices[place] = min(together / len(places), alone[place])
    return prices


def runs_together(problem: Problem) -> bool:
    """Return whether a plan of a problem may run like steps together, and its objective prices that."""
    limited = problem.peak_entries is not None or problem.least_peak or problem.threads is not None
    return hasattr(problem.objective, "batched") and not limited


def _kind(problem: Problem, bracket: Bracket, blocks: Sequence[Structure]) -> tuple[Hashable, ...]:
    """Return what two steps have in common that are alike."""
    raw = () if bracket.action is Action.MULTIPLY else tuple(unnamed(problem.factor(i)) for i in bracket.raw_factors)
    return bracket.action, bracket.mode, raw, tuple(blocks), problem.copies(*bracket.span)


def unnamed(factor: Factor) -> Factor:
    """Return a factor without its label, which makes no difference to a plan."""
    return replace(factor, label="")


class _AtOnce:
    """An objective that prices so many copies of each thing at once, where a batch may multiply them further."""

    def __init__(self, objective: Objective, count: int) -> None:
        self._one, self._count = objective, count
        self._all = for_copies(objective, count)

    def batched(self, copies: int) -> Objective:
        """Return the objective for so many copies of all of them."""
        return for_copies(self._one, copies * self._count)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._all, name)


def _together(problem: Problem, count: int) -> Problem:
    """Return the problem in which each thing is so many things at once."""
    objective: Any = _AtOnce(problem.objective, count)
    return replace(problem, objective=objective)
