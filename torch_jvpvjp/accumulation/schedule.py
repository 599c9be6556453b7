"""From the steps of a plan to what is run: sweeps over regions, and products."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .bracket import Action, Bracket, Mode

Span = tuple[int, int]


class Task(NamedTuple):
    """One thing to do: a product of two blocks, or a sweep of one block over regions."""

    brackets: tuple[Bracket, ...]  # the steps of the plan that it does
    operands: list[Span]  # two for a product, downstream first; one or none for a sweep
    mode: Mode | None  # None for a product
    places: range  # the regions, from 0, in the order of the primal run

    @property
    def result(self) -> Span:
        """The block that it makes."""
        return self.brackets[-1].span


def schedule(brackets: Iterable[Bracket]) -> list[Task]:
    """The tasks of a plan, in order.

    A sweep that starts from the Jacobian of one factor, formed in the same mode, is one sweep that starts from the
    identity: the same arithmetic, which can then be cut into chunks of columns as a whole.

    Args:
        brackets: The steps of the plan, in order.

    Returns:
        The tasks.
    """
    tasks: list[Task] = []
    for bracket in brackets:
        factors, operands = bracket.raw_factors, bracket.operands[::-1]
        steps = (bracket,)
        leaf = tasks[-1].brackets[-1] if tasks else None
        if bracket.action is Action.ELIMINATE and leaf is not None and _begins(leaf, bracket):
            factors = range(min(leaf.i, factors[0]), max(leaf.i, factors[-1]) + 1)
            operands, steps = [], (*tasks.pop().brackets, bracket)
        places = range(factors[0] - 1, factors[-1]) if factors else range(0)
        tasks.append(Task(steps, operands, bracket.mode, places))
    return tasks


def modes(tasks: Sequence[Task], count: int) -> list[Mode]:
    """Return how the derivative of each of `count` regions is used."""
    found = [Mode.TANGENT] * count
    for task in tasks:
        for place in task.places:
            if place < count:  # a constant function has a factor and no region
                found[place] = task.mode or Mode.TANGENT
    return found


def _begins(leaf: Bracket, sweep: Bracket) -> bool:
    return (
        leaf.action is Action.ACCUMULATE
        and leaf.mode is sweep.mode
        and leaf.mode in {Mode.TANGENT, Mode.ADJOINT}
        and sweep.operands == [leaf.span]
    )
