"""Executing a plan at a point. The executor never chooses: it does what the plan says, and runs the primal once."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ._torch import inside_transform
from .bracket import Mode
from .linear_map import LinearMap
from .plan import Plan
from .schedule import Schedule, Span, Task, Unit, schedule
from .stages import BlackBox, Stage, recognise
from .structure import Block, Dense, multiply

if TYPE_CHECKING:
    from .chain import Chain


def execute(plan: Plan, chain: Chain, x: Tensor) -> Tensor:
    """Accumulate the Jacobian of a chain at x as the plan says.

    The result is detached from autograd, as that of `torch.autograd.functional.jacobian` is; inside a `torch.func`
    transform it is differentiated through.

    Args:
        plan: A plan for chains of these sizes.
        chain: A chain of callables.
        x: Floating tensor.

    Returns:
        The Jacobian, of shape (*F(x).shape, *x.shape) and the dtype of F(x).

    Raises:
        TypeError: If x is not a floating tensor, or a stage does not return one.
        ValueError: If the plan is for another chain or another shape, or a stage writes into its input.
    """  # noqa: DOC502 (some are raised further down)
    _check(plan, chain, x)
    stages = [recognise(function) for function in chain.functions]
    tasks, units = _schedule(plan, stages)
    with _grad_mode():
        if 0 in plan.dims:  # an empty value somewhere on the way: nothing depends on anything
            y = BlackBox.composed(stages)(x)
            return y.new_zeros((*y.shape, *x.shape))
        primal = _PrimalRun(units, stages, plan.dims, x)
        blocks: dict[Span, Block] = {}
        for task in tasks:
            operands = [blocks.pop(span) for span in task.operands]  # freed as soon as used
            blocks[task.result] = multiply(*operands) if task.mode is None else _sweep(task, operands, primal)
            del operands
        y, (block,) = primal.value, blocks.values()
        jacobian = block.dense().to(y.dtype).reshape((*y.shape, *x.shape))
        # The Jacobian of a lone Linear is its weight, which is not ours to hand out.
        return jacobian.clone() if tasks[-1].mode is Mode.GIVEN else jacobian.contiguous()


def _schedule(plan: Plan, stages: list[Stage]) -> Schedule:
    """Return what the plan runs, worked out once for each way that its stages are recognised."""
    black = tuple(isinstance(stage, BlackBox) for stage in stages)
    if black not in plan.schedules:
        plan.schedules[black] = schedule((step.decision for step in plan.steps), black)
    return plan.schedules[black]


def _sweep(task: Task, operands: list[Block], primal: _PrimalRun) -> Block:
    """Return the block that a sweep forms, or carries through its units."""
    block = operands[0] if operands else None
    if task.mode is Mode.GIVEN:
        return primal.given(task.units[0])
    if task.mode is Mode.TANGENT:
        for place in task.units:
            block = primal.push(place, block)
    else:
        for place in reversed(task.units):
            block = primal.pull(place, block)
    assert block is not None
    return block


class _PrimalRun:
    """The one primal run, advanced as far as the derivatives that are asked for need it."""

    def __init__(self, units: list[Unit], stages: list[Stage], dims: tuple[int, ...], x: Tensor) -> None:
        self.units = units
        self.stages = [
            stages[unit.first - 1] if unit.first == unit.last else BlackBox.composed(stages[unit.first - 1 : unit.last])
            for unit in units
        ]
        self.dims = dims
        self.value = x
        self._maps: list[LinearMap | None] = []  # one for each unit that was run; None once it was used

    def advance(self, count: int) -> None:
        """Run the primal up to and including the first `count` units, keeping their derivatives."""
        while len(self._maps) < count:
            place = len(self._maps)
            y, linear_map = self.stages[place].linearize(self.value, self.units[place].mode)
            self._arrive(place, y, linear_map)

    def given(self, place: int) -> Block:
        """The Jacobian of a unit that knows it.

        Args:
            place: The unit.

        Returns:
            Its Jacobian.

        Raises:
            ValueError: If it does not know it.
        """
        matrix = self._take(place).matrix()
        if matrix is None:
            raise ValueError(
                f"jacobian: the plan must fit the chain, but it takes the Jacobian of factor F{self.units[place].last} "
                f"as given and that of {self.stages[place].label} is not; make the plan for this chain and this x."
            )
        return matrix

    def push(self, place: int, block: Block | None) -> Block:
        """Return a block pushed through a unit; no block stands for the identity."""
        self.advance(place)
        stage, source = self.stages[place], self.units[place].first - 1
        if len(self._maps) == place and isinstance(stage, BlackBox):
            # The primal run has just come this far: value and pushed block in one call.
            y, pushed = stage.push_through(self.value, block or self._identity(source))
            self._arrive(place, y, None)
            return pushed
        linear_map = self._take(place)
        if block is None:
            return linear_map.matrix() or linear_map.push(self._identity(source))
        return linear_map.push(block)

    def pull(self, place: int, block: Block | None) -> Block:
        """Return a block pulled through a unit; no block stands for the identity."""
        linear_map = self._take(place)
        if block is None:
            return linear_map.matrix() or linear_map.pull(self._identity(self.units[place].last))
        return linear_map.pull(block)

    def _identity(self, place: int) -> Block:
        """Return the identity of R^dims[place]; who uses it casts it."""
        size = self.dims[place]
        return Block(Dense(size, size), torch.eye(size, dtype=self.value.dtype, device=self.value.device))

    def _take(self, place: int) -> LinearMap:
        """Return the derivative of a unit, which is used once and then freed."""
        self.advance(place + 1)
        linear_map, self._maps[place] = self._maps[place], None
        assert linear_map is not None, "a plan used a stage twice"
        return linear_map

    def _arrive(self, place: int, y: Tensor, linear_map: LinearMap | None) -> None:
        last = self.units[place].last
        if y.numel() != self.dims[last]:
            raise ValueError(
                f"jacobian: the plan must fit the chain, but it expects {self.dims[last]} entries after factor "
                f"F{last} and {self.stages[place].label} returned {y.numel()}; make the plan for this chain and this x."
            )
        self._maps.append(linear_map)
        self.value = y


def _check(plan: Plan, chain: Chain, x: Tensor) -> None:
    """Check that the plan is for this chain and this x, as far as that shows before anything is run.

    Args:
        plan: The plan.
        chain: The chain.
        x: The point.

    Raises:
        TypeError: If x is not a floating tensor.
        ValueError: If the plan is for another chain or another shape.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"jacobian: x must be a floating tensor, got {kind}.")
    if not chain.functions:
        raise ValueError("jacobian: f must be a chain of callables, got one that was made from sizes.")
    if len(chain) != len(plan.factors):
        raise ValueError(
            f"jacobian: plan must be for a chain of {len(chain)} stages, got one for {len(plan.factors)}; make a new "
            f"one by plan_jacobian(f, x)."
        )
    if plan.input_shape is not None and tuple(x.shape) != plan.input_shape:
        raise ValueError(
            f"jacobian: x must have the shape {plan.input_shape} that the plan was made for, got {tuple(x.shape)}; "
            f"make a new one by plan_jacobian(f, x)."
        )
    if x.numel() != plan.dims[0]:
        raise ValueError(f"jacobian: x must have the {plan.dims[0]} entries that the plan is for, got {x.numel()}.")


def _grad_mode() -> AbstractContextManager[object]:
    """Return a context without autograd, unless inside a `torch.func` transform, where that would be a silent 0."""
    return nullcontext() if inside_transform() else torch.no_grad()
