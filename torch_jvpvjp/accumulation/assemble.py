"""From the brackets that a strategy chose to a plan: checked, ordered and priced, whoever chose them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from .bracket import Action, Bracket, Mode
from .cost import Fma, check_finite
from .infeasible import InfeasiblePlanError
from .levels import prices_by_level
from .plan import Plan, Step
from .problem import Problem, is_compressible
from .profiles import least_peak_order
from .structure import Structure
from .timetable import timetable

_Span = tuple[int, int]


def assemble(problem: Problem, brackets: Iterable[Bracket], *, strategy: str) -> Plan:
    """Make a plan of a set of brackets.

    Args:
        problem: What the brackets are a plan for.
        brackets: One bracket for each step, in any order.
        strategy: Who chose them.

    Returns:
        The plan, its steps ordered so that operands come before results and few entries are held at once.

    Raises:
        ValueError: If the brackets are not one plan of the whole chain, or one of them is not allowed.
        InfeasiblePlanError: If they hold more than peak_entries.
        OverflowError: If a float cannot hold the price.
    """  # noqa: DOC502 (two are raised further down)
    chosen = _checked(problem, brackets, strategy)
    structures = _structures(problem, chosen, strategy)
    held = {span: problem.held(bracket, structures[span]) for span, bracket in chosen.items()}
    if problem.least_peak or problem.peak_entries is not None:
        peak, order = least_peak_order(list(chosen.values())[::-1], held)
    else:
        order, peak = _order(problem, chosen, held)
    if problem.peak_entries is not None and peak > problem.peak_entries:
        raise InfeasiblePlanError(
            f"plan: the plan of strategy {strategy!r} holds {peak} entries, which peak_entries={problem.peak_entries} "
            f"does not allow; the smallest feasible budget for this strategy is {peak}, "
            f"strategy='dynamic_programming' plans within the limit.",
            smallest=peak,
        )
    operands = {bracket.span: [structures[span] for span in bracket.operands] for bracket in order}
    prices = prices_by_level(problem, order, operands)
    check_finite(sum(prices))
    counter = problem if type(problem.objective) is Fma else replace(problem, objective=Fma())
    counts = prices if counter is problem else [counter.price(b, operands[b.span]) for b in order]
    return Plan(
        factors=tuple(problem.factors),
        steps=tuple(_step(b, structures[b.span], int(fma)) for b, fma in zip(order, counts, strict=True)),
        objective=problem.objective.name,
        strategy=strategy,
        cost=sum(prices),
        peak_entries=peak,
        tape_limit=problem.tape_limit,
        matrix_free=problem.matrix_free,
        peak_limit=problem.peak_entries,
        threads=problem.threads,
        batch=problem.batch,
        unit=problem.objective.unit,
        timetable=None if problem.threads is None else timetable(order, prices, problem.threads),
    )


def _checked(problem: Problem, brackets: Iterable[Bracket], strategy: str) -> dict[_Span, Bracket]:
    """The brackets by the block they compute, results before operands, once they are known to be one plan.

    Args:
        problem: What they are a plan for.
        brackets: The brackets.
        strategy: Who chose them.

    Returns:
        The brackets.

    Raises:
        TypeError: If they are no brackets.
        ValueError: If they are not one plan of the whole chain, or one of them is not allowed.
    """
    chosen: dict[_Span, Bracket] = {}
    listed = list(brackets) if isinstance(brackets, Iterable) else [brackets]
    for bracket in listed:
        if not isinstance(bracket, Bracket):
            raise TypeError(f"plan: strategy {strategy!r} must return a Bracket for each step, got {bracket!r}.")
        if bracket.span in chosen:
            raise ValueError(f"plan: strategy {strategy!r} must form each block once, got {bracket.span} twice.")
        chosen[bracket.span] = bracket
    needed = [(problem.length, 1)]
    for span in needed:  # grows while it is walked
        if span not in chosen:
            raise ValueError(f"plan: strategy {strategy!r} must form every block it uses, got no step for {span}.")
        bracket = chosen[span]
        inside = bracket.i <= bracket.k < bracket.j
        if inside == (bracket.action is Action.ACCUMULATE) or not problem.allows(bracket):
            raise ValueError(_not_allowed(problem, bracket, strategy))
        needed += bracket.operands
    if len(needed) != len(chosen):
        unused = sorted(set(chosen) - set(needed))
        raise ValueError(f"plan: strategy {strategy!r} must return the steps of one plan, got unused blocks {unused}.")
    return {span: chosen[span] for span in needed}


def _not_allowed(problem: Problem, bracket: Bracket, strategy: str) -> str:
    return (
        f"plan: strategy {strategy!r} must take allowed steps only, got {bracket} with "
        f"tape_limit={problem.tape_limit}, matrix_free={problem.matrix_free}."
    )


def _structures(problem: Problem, chosen: dict[_Span, Bracket], strategy: str) -> dict[_Span, Structure]:
    """The structure of every block, as these steps make it.

    Args:
        problem: What the brackets are a plan for.
        chosen: The brackets, results before operands.
        strategy: Who chose them.

    Returns:
        The structures by block.

    Raises:
        ValueError: If a dense block is to be compressed.
    """
    structures: dict[_Span, Structure] = {}
    for span, bracket in reversed(chosen.items()):
        structures[span] = problem.outcome(bracket, [structures[operand] for operand in bracket.operands])
        if bracket.mode is Mode.COMPRESSED and not is_compressible(structures[span]):
            raise ValueError(_not_allowed(problem, bracket, strategy))
    return structures


def _order(problem: Problem, chosen: dict[_Span, Bracket], held: dict[_Span, int]) -> tuple[list[Bracket], int]:
    """Return a depth-first order that holds few entries, and its peak.

    The peak is the most entries of computed blocks that are held at one step, its result included; Jacobians that are
    given are resident and not counted. With operands a and b of peaks P and entries E, the one evaluated first is held
    while the other is: P(a b) = max(P_a, E_a + P_b, E_a + E_b + E_result). The upstream operand comes first, unless the
    other order holds less and no raw factor of the upstream operand is in tangent mode: tangents are pushed along with
    the primal run, which should not have gone past.
    """
    peaks: dict[_Span, int] = {}
    operands: dict[_Span, list[_Span]] = {}
    pushed: set[_Span] = set()  # blocks that meet a raw factor in tangent mode
    for span, bracket in reversed(chosen.items()):  # operands before results, since _checked walked from the root
        orders = [bracket.operands]
        if not any(operand in pushed for operand in bracket.operands[:1]):
            orders.append(bracket.operands[::-1])
        pushes = bracket.mode is not None and bracket.mode.pushes
        if pushes or any(operand in pushed for operand in bracket.operands):
            pushed.add(span)
        peak, first = min((_peak_of(order, peaks, held), place) for place, order in enumerate(orders))
        operands[span] = orders[first]
        peaks[span] = max(peak, sum(held[operand] for operand in bracket.operands) + held[span])
    root: _Span = (problem.length, 1)
    order: list[Bracket] = []
    pending: list[tuple[_Span, bool]] = [(root, False)]
    while pending:  # depth first, without recursion
        span, ready = pending.pop()
        if ready:
            order.append(chosen[span])
            continue
        pending.append((span, True))
        pending += [(operand, False) for operand in reversed(operands[span])]
    return order, peaks[root]


def _peak_of(order: list[_Span], peaks: dict[_Span, int], held: dict[_Span, int]) -> int:
    """Return the peak of evaluating blocks one after another and keeping each."""
    peak = kept = 0
    for span in order:
        peak, kept = max(peak, kept + peaks[span]), kept + held[span]
    return peak


def _step(bracket: Bracket, structure: Structure, fma: int) -> Step:
    return Step(
        action=bracket.action,
        mode=bracket.mode,
        bracket=(bracket.j, bracket.k, bracket.i),
        shape=(structure.m, structure.n),
        fma=fma,
        structure=structure.name,
    )
