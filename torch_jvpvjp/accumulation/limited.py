"""The cheapest plan whose calls keep a limit in bytes, by its blocks and by how many columns go at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from .infeasible import InfeasiblePlanError
from .memory import chunk_for
from .plan import Plan
from .runtime import Runtime
from .tracing.results import Known
from .tracings import Tracing

Planned = Callable[
    ..., Plan
]  # of the entries that blocks may hold, a strategy and factors, each by default as asked for


@dataclass(frozen=True)
class Limit:
    """What calls of a function may hold.

    Attributes:
        most: Bytes.
        said: As the user said it.
        runtime: The function.
        tracing: The function, taken apart.
        x: The point.
    """

    most: int
    said: int | str | None
    runtime: Runtime
    tracing: Tracing
    x: Any
    _results: Known = field(default_factory=dict, repr=False)
    _held: dict[Any, int | None] = field(default_factory=dict, repr=False)

    def held(self, runtime: Runtime, plan: Plan, chunk_size: int | None = None) -> int | None:
        """Return the bytes that a call of a plan holds, in chunks of that size or the runtime's own; found once."""
        chunk_size = chunk_size or runtime.options.chunk_size
        key = plan.steps, chunk_size, runtime.options.together
        if key not in self._held:
            self._held[key] = runtime.peak_bytes(plan, chunk_size, self._results)
        return self._held[key]

    @property
    def itemsize(self) -> int:
        """Bytes of one entry."""
        return self.tracing.traced.output.dtype.itemsize

    @property
    def column(self) -> int:
        """Entries that one column on its way holds."""
        factors = self.tracing.traced.factors
        return max(self.tracing.subject.batch.numel(), 1) * max(f.n + f.m + (f.tape or 0) for f in factors)

    @property
    def entries(self) -> int:
        """Entries that blocks may hold, one column on its way allowed for."""
        return max(self.most // self.itemsize - self.column, 0)


def ready(runtime: Runtime, tracing: Tracing, plan: Plan) -> Plan:
    """Return a plan with the function that it is for, ready to be called."""
    source, output = tracing.subject.source, tracing.subject.output
    bare = output is not None and source.bare and output.bare
    return replace(
        plan,
        input_shape=(*tracing.subject.batch, *source.leaves[0].shape) if bare else None,
        output_shape=(*tracing.subject.batch, *output.leaves[0].shape) if bare and output is not None else None,
        runtime=runtime,
    )


def ready_within(limit: Limit, planned: Planned, strategy: str, peak_entries: int | None) -> Plan:
    """The cheapest plan that is found whose calls hold no more than a limit.

    Args:
        limit: The limit.
        planned: Makes plans.
        strategy: What was asked for; without a choice, others are tried too.
        peak_entries: Entries that blocks may hold in any case.

    Returns:
        The plan, ready to be called.

    Raises:
        InfeasiblePlanError: If none was found.
    """

    def within(most: int) -> tuple[Plan | None, list[Plan]]:
        return _search(replace(limit, most=most), planned, strategy, peak_entries)

    found, tried = within(limit.most)
    if found is not None:
        return found
    least = _least(limit, tried, lambda most: within(most)[0])
    raise InfeasiblePlanError(_too_much(limit, least), smallest=least.peak_bytes or 0)


def _search(limit: Limit, planned: Planned, strategy: str, peak_entries: int | None) -> tuple[Plan | None, list[Plan]]:
    """The cheapest plan that is found within a limit, if one is.

    Args:
        limit: The limit.
        planned: Makes plans.
        strategy: What was asked for.
        peak_entries: Entries that blocks may hold in any case.

    Returns:
        The plan, ready to be called, or None; and all that were tried, in chunks, that of no limit first.
    """
    tried = [_in_chunks(limit, planned())]
    if _keeps(limit, tried[0]):
        return tried[0], tried
    most = limit.entries if peak_entries is None else min(limit.entries, peak_entries)
    plans = _plans(limit, planned, most, every=strategy == "dynamic_programming")
    for plan in sorted(plans, key=lambda plan: plan.cost):
        if all(plan.steps != other.steps for other in tried):
            tried.append(_in_chunks(limit, plan))
            if _keeps(limit, tried[-1]):
                return tried[-1], tried
    return None, tried


def _least(limit: Limit, tried: list[Plan], within: Callable[[int], Plan | None]) -> Plan:
    """Of plans that exceed a limit the one that holds least, what it holds being a limit that works.

    Args:
        limit: The limit.
        tried: Plans in chunks, which may hold more than all columns at once do.
        within: Searches within another limit.

    Returns:
        The plan.
    """
    wholes = [] if limit.runtime.options.chunk_size else [ready(limit.runtime, limit.tracing, plan) for plan in tried]
    least = (wholes or tried)[0]  # which a search within what it holds begins with
    for plan in (*wholes, *tried):
        _keeps(limit, plan)  # tells what it holds

    def works(plan: Plan | None) -> bool:
        return plan is not None and (found := within(_held(plan))) is not None and _held(found) <= _held(plan)

    least = next((plan for plan in sorted((*wholes, *tried), key=_held) if works(plan)), least)
    for _ in range(_ATTEMPTS):  # another limit brings other plans into view
        better = within(_held(least) - 1)
        if better is None or not works(better):
            break
        least = better
    return least


def _held(plan: Plan) -> int:
    return plan.peak_bytes or 0


def _plans(limit: Limit, planned: Planned, most: int, *, every: bool) -> list[Plan]:
    """Plans whose blocks keep a limit in entries.

    Args:
        limit: The limit in bytes.
        planned: Makes plans.
        most: Entries that blocks may hold.
        every: Whether plans are to be found that hold less otherwise: with fewer entries in blocks, or in one sweep,
            which begins at the identity, so that its chunks hold no block at all.

    Returns:
        The plans.
    """
    raw = [replace(factor, given=False, forming_cost=None) for factor in limit.tracing.traced.factors]
    ways: list[tuple[Any, ...]] = [(most,)]
    if every:
        ways += [(most // 4,), (most // 16,), (most, "forward", raw), (most, "reverse", raw)]
    plans: list[Plan] = []
    for way in ways:
        try:
            plans.append(planned(*way))
        except ValueError:  # its blocks hold more, or it needs a mode that a factor has not
            continue
    return plans


def _keeps(limit: Limit, plan: Plan) -> bool:
    """Return whether a plan keeps a limit; one of which nothing can be told is believed to, in its chunks."""
    assert plan.runtime is not None
    held = vars(plan)["peak_bytes"] = limit.held(plan.runtime, plan)  # so that the plan prints it
    return held is None or held <= limit.most


def _in_chunks(limit: Limit, plan: Plan) -> Plan:
    """Return a plan that can be called, in chunks that keep a limit as far as chunks can."""
    asked = limit.runtime.options.chunk_size
    whole = ready(limit.runtime, limit.tracing, plan)
    if asked is None:
        held = limit.held(limit.runtime, plan)
        if held is not None and held <= limit.most:
            return whole
    runtime = _runtime(limit, asked)
    return ready(runtime if asked else _runtime(limit, _chunk(limit, runtime, plan)), limit.tracing, plan)


def _runtime(limit: Limit, chunk_size: int | None) -> Runtime:
    """Return the function run in such chunks, with nothing kept between calls nor stacked for speed."""
    runtime = limit.runtime.with_options(replace(limit.runtime.options, chunk_size=chunk_size, together=False))
    runtime.adopt(limit.x, limit.tracing)
    return runtime


def _chunk(limit: Limit, runtime: Runtime, plan: Plan) -> int | None:
    """Return how many columns a sweep may carry within a limit; None if all of them fit.

    What a call holds grows by the same with every column, so that two of them tell what all do; steps in chunks hold
    their whole result as well.
    """
    widest = max(plan.dims)
    whole = limit.held(runtime, plan)
    if whole is not None and whole <= limit.most:
        return None
    chunk = min(chunk_for(limit.most, limit.itemsize, plan.peak_entries, limit.column), widest)
    if whole is None:  # a black box, of which no more is known than its size
        return None if chunk >= widest else chunk
    least = limit.held(runtime, plan, 1)
    if least is not None and least > limit.most:
        return 1
    chunk = max(chunk, 2)
    for _ in range(_ATTEMPTS):
        held = limit.held(runtime, plan, chunk)
        if least is None or held is None or held <= limit.most:
            break
        column = max((held - least) / (chunk - 1), 1.0)
        chunk = max(min(1 + int((limit.most - least) / column), chunk - 1), 1)
        if chunk == 1:
            break
    return chunk


_ATTEMPTS = 4


def _too_much(limit: Limit, plan: Plan) -> str:
    """Return what is wrong with a limit that a call exceeds with chunks as small as they were made."""
    assert plan.runtime is not None
    chunk = plan.runtime.options.chunk_size
    columns = "all columns" if chunk is None else f"{chunk} column{'s' * (chunk > 1)}"
    others = " or a smaller chunk_size" if limit.runtime.options.chunk_size not in {None, 1} else ""
    return (
        f"{plan.runtime.caller}: memory_limit must be what a call holds or more, got {limit.most:,} bytes where the "
        f"least that was found holds {plan.peak_bytes:,} with {columns} at a time; raise memory_limit to that, or try "
        f"another strategy{others}."
    )
