"""Forward: from the input to the output, as `jacfwd` goes."""

from __future__ import annotations

from ..bracket import Bracket, Mode, accumulate, multiply, push
from ..problem import Problem
from .registry import register_strategy


@register_strategy("forward")
def forward(problem: Problem) -> list[Bracket]:
    """Form J_1, then carry it to the output: J_q (… (J_2 J_1)).

    Runs of factors that can be pushed through are one tangent sweep each; the others are formed and multiplied.

    Args:
        problem: What is to be planned.

    Returns:
        The brackets.

    Raises:
        ValueError: If a factor can be formed neither in closed form nor by tangents.
    """  # noqa: DOC502 (raised by _leaf)
    brackets = [_leaf(problem, 1)]
    last = 1  # the block J_last … J_1 is formed
    while last < problem.length:
        end = last
        while end < problem.length and problem.can_push(end + 1):
            end += 1
        if end > last:
            brackets.append(push(end, last, 1))
            last = end
        else:
            brackets += [_leaf(problem, last + 1), multiply(last + 1, last, 1)]
            last += 1
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
    modes = [mode for mode in problem.leaf_modes(index) if mode not in {Mode.ADJOINT, Mode.COMPRESSED}]
    if not modes:
        raise ValueError(
            f"forward: factor F{index} must have a tangent evaluation, got none; use strategy='dynamic_programming'."
        )
    return min((accumulate(index, mode) for mode in modes), key=problem.price)
