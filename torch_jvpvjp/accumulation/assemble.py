"""From the brackets that a strategy chose to a plan: checked, ordered and priced, whoever chose them."""

from __future__ import annotations

from collections.abc import Iterable

from .bracket import Action, Bracket, Mode
from .cost import Fma
from .plan import Plan, Step
from .problem import Problem

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
    """  # noqa: DOC502 (raised by _checked)
    chosen = _checked(problem, brackets, strategy)
    order, peak = _order(problem, chosen)
    counter = Problem(problem.factors, Fma(), problem.tape_limit, problem.matrix_free)
    steps = tuple(_step(counter, bracket) for bracket in order)
    return Plan(
        factors=tuple(problem.factors),
        steps=steps,
        objective=problem.objective.name,
        strategy=strategy,
        cost=sum(problem.price(bracket) for bracket in order),
        peak_entries=peak,
        tape_limit=problem.tape_limit,
        matrix_free=problem.matrix_free,
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
        ValueError: If they are not one plan of the whole chain, or one of them is not allowed.
    """
    chosen: dict[_Span, Bracket] = {}
    for bracket in brackets:
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
            raise ValueError(
                f"plan: strategy {strategy!r} must take allowed steps only, got {bracket} with "
                f"tape_limit={problem.tape_limit}, matrix_free={problem.matrix_free}."
            )
        needed += bracket.operands
    if len(needed) != len(chosen):
        unused = sorted(set(chosen) - set(needed))
        raise ValueError(f"plan: strategy {strategy!r} must return the steps of one plan, got unused blocks {unused}.")
    return {span: chosen[span] for span in needed}


def _order(problem: Problem, chosen: dict[_Span, Bracket]) -> tuple[list[Bracket], int]:
    """Return a depth-first order that holds few entries, and its peak.

    The peak is the most entries of computed blocks that are held at one step, its result included; Jacobians that are
    given are resident and not counted. With operands a and b of peaks P and entries E, the one evaluated first is held
    while the other is: P(a b) = max(P_a, E_a + P_b, E_a + E_b + E_result). The upstream operand comes first, unless the
    other order holds less and no raw factor of the upstream operand is in tangent mode: tangents are pushed along with
    the primal run, which should not have gone past.
    """
    peaks: dict[_Span, int] = {}
    held: dict[_Span, int] = {}
    operands: dict[_Span, list[_Span]] = {}
    pushed: set[_Span] = set()  # blocks that meet a raw factor in tangent mode
    for span, bracket in reversed(chosen.items()):  # operands before results, since _checked walked from the root
        result = 0 if bracket.mode is Mode.GIVEN else problem.structure(*span).entries
        orders = [bracket.operands]
        if not any(operand in pushed for operand in bracket.operands[:1]):
            orders.append(bracket.operands[::-1])
        if bracket.mode is Mode.TANGENT or any(operand in pushed for operand in bracket.operands):
            pushed.add(span)
        peak, first = min((_peak_of(order, peaks, held), place) for place, order in enumerate(orders))
        operands[span], held[span] = orders[first], result
        peaks[span] = max(peak, sum(held[operand] for operand in bracket.operands) + result)
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


def _step(counter: Problem, bracket: Bracket) -> Step:
    structure = counter.structure(*bracket.span)
    return Step(
        action=bracket.action,
        mode=bracket.mode,
        bracket=(bracket.j, bracket.k, bracket.i),
        shape=(structure.m, structure.n),
        fma=counter.price(bracket),
        structure=structure.name,
    )
