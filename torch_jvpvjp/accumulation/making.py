"""Making the plan of a function: traced, priced for its device, planned within its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from .cost import Objective
from .factor import Factor
from .limited import Limit, ready, ready_within
from .memory import read_memory
from .options import Options
from .plan import Plan
from .planning import plan_factors
from .remaking import Planning
from .runtime import Runtime
from .samples import check_batch, check_samples
from .seeds import check_seed, seeded


def make_plan(
    runtime: Runtime,
    x: Any,
    *,
    objective: str | Objective,
    strategy: str,
    tape_limit: int | None = None,
    peak_entries: int | None = None,
    matrix_free: bool = True,
    threads: int | None = None,
    memory_limit: int | str | None = None,
) -> Plan:
    """The plan of a function at x, ready to be called.

    Args:
        runtime: The function.
        x: The point.
        objective: What to minimise.
        strategy: How the plan is found.
        tape_limit: Most entries that an adjoint sweep may hold.
        peak_entries: Most entries of computed blocks that may be held.
        matrix_free: Whether raw factors may be eliminated.
        threads: Workers.
        memory_limit: Bytes within which blocks and sweeps are to stay.

    Returns:
        The plan.

    Raises:
        TypeError: If x or the function is not differentiable, or an argument has the wrong type.
        ValueError: If an option is unknown or stages do not fit.
        InfeasiblePlanError: If no plan fits a limit on what is held.
        NotImplementedError: If a stage has neither a JVP nor a VJP.
    """  # noqa: DOC502 (some are raised further down)
    tracing = runtime.tracing(x)
    begin = perf_counter()
    if runtime.options.batch_dims:
        check_batch(runtime, x)
    again = partial(
        make_plan,
        objective=objective,
        strategy=strategy,
        tape_limit=tape_limit,
        peak_entries=peak_entries,
        matrix_free=matrix_free,
        threads=threads,
        memory_limit=memory_limit,
    )
    runtime.planning = Planning(again, runtime.options, repr(tracing.subject.layout))
    meta = tracing.traced.output
    limit = read_memory(runtime.caller, memory_limit)
    if objective == "time":
        objective = _time(meta.device, meta.dtype)

    def planned(
        most: int | None = peak_entries, name: str = strategy, factors: Sequence[Factor] = tracing.traced.factors
    ) -> Plan:
        return plan_factors(
            factors,
            objective=objective,
            strategy=name,
            tape_limit=tape_limit,
            peak_entries=most,
            matrix_free=matrix_free,
            threads=threads,
            batch=max(tracing.subject.batch.numel(), 1),
        )

    if limit is None:
        made = ready(runtime, tracing, planned())
    else:
        made = ready_within(Limit(limit, memory_limit, runtime, tracing, x), planned, strategy, peak_entries)
    if runtime.options.batch_dims:
        check_samples(runtime, made, x)
    tracing.seconds += perf_counter() - begin
    return made


def _time(device: torch.device, dtype: torch.dtype) -> Objective:
    from .timing import time_objective

    return time_objective(device, dtype)


def plan_at(stages: Sequence[Callable[..., Any]], x: Any, left: Any, right: Any, options: Mapping[str, Any]) -> Plan:
    """The plan of a chain of callables at x, with seeds if there are any.

    Args:
        stages: The callables.
        x: A floating tensor.
        left: Seed U, or None.
        right: Seed V, or None.
        options: The other options of `make_plan`.

    Returns:
        The plan of J, U J, J V or U J V.

    Raises:
        TypeError: If x or a seed is not a floating tensor.
        ValueError: If a seed does not fit.
    """  # noqa: DOC502 (raised by check_seed and further down)
    if left is None and right is None:
        return make_plan(Runtime("Chain.plan", stages, Options()), x, **options)
    if not isinstance(x, Tensor):
        raise TypeError(f"Chain.plan: x must be a floating tensor where there are seeds, got {type(x).__name__}.")
    seeds = [check_seed("Chain.plan", "right", right, x.numel(), 0, x)] if right is not None else []
    if left is not None:
        y = Runtime("Chain.plan", stages, Options()).tracing(x).traced.output
        seeds.append(check_seed("Chain.plan", "left", left, y.numel, 1, y))

    def composition(value: Any) -> Any:
        for stage in stages:
            value = stage(value)
        return value

    def arguments(x: Any) -> Any:
        start = torch.zeros_like(x) if right is None else x.new_zeros(seeds[0].shape[1])
        return (start, x, *seeds)

    product = seeded(composition, left is not None, right is not None)
    # What is watched are the stages: what stands around them is ours, into which guards do not look.
    return make_plan(Runtime("Chain.plan", [product], Options(wrt=0), arguments, watched=stages), x, **options)
