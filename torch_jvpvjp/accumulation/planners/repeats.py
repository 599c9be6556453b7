"""Chains that repeat themselves: the product of r equal links level by level instead of step by step.

A recurrence or an integrator of r equal steps is (J_r … J_1), each J a block of p factors. In whatever order it is
multiplied, it takes as many multiply-adds, and a plan of steps priced one by one has no reason to prefer one. But the
r/2 products of neighbours do not need one another, nor do the r/4 products of these: run together, a tree takes
log₂ r launches where a row takes r. So the whole run becomes one block, neighbours first, the rest of the chain is
planned around it, and what comes out is taken if it is cheaper by the prices of `levels`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..bracket import Action, Bracket, Mode, multiply
from ..factor import Factor
from ..levels import prices_by_level, runs_together, unnamed
from ..problem import Problem

LEAST = 8  # equal links that make a run
LONGEST_PERIOD = 8  # factors of one link
SOLVED_WHOLE = 100  # factors of a chain that a strategy is always given whole

Sequential = Callable[[Problem], list[Bracket]]


def with_repeats(problem: Problem, sequential: Sequential) -> list[Bracket]:
    """The better of two plans: that of a strategy, and that in which runs of equal links are multiplied by levels.

    Of a long chain the strategy is asked with runs cut short. If it carries a block through all of what is left of a
    run, it does so through the whole, since the price of that grows with the links as that of what it is compared with.

    Args:
        problem: What is to be planned.
        sequential: The strategy.

    Returns:
        The brackets.
    """
    runs = repeats(problem.factors) if problem.associative and runs_together(problem) else []
    if not runs:
        return sequential(problem)
    brackets = None if problem.length <= SOLVED_WHOLE else _swept(problem, runs, sequential)
    plans = sequential(problem) if brackets is None else brackets, _by_levels(problem, runs, sequential)
    return min(plans, key=lambda plan: sum(prices_by_level(problem, _in_order(plan))))


class Run(NamedTuple):
    """Equal links that follow one another."""

    first: int  # factor, from 1
    period: int  # factors of a link
    links: int

    @property
    def last(self) -> int:
        """Its last factor."""
        return self.first + self.period * self.links - 1


def repeats(factors: Sequence[Factor]) -> list[Run]:
    """Return the runs of a chain, the longest from the left, of the shortest period each."""
    numbers: dict[Factor, int] = {}
    kinds = [numbers.setdefault(unnamed(factor), len(numbers)) for factor in factors]
    runs: list[Run] = []
    place = 0
    while place < len(kinds):
        found = [_run_at(kinds, place, period) for period in range(1, LONGEST_PERIOD + 1)]
        best = max(found, key=lambda run: (run.period * run.links if run.links >= LEAST else 0, -run.period))
        if best.links >= LEAST:
            runs.append(best)
            place = best.last
        else:
            place += 1
    return runs


def _run_at(kinds: Sequence[int], place: int, period: int) -> Run:
    end = place + period
    while end < len(kinds) and kinds[end] == kinds[end - period]:
        end += 1
    return Run(place + 1, period, (min(end, len(kinds)) - place) // period)


def _swept(problem: Problem, runs: Sequence[Run], sequential: Sequential) -> list[Bracket] | None:
    """Return the plan of the chain with runs cut short, made one for the whole; None if it splits a run at its cut."""
    places: list[int] = []  # of the factors that stay, from 1
    place = 1
    for run in runs:
        ends = 2 * run.period  # two links at either end
        places += [*range(place, run.first + ends), *range(run.last - ends + 1, run.last + 1)]
        place = run.last + 1
    places += range(place, problem.length + 1)
    short = replace(problem, factors=tuple(problem.factors[index - 1] for index in places))
    brackets: list[Bracket] = []
    for bracket in sequential(short):
        j, i = places[bracket.j - 1], places[bracket.i - 1]
        k = places[bracket.k - 1]  # where the upstream block ends, or a pull begins
        if bracket.action is not Action.ACCUMULATE:
            after = places[bracket.k]
            if bracket.action is Action.MULTIPLY and after != k + 1:
                return None
            k = after - 1 if bracket.mode is Mode.ADJOINT else k
        brackets.append(bracket._replace(j=j, k=k, i=i))
    return brackets if all(map(problem.allows, brackets)) else None


def _by_levels(problem: Problem, runs: Sequence[Run], sequential: Sequential) -> list[Bracket]:
    """Return the plan in which each run is one block, multiplied by levels."""
    spans: list[tuple[int, int]] = []  # the factors that each link of the shorter chain stands for
    brackets: list[Bracket] = []
    factors: list[Factor] = []
    place = 1
    for run in runs:
        spans += [(index, index) for index in range(place, run.first)]
        factors += problem.factors[place - 1 : run.first - 1]
        brackets += _tree(problem, run, sequential)
        spans.append((run.first, run.last))
        factors.append(_block(problem, run))
        place = run.last + 1
    spans += [(index, index) for index in range(place, problem.length + 1)]
    factors += problem.factors[place - 1 :]
    for bracket in sequential(replace(problem, factors=tuple(factors))):
        first, last = spans[bracket.i - 1], spans[bracket.j - 1]
        if bracket.action is Action.ACCUMULATE and last[0] != last[1]:
            continue  # the block of a run, which is there
        brackets.append(bracket._replace(j=last[1], k=spans[bracket.k - 1][1], i=first[0]))
    return brackets


def _block(problem: Problem, run: Run) -> Factor:
    """Return what the rest of a chain sees of a run: a Jacobian that is there, and that nothing is carried through."""
    structure = problem.structure(run.last, run.first)
    shared = all(factor.shared for factor in problem.factors[run.first - 1 : run.last])
    return Factor(structure.n, structure.m, structure=structure, given=True, shared=shared)


def _tree(problem: Problem, run: Run, sequential: Sequential) -> list[Bracket]:
    """Return the brackets of a run: those of each link, then of neighbours, level by level."""
    link = replace(problem, factors=problem.factors[run.first - 1 : run.first - 1 + run.period])
    inside = sequential(link)
    starts = range(run.first, run.last + 1, run.period)
    brackets = [_moved(bracket, start - 1) for start in starts for bracket in inside]
    blocks = [(start, start + run.period - 1) for start in starts]  # first and last factor of each
    while len(blocks) > 1:
        joined = [(one[0], other[1]) for one, other in zip(blocks[::2], blocks[1::2], strict=False)]
        pairs = zip(blocks[::2], blocks[1::2], strict=False)
        brackets += [multiply(other[1], one[1], one[0]) for one, other in pairs]
        blocks = joined + blocks[2 * len(joined) :]
    return brackets


def _moved(bracket: Bracket, by: int) -> Bracket:
    return bracket._replace(j=bracket.j + by, k=bracket.k + by, i=bracket.i + by)


def _in_order(brackets: Sequence[Bracket]) -> list[Bracket]:
    """Return brackets with operands before results: a block of fewer factors before one of more."""
    return sorted(brackets, key=lambda bracket: (bracket.j - bracket.i, bracket.i))
