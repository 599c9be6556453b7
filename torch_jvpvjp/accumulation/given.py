"""Executing a plan on elemental Jacobians that are given as matrices: a chain product in the planned order."""

from __future__ import annotations

from collections.abc import Sequence

from .bracket import Action, Mode
from .plan import Plan
from .structure import Block, product


def multiply_given(plan: Plan, jacobians: Sequence[Block]) -> tuple[Block, int]:
    """The product J_q · … · J_1 of given matrices, each held in its structure, in the order of a plan.

    A factor that a plan carries a block through is multiplied by as the matrix that it is.

    Args:
        plan: A plan for factors of these structures.
        jacobians: J_1 .. J_q.

    Returns:
        The product, and the fused multiply-adds that were done, counted as they were done.

    Raises:
        ValueError: If the plan is for another chain.
    """
    structures = [block.structure for block in jacobians]
    if structures != [factor.jacobian for factor in plan.factors]:
        raise ValueError(
            f"multiply_given: jacobians must have the structures of the plan's {len(plan.factors)} factors, got "
            f"{', '.join(str(structure) for structure in structures)}."
        )
    done = _Count()
    blocks: dict[tuple[int, int], Block] = {}
    for step in plan.steps:
        decision = step.decision
        operands = [blocks.pop(span) for span in decision.operands]  # upstream first
        if decision.action is Action.ACCUMULATE:
            block = jacobians[decision.j - 1]
        elif decision.action is Action.MULTIPLY:
            upstream, downstream = operands
            block = done.multiply(downstream, upstream)
        else:
            (block,) = operands
            pulls = decision.mode is Mode.ADJOINT
            for index in reversed(decision.raw_factors) if pulls else decision.raw_factors:
                raw = jacobians[index - 1]
                block = done.multiply(block, raw) if pulls else done.multiply(raw, block)
        blocks[decision.span] = block
    return blocks[len(jacobians), 1], done.fma


class _Count:
    """Multiplies, and counts what it takes."""

    def __init__(self) -> None:
        self.fma = 0

    def multiply(self, left: Block, right: Block) -> Block:
        """Return the product of two blocks."""
        from .structure import multiply

        self.fma += product(left.structure, right.structure).fma
        return multiply(left, right)
