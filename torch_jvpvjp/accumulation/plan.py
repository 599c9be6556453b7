"""A plan: how one Jacobian is accumulated, step by step; immutable, and it explains itself."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bracket import Action, Bracket, Mode
from .cost import Price
from .factor import Factor
from .structure import product
from .uncompiled import uncompiled

if TYPE_CHECKING:
    from .runtime import Runtime
    from .timetable import Slot
    from .timing import Verification


@dataclass(frozen=True)
class Step:
    """One row of a plan.

    Attributes:
        action: ACCUMULATE, MULTIPLY or ELIMINATE.
        mode: TANGENT, ADJOINT, COMPRESSED, CLOSED or GIVEN; None for a product.
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
        cost: Price of all steps, exact where it is an integer.
        peak_entries: Most entries of computed blocks held at one step, its result included; Jacobians that are given
            are resident and not counted, nor is what a sweep holds on its way. Where steps run on several workers, it
            is that of running them one after another.
        tape_limit: Entries that an adjoint sweep was allowed to hold, or None.
        matrix_free: Whether raw factors were allowed to be eliminated.
        input_shape: Shape of the x that the plan is for; None if it was made from sizes.
        output_shape: Shape of f(x); None if it was made from sizes.
        runtime: The function that the plan is for; None if it was made from sizes or loaded.
        peak_limit: Entries of computed blocks that were allowed to be held, or None.
        threads: Workers that the steps may run on at once, or None.
        batch: Samples that every step which is not shared by them is done for.
        unit: What `cost` counts.
        timetable: For each step when it runs on which worker, if `threads` was given.
    """

    factors: tuple[Factor, ...]
    steps: tuple[Step, ...]
    objective: str
    strategy: str
    cost: Price
    peak_entries: int
    tape_limit: int | None = None
    matrix_free: bool = True
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    runtime: Runtime | None = field(default=None, compare=False, repr=False)
    peak_limit: int | None = None
    threads: int | None = None
    batch: int = 1
    unit: str = "fma"
    timetable: tuple[Slot, ...] | None = None

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The sizes d_0 .. d_q."""
        return (self.factors[0].n, *(factor.m for factor in self.factors))

    @property
    def fma(self) -> int:
        """Fused multiply-adds of all steps, whatever the objective."""
        return sum(step.fma for step in self.steps)

    @cached_property
    def peak_bytes(self) -> int | None:
        """Bytes that a call holds at most beyond x and parameters: primal values, tapes, sweeps, blocks, the result.

        The first call and later ones, which replay what it did: indices, constants and code of products that are kept
        for them count. Told by executing the plan once on tensors without data, when this is first asked for or memory
        is limited; a plan prints it from then on. What an op needs for itself while it runs is counted for convolutions
        only. None for a plan without a function, and for one that calls a part of it as it stands.
        """
        return None if self.runtime is None else self.runtime.peak_bytes(self)

    @cached_property
    def seconds(self) -> float | None:
        """Seconds that a call is predicted to take: those of its steps and of f itself, which no step is priced for.

        None for a plan without a function, or by another objective than "time".
        """
        if self.runtime is None or self.unit != "s":
            return None
        return float(self.cost) + self.runtime.primal_seconds()

    @property
    def makespan(self) -> Price | None:
        """When the last step ends if steps run on `threads` workers, in the unit of the cost; None without threads."""
        return None if self.timetable is None else max(slot.end for slot in self.timetable)

    @property
    def tangent_fma(self) -> int | None:
        """The fma of all tangents as in jacfwd, d_0 · Σ T; of J_q (… (J_2 J_1)) where all is given."""
        costs = [factor.jvp_cost for factor in self.factors]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return self._given_fma(self.factors, flip=False)
        return self.dims[0] * sum(known) * self.batch

    @property
    def adjoint_fma(self) -> int | None:
        """The fma of all adjoints as in jacrev, d_q · Σ A; of ((J_q J_q-1) …) J_1 where all is given."""
        costs = [factor.vjp_cost for factor in self.factors]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return self._given_fma(self.factors[::-1], flip=True)
        return self.dims[-1] * sum(known) * self.batch

    def _given_fma(self, factors: tuple[Factor, ...], *, flip: bool) -> int | None:
        if not all(factor.given for factor in factors):
            return None
        block, fma, shared = factors[0].jacobian, 0, factors[0].shared
        for factor in factors[1:]:
            joined = product(block, factor.jacobian) if flip else product(factor.jacobian, block)
            shared = shared and factor.shared
            block, fma = joined.result, fma + joined.fma * (1 if shared else self.batch)
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
                if decision.mode is not Mode.ADJOINT:
                    for index in decision.raw_factors:
                        block = f"(F{index} {block})"
                else:
                    for index in reversed(decision.raw_factors):
                        block = f"({block} F{index})"
                text[decision.span] = block
        return text[len(self.factors), 1]

    @uncompiled
    def __call__(self, x: Any) -> Any:
        """The Jacobian at x, as `jacobian` returns it: of shape (*output_shape, *input_shape) for a tensor in and out.

        The first call records what is done as one straight line of tensor operations; later calls replay it. Parameters
        are read anew each time; where anything else that the function refers to has changed, it is recorded again.

        Args:
            x: Of the shape (or tree of shapes) that the plan was made for; dtype and device may differ.

        Returns:
            The Jacobian, in the dtype of f(x).

        Raises:
            ValueError: If the plan has no function, or x or the function is not what the plan was made for.
            TypeError: If x is not a floating tensor.
        """  # noqa: DOC502 (the last two are raised by the runtime)
        runtime = self.runtime or self._callable("called")
        return runtime(self, x)

    def compile(self, mode: str | None = None) -> Plan:
        """The same plan, whose calls run what it does compiled by Inductor, the compiler behind `torch.compile`.

        Args:
            mode: As in `torch.compile`; "reduce-overhead" replays CUDA graphs.

        Returns:
            The plan. Its first call records, its second compiles.

        Raises:
            ValueError: If the plan has no function, or one that cannot be recorded and hence not be compiled, or
                the mode is unknown.
        """  # noqa: DOC502 (raised further down)
        return replace(self, runtime=self._callable("compiled").compiled(mode))

    def verify(self, x: Any) -> Verification:
        """Run the plan at x and compare the time that the model predicts for each step and a call with what they took.

        Args:
            x: As in a call.

        Returns:
            The comparison; print it.

        Raises:
            ValueError: If the plan has no function, or x or the function is not what the plan was made for.
        """  # noqa: DOC502 (raised further down)
        return self._callable("verified").verify(self, x)

    def _callable(self, done: str) -> Runtime:
        """What stands behind a plan that can be called.

        Args:
            done: What is to be done with it.

        Returns:
            The function.

        Raises:
            ValueError: If the plan has none.
        """
        if self.runtime is None:
            raise ValueError(
                f"Plan: to be {done}, a plan must be made for a chain of callables, got one that was made from sizes "
                f"or loaded from a file; use jacobian(f, x, plan=plan)."
            )
        return self.runtime

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
