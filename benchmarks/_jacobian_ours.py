"""Our columns of the Jacobian benchmark: a plan reused, compiled, and made anew for a single Jacobian."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any

from _jacobian_case import Function, Problem
from _jacobian_timing import Contender

import torch_jvpvjp as tj
from torch_jvpvjp.accumulation.cache import plans_of

REUSED, COMPILED, ONE_SHOT, AGAIN = "reused plan", "compiled plan", "one-shot", "one-shot again"
OURS = (REUSED, COMPILED, ONE_SHOT, AGAIN)


def make_plan(problem: Problem) -> Any:
    """The plan for a problem, with the options that it needs and our defaults else."""
    return tj.plan_jacobian(problem.f, problem.x, **problem.options)


def ours(problem: Problem, fresh: Callable[[], Function], *, compiled: bool) -> dict[str, Callable[[], Contender]]:
    """What makes each of our contenders; making one may fail as a call may.

    Args:
        problem: The problem.
        fresh: Makes its function anew.
        compiled: Whether the compiled plan takes part.

    Returns:
        By name.
    """
    x, options = problem.x, problem.options

    @cache
    def planned() -> tuple[Any, dict[str, Any]]:
        start = time.perf_counter()
        plan = make_plan(problem)
        facts = {"planning_seconds": time.perf_counter() - start, "bracketing": plan.bracketing()}
        return plan, facts | {"predicted_cost": plan.cost, "objective": plan.objective}

    def reused() -> Contender:
        plan, facts = planned()
        return Contender(lambda: plan(x), facts=facts)

    def compile_plan() -> Contender:
        plan = planned()[0].compile()
        start = time.perf_counter()
        plan(x)  # records
        plan(x)  # compiles
        return Contender(lambda: plan(x), facts={"compiling_seconds": time.perf_counter() - start})

    def one_shot() -> Contender:
        # A function that nobody has seen, made outside of the time: tracing and planning are paid in every call.
        return Contender(lambda f: tj.jacobian(f, x, **options), prepare=fresh)

    def again() -> Contender:
        # The same function once more: by the plan that earlier calls have made, and how many that took.
        calls = calls_until_planned(problem)
        return Contender(lambda: tj.jacobian(problem.f, x, **options), facts={"calls_until_planned": calls})

    every = {REUSED: reused, COMPILED: compile_plan, ONE_SHOT: one_shot, AGAIN: again}
    return every if compiled else {name: make for name, make in every.items() if name != COMPILED}


MOST_CALLS, MOST_SECONDS = 200, 10.0  # of one function, to see whether it is planned for


def calls_until_planned(problem: Problem) -> int | None:
    """Call `tj.jacobian` until it keeps a plan.

    Args:
        problem: The problem.

    Returns:
        How many calls that took; None if it kept none, since plans did not pay by then.
    """
    start = time.perf_counter()
    for count in range(1, MOST_CALLS + 1):
        tj.jacobian(problem.f, problem.x, **problem.options)
        if any(known.plan is not None for known in plans_of(problem.f).values()):
            return count
        if time.perf_counter() - start > MOST_SECONDS:
            break
    return None
