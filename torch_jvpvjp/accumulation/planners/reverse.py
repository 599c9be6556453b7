"""Reverse: from the output to the input, as `jacrev` goes."""

from __future__ import annotations

from ..bracket import Bracket, accumulate, multiply, pull
from ..problem import Problem
from .registry import register_strategy


@register_strategy("reverse")
def reverse(problem: Problem) -> list[Bracket]:
    """Form J_q, then carry it to the input: ((J_q J_q-1) …) J_1.

    Runs of factors that can be pulled through are one adjoint sweep, split where its tape would exceed the limit;
    the others are formed and multiplied.

    Args:
        problem: What is to be planned.

    Returns:
        The brackets.

    Raises:
        ValueError: If a factor can be formed neither in closed form nor by adjoints within the tape limit.
    """  # noqa: DOC502 (raised by _leaf)
    q = problem.length
    brackets = [_leaf(problem, q)]
    first = q  # the block J_q … J_first is formed
    while first > 1:
        end = first
        while end > 1 and problem.can_pull(end - 1) and problem.tape_fits(first - 1, end - 1):
            end -= 1
        if end < first:
            brackets.append(pull(q, first - 1, end))
            first = end
        else:
            brackets += [_leaf(problem, first - 1), multiply(q, first - 1, first - 1)]
            first -= 1
    return brackets


def _leaf(problem: Problem, index: int) -> Bracket:
    """The way this order forms one factor.

    Args:
        problem: What is to be planned.
        index: The factor, from 1.

    Returns:
        The ACCUMULATE step.

    Raises:
        ValueError: If there is none.
    """
    modes = [mode for mode in problem.leaf_modes(index) if not mode.pushes]
    if not modes and problem.factor(index).vjp_cost is None:
        raise ValueError(
            f"reverse: factor F{index} must have an adjoint evaluation, got none; use strategy='dynamic_programming'."
        )
    if not modes:
        raise ValueError(
            f"reverse: factor F{index} must have an adjoint evaluation whose tape fits tape_limit="
            f"{problem.tape_limit}, got a tape of {problem.factor(index).tape}; raise tape_limit or use "
            f"strategy='dynamic_programming'."
        )
    return min((accumulate(index, mode) for mode in modes), key=problem.price)
