"""From the steps of a plan to what is run: sweeps over stages, products, and where the primal run stops on its way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .bracket import Action, Bracket, Mode

Span = tuple[int, int]


class Unit(NamedTuple):
    """One stage, or neighbouring black boxes that one sweep crosses together."""

    first: int  # its factors, from 1
    last: int
    mode: Mode  # how its derivative will be used


class Task(NamedTuple):
    """One thing to do: a product of two blocks, or a sweep of one block over units."""

    result: Span
    operands: list[Span]  # two for a product, downstream first; one or none for a sweep
    mode: Mode | None  # None for a product
    units: range  # in the order of the primal run


class Schedule(NamedTuple):
    """What a plan runs."""

    tasks: list[Task]
    units: list[Unit]  # every stage in one of them, in the order of the primal run


def schedule(brackets: Iterable[Bracket], black: tuple[bool, ...]) -> Schedule:
    """Group the stages of each sweep, and let a sweep that continues a preaccumulation begin with it.

    A sweep that starts from the Jacobian of one factor, formed in the same mode, is one sweep that starts from the
    identity: the same arithmetic, in one call of `torch.func` instead of two where the stages are black boxes.

    Args:
        brackets: The steps of the plan, in order.
        black: Which stages are black boxes.

    Returns:
        The tasks, in order, and the units.
    """
    sweeps: list[tuple[Bracket, range, list[Span]]] = []
    for bracket in brackets:
        factors, operands = bracket.raw_factors, bracket.operands[::-1]
        leaf = sweeps[-1][0] if sweeps else None
        if bracket.action is Action.ELIMINATE and leaf is not None and _begins(leaf, bracket):
            factors = range(min(leaf.i, factors[0]), max(leaf.i, factors[-1]) + 1)
            operands = []
            sweeps.pop()
        sweeps.append((bracket, factors, operands))

    units = sorted(
        Unit(first, last, bracket.mode)
        for bracket, factors, _ in sweeps
        for first, last in _groups(factors, black)
        if bracket.mode is not None
    )
    place = {factor: index for index, unit in enumerate(units) for factor in range(unit.first, unit.last + 1)}
    tasks = [
        Task(
            bracket.span,
            operands,
            bracket.mode,
            range(place[factors[0]], place[factors[-1]] + 1) if factors else range(0),
        )
        for bracket, factors, operands in sweeps
    ]
    return Schedule(tasks, units)


def _begins(leaf: Bracket, sweep: Bracket) -> bool:
    return leaf.action is Action.ACCUMULATE and leaf.mode is sweep.mode and sweep.operands == [leaf.span]


def _groups(factors: range, black: tuple[bool, ...]) -> list[tuple[int, int]]:
    """Return the factors (first, last) of each unit of a sweep: runs of black boxes, and every other stage alone."""
    groups: list[tuple[int, int]] = []
    for factor in factors:
        if black[factor - 1] and groups and black[groups[-1][1] - 1]:
            groups[-1] = (groups[-1][0], factor)
        else:
            groups.append((factor, factor))
    return groups
