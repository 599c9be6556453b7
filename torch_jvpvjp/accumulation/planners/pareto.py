"""The least price under a limit on held entries, and the least peak, exactly.

Three programs, each of which spares the next some work. The plan of the least price may keep to the limit as it is, in
the order that holds least. If not, the best plan that forms one operand of a product after the other gives a bound; it
comes from Pareto fronts of price and peak (`fronts`). Then plans are searched whose operands are formed side by side,
one waiting at a valley while the other climbs (`interleaved`), which can hold less and is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..bracket import Bracket
from ..infeasible import InfeasiblePlanError
from ..problem import Problem
from ..profiles import least_peak_order
from ..structure import Structure
from .fronts import Fronts, Point, Prices, brackets_of
from .interleaved import Interleaved

Sequential = Callable[[Problem], list[Bracket]]


def least_price(problem: Problem) -> list[Bracket]:
    """Return the plan of the least price for a chain whose structures depend on the bracketing; no limit is kept."""
    best = Fronts(problem, None, trade=False).best()
    assert best is not None
    return brackets_of(best)


def least_price_within(problem: Problem, sequential: Sequential) -> list[Bracket]:
    """The plan of the least price that keeps to peak_entries.

    Args:
        problem: What is to be planned.
        sequential: Finds the plan of the least price without a limit.

    Returns:
        The brackets, in the order that holds least.

    Raises:
        InfeasiblePlanError: If there is none.
    """
    limit = problem.peak_entries
    assert limit is not None
    peak, order = _ordered(problem, sequential(problem))
    if peak <= limit:
        return order
    prices = Prices()
    first = Fronts(problem, limit, trade=True, prices=prices).best()
    better = Interleaved(problem, limit, bound=None if first is None else first.cost, prices=prices).best()
    best = better or first
    if best is not None:
        return _ordered(problem, brackets_of(best))[1]
    smallest = _least_peak(problem)
    raise InfeasiblePlanError(
        f"plan: no plan holds at most peak_entries={limit} entries of computed blocks at every step; the smallest "
        f"feasible budget is {smallest}.",
        smallest=smallest,
    )


def least_peak(problem: Problem, sequential: Sequential) -> list[Bracket]:
    """The plan of the least peak and, of those, of the least price.

    Args:
        problem: What is to be planned.
        sequential: Finds the plan of the least price without a limit.

    Returns:
        The brackets, in the order that holds least.

    Raises:
        InfeasiblePlanError: If even the least peak exceeds peak_entries.
    """  # noqa: DOC502 (raised by least_price_within)
    smallest = _least_peak(problem)
    if problem.peak_entries is None or smallest <= problem.peak_entries:
        problem = replace(problem, peak_entries=smallest)
    return least_price_within(problem, sequential)


def _least_peak(problem: Problem) -> int:
    first = Fronts(problem, None, trade=False, priced=False).best()
    assert first is not None
    peaks = [first.peak, _ordered(problem, brackets_of(first))[0]]
    better: Point | None = Interleaved(problem, min(peaks) - 1, priced=False).best()
    return min(peaks) if better is None else better.peak


def _ordered(problem: Problem, brackets: list[Bracket]) -> tuple[int, list[Bracket]]:
    """Return the least peak of one plan, and its steps in the order that reaches it."""
    chosen = {bracket.span: bracket for bracket in brackets}
    order = [(problem.length, 1)]
    for span in order:  # results before operands; grows while it is walked
        order += chosen[span].operands
    structures: dict[tuple[int, int], Structure] = {}
    held: dict[tuple[int, int], int] = {}
    for span in reversed(order):
        structures[span] = problem.outcome(chosen[span], [structures[part] for part in chosen[span].operands])
        held[span] = problem.held(chosen[span], structures[span])
    return least_peak_order([chosen[span] for span in reversed(order)], held)
