"""Making the plan of a function: traced, priced for its device, planned within its memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .cost import Objective
from .infeasible import InfeasiblePlanError
from .memory import chunk_for, read_memory
from .options import Options
from .plan import Plan
from .planning import plan_factors
from .runtime import Runtime
from .seeds import check_seed, seeded
from .tracings import Tracing


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
    if runtime.options.batch_dims:
        runtime.check_batch(x)
    meta = tracing.traced.output
    limit = read_memory(runtime.caller, memory_limit)
    if objective == "time":
        objective = _time(meta.device, meta.dtype)

    def planned(most: int | None) -> Plan:
        return plan_factors(
            tracing.traced.factors,
            objective=objective,
            strategy=strategy,
            tape_limit=tape_limit,
            peak_entries=most,
            matrix_free=matrix_free,
            threads=threads,
            batch=max(tracing.subject.batch.numel(), 1),
        )

    made = _made(runtime, tracing, x, planned(peak_entries), limit)
    if runtime.options.batch_dims:
        runtime.check_samples(made, x)
    if limit is None or (made.peak_bytes is not None and made.peak_bytes <= limit):
        return made
    entries, size = _entries(tracing, limit), meta.dtype.itemsize
    try:
        made = _made(
            runtime, tracing, x, planned(entries if peak_entries is None else min(entries, peak_entries)), limit
        )
    except InfeasiblePlanError as error:
        raise InfeasiblePlanError(
            f"{runtime.caller}: memory_limit={memory_limit!r} must hold the blocks of some plan, got a chain that "
            f"needs {error.smallest * size:,} bytes for them; raise memory_limit to twice that.",
            smallest=error.smallest,
        ) from error
    _check_held(made, limit, size)
    return made


def _made(runtime: Runtime, tracing: Tracing, x: Any, plan: Plan, limit: int | None) -> Plan:
    """Return a plan that can be called, in chunks that keep a limit in bytes as far as chunks can."""
    if limit is not None:
        chunk = runtime.options.chunk_size or _chunk(runtime, tracing, limit, plan)
        runtime = runtime.with_options(replace(runtime.options, chunk_size=chunk, together=False))
        runtime.adopt(x, tracing)
    source, output = tracing.subject.source, tracing.subject.output
    bare = output is not None and source.bare and output.bare
    return replace(
        plan,
        input_shape=(*tracing.subject.batch, *source.leaves[0].shape) if bare else None,
        output_shape=(*tracing.subject.batch, *output.leaves[0].shape) if bare and output is not None else None,
        runtime=runtime,
    )


def _entries(tracing: Tracing, limit: int) -> int:
    """Return how many entries blocks may hold within a limit in bytes, one column on its way allowed for."""
    size = tracing.traced.output.dtype.itemsize
    return max(limit // size - _column(tracing), 0)


def _column(tracing: Tracing) -> int:
    factors = tracing.traced.factors
    return max(tracing.subject.batch.numel(), 1) * max(f.n + f.m + (f.tape or 0) for f in factors)


def _chunk(runtime: Runtime, tracing: Tracing, limit: int, plan: Plan) -> int | None:
    """Return how many columns a sweep may carry within a limit; None if all of them fit.

    What a call holds grows by the same with every column, so that two of them tell what all do; steps in chunks hold
    their whole result as well.
    """
    widest = max(plan.dims)
    whole = runtime.peak_bytes(plan)
    if whole is not None and whole <= limit:
        return None
    size = tracing.traced.output.dtype.itemsize
    chunk = min(chunk_for(limit, size, plan.peak_entries, _column(tracing)), widest)
    if whole is None:  # a black box, of which no more is known than its size
        return None if chunk >= widest else chunk
    least = runtime.peak_bytes(plan, 1)
    chunk = max(chunk, 2)
    for _ in range(_ATTEMPTS):
        held = runtime.peak_bytes(plan, chunk)
        if least is None or held is None or held <= limit:
            break
        column = max((held - least) / (chunk - 1), 1.0)
        chunk = max(min(1 + int((limit - least) / column), chunk - 1), 1)
        if chunk == 1:
            break
    return chunk


_ATTEMPTS = 4


def _check_held(plan: Plan, limit: int, size: int) -> None:
    """Raise if a call holds more than a limit with chunks as small as they were made."""
    held = plan.peak_bytes  # kept, so that the plan prints it
    if held is None or held <= limit:
        return
    assert plan.runtime is not None
    chunk = plan.runtime.options.chunk_size
    columns = "all columns" if chunk is None else f"{chunk} column{'s' * (chunk > 1)}"
    fewer = "" if chunk == 1 else " or a smaller chunk_size"
    raise InfeasiblePlanError(
        f"{plan.runtime.caller}: memory_limit must be what a call holds or more, got {limit:,} bytes for a plan that "
        f"holds {held:,} with {columns} at a time; raise memory_limit to that, or try objective='memory', another "
        f"strategy{fewer}.",
        smallest=-(-held // size),
    )


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
    seeds = [check_seed("Chain.plan", "right", right, x.numel(), 0)] if right is not None else []
    if left is not None:
        plain = Runtime("Chain.plan", stages, Options()).tracing(x)
        seeds.append(check_seed("Chain.plan", "left", left, plain.traced.output.numel, 1))

    def composition(value: Any) -> Any:
        for stage in stages:
            value = stage(value)
        return value

    def arguments(x: Any) -> Any:
        start = torch.zeros_like(x) if right is None else x.new_zeros(seeds[0].shape[1])
        return (start, x, *seeds)

    product = seeded(composition, left is not None, right is not None)
    return make_plan(Runtime("Chain.plan", [product], Options(wrt=0), arguments), x, **options)
