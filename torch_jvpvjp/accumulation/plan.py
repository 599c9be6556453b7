"""A plan: how one Jacobian is accumulated, step by step; immutable, and it explains itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from .bracket import Action, Bracket, Mode
from .factor import Factor
from .structure import product

if TYPE_CHECKING:
    from .chain import Chain
    from .schedule import Schedule


@dataclass(frozen=True)
class Step:
    """One row of a plan.

    Attributes:
        action: ACCUMULATE, MULTIPLY or ELIMINATE.
        mode: TANGENT, ADJOINT or GIVEN; None for a product.
        bracket: (j, k, i): the block J_j … J_i, made as (J_j … J_k+1)(J_k … J_i); factors count from 1.
        shape: Shape (m, n) of the block.
        fma: Fused multiply-adds, exact.
        structure: Name of the structure of the block.
    """

    action: Action
    mode: Mode | None
    bracket: tuple[int, int, int]
    shape: tuple[int, int]
    fma: int
    structure: str = "dense"

    @property
    def decision(self) -> Bracket:
        """The step without its price."""
        return Bracket(self.action, self.mode, *self.bracket)


@dataclass(frozen=True)
class Plan:
    """How the Jacobian of a chain is accumulated. `print(plan)` explains it; `plan(x)` executes it.

    Attributes:
        factors: The chain as the planner saw it, F_1 first.
        steps: What is done, in order.
        objective: Name of what `cost` counts.
        strategy: Name of the strategy that chose the steps.
        cost: Price of all steps, exact.
        peak_entries: Most entries of computed blocks held at one step, its result included; Jacobians that are given
            are resident and not counted, nor is what a sweep holds on its way.
        tape_limit: Entries that an adjoint sweep was allowed to hold, or None.
        matrix_free: Whether raw factors were allowed to be eliminated.
        input_shape: Shape of the x that the plan is for; None if it was made from sizes.
        output_shape: Shape of f(x); None if it was made from sizes.
        chain: The callables that the plan is for; None if it was made from sizes or loaded.
    """

    factors: tuple[Factor, ...]
    steps: tuple[Step, ...]
    objective: str
    strategy: str
    cost: int
    peak_entries: int
    tape_limit: int | None = None
    matrix_free: bool = True
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    chain: Chain | None = field(default=None, compare=False, repr=False)

    @cached_property
    def schedules(self) -> dict[tuple[bool, ...], Schedule]:
        """What the executor worked out of the steps; kept between calls, and no part of the plan's value."""
        return {}

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The sizes d_0 .. d_q."""
        return (self.factors[0].n, *(factor.m for factor in self.factors))

    @property
    def fma(self) -> int:
        """Fused multiply-adds of all steps, whatever the objective."""
        return sum(step.fma for step in self.steps)

    @property
    def tangent_fma(self) -> int | None:
        """The fma of all tangents as in jacfwd, d_0 · Σ T; of J_q (… (J_2 J_1)) where all is given."""
        costs = [factor.jvp_cost for factor in self.factors]
        known = [cost for cost in costs if cost is not None]
        return self.dims[0] * sum(known) if len(known) == len(costs) else self._given_fma(self.factors, flip=False)

    @property
    def adjoint_fma(self) -> int | None:
        """The fma of all adjoints as in jacrev, d_q · Σ A; of ((J_q J_q-1) …) J_1 where all is given."""
        costs = [factor.vjp_cost for factor in self.factors]
        known = [cost for cost in costs if cost is not None]
        return (
            self.dims[-1] * sum(known) if len(known) == len(costs) else self._given_fma(self.factors[::-1], flip=True)
        )

    @staticmethod
    def _given_fma(factors: tuple[Factor, ...], *, flip: bool) -> int | None:
        if not all(factor.given for factor in factors):
            return None
        block, fma = factors[0].jacobian, 0
        for factor in factors[1:]:
            joined = product(block, factor.jacobian) if flip else product(factor.jacobian, block)
            block, fma = joined.result, fma + joined.fma
        return fma

    def bracketing(self) -> str:
        """Return the association as text, such as "((F3 F2) F1)"."""
        text: dict[tuple[int, int], str] = {}
        for step in self.steps:
            decision = step.decision
            if decision.action is Action.ACCUMULATE:
                text[decision.span] = f"F{decision.j}"
            elif decision.action is Action.MULTIPLY:
                upstream, downstream = decision.operands
                text[decision.span] = f"({text.pop(downstream)} {text.pop(upstream)})"
            else:
                block = text.pop(decision.operands[0])
                if decision.mode is Mode.TANGENT:
                    for index in decision.raw_factors:
                        block = f"(F{index} {block})"
                else:
                    for index in reversed(decision.raw_factors):
                        block = f"({block} F{index})"
                text[decision.span] = block
        return text[len(self.factors), 1]

    def __call__(self, x: Tensor) -> Tensor:
        """The Jacobian at x, of shape (*output_shape, *input_shape).

        Args:
            x: Floating tensor of the shape that the plan was made for.

        Returns:
            The Jacobian, in the dtype of f(x).

        Raises:
            ValueError: If the plan has no callables, or x has another shape.
            TypeError: If x is not a floating tensor.
        """  # noqa: DOC502 (the last two are raised by execute)
        from .execute import execute

        if self.chain is None:
            raise ValueError(
                "Plan: to be called, a plan must be made for a chain of callables, got one that was made from sizes or "
                "loaded from a file; use jacobian(f, x, plan=plan)."
            )
        return execute(self, self.chain, x)

    def to_json(self) -> str:
        """Return the plan as JSON, without its callables."""
        from .serialise import plan_to_json

        return plan_to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote; execute it by `jacobian(f, x, plan=plan)`.

        Args:
            text: What `to_json` returned.

        Returns:
            The plan, checked and priced again.

        Raises:
            ValueError: If the text is not a plan, or its recorded cost is not that of its steps.
        """  # noqa: DOC502 (raised by plan_from_json)
        from .serialise import plan_from_json

        return plan_from_json(text)

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, as JSON."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Return the plan that `save` wrote."""
        return cls.from_json(Path(path).read_text(encoding="utf-8"))

    def plot(self, path: str | Path) -> None:
        """Draw the bracket tree with sizes and costs into an image file; needs matplotlib."""
        from .drawing import save_drawing

        save_drawing(self, path)

    def __str__(self) -> str:
        from .show import plan_text

        return plan_text(self)

    def _repr_html_(self) -> str:
        from .show import plan_html

        return plan_html(self)
