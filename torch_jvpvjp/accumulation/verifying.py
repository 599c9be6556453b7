"""Measuring the steps of a plan as they run, to compare them with what the model predicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .problem import Problem
from .schedule import Task

if TYPE_CHECKING:
    from .plan import Plan
    from .timing import Verification


class Stopwatch:
    """Stops the time of each task of a run.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tasks: list[Task] = []
        self._marks: list[float] = []

    def start(self, task: Task) -> None:
        """A task begins, and the one before has ended."""
        if not self._marks:
            self.tasks.clear()
        self.tasks.append(task)
        self.begin()

    def begin(self) -> None:
        """Something begins, and what came before has ended."""
        self._marks.append(self._now())

    def stop(self) -> list[float]:
        """Return the seconds of each task, once the last has ended."""
        marks = [*self._marks, self._now()]
        self._marks = []
        return [end - begin for begin, end in zip(marks, marks[1:], strict=False)]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return perf_counter()


def verification(
    plan: Plan, x: Tensor, tasks: Sequence[Task], run: Callable[[], list[float]], call: Callable[[], object], runs: int
) -> Verification:
    """Return predicted and measured time of each task, and of a whole call.

    Args:
        plan: The plan.
        x: The point, whose device and dtype the prediction is for.
        tasks: What a run does; known once it has run.
        run: Runs the plan and gives the seconds of each task.
        call: Calls the plan.
        runs: How many runs to take the median of.
    """
    from .timing import VerifiedStep, time_objective, verify_plan

    assert plan.runtime is not None, "a plan without a function was to be verified"
    run()  # the first does more than later ones
    measured = [run() for _ in range(runs)]
    problem = Problem(plan.factors, time_objective(x.device, x.dtype), batch=plan.batch)
    predicted = [sum(problem.price(bracket) for bracket in task.brackets) for task in tasks]
    steps = {step.decision: step for step in plan.steps}
    shown = [steps[task.brackets[-1]] for task in tasks]
    taken = [median(times) for times in zip(*measured, strict=True)]
    verified = verify_plan(shown, predicted, zip(shown, taken, strict=True))
    shape = (plan.dims[-1], plan.dims[0])
    whole = VerifiedStep(
        "a call, with f", shape, verified.predicted + plan.runtime.primal_seconds(), _taken(call, x, runs)
    )
    return replace(verified, call=whole)


def _taken(call: Callable[[], object], x: Tensor, runs: int) -> float:
    """Return the median of the seconds that calls take."""
    watch, times = Stopwatch(x.device), []
    for number in range(runs + 1):  # the first does more than later ones
        watch.begin()
        call()
        times += watch.stop()[:number]
    return median(times)
