"""From factors and options to a plan: what everything that plans calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from .assemble import assemble
from .checked import truth, whole
from .cost import Objective, resolve_objective
from .factor import Factor
from .plan import Plan
from .planners import Strategy, resolve_strategy
from .problem import Problem


def plan_factors(
    factors: Sequence[Factor],
    *,
    objective: str | Objective = "fma",
    strategy: str = "dynamic_programming",
    tape_limit: int | None = None,
    peak_entries: int | None = None,
    matrix_free: bool = True,
    threads: int | None = None,
    batch: int = 1,
) -> Plan:
    """Plan the accumulation of a chain that is known by its factors.

    Args:
        factors: The factors, F_1 first.
        objective: What to minimise: "fma", "memory" (the least peak of held entries, then the least fma), "time", or
            an `Objective`.
        strategy: "forward", "reverse", "greedy", "dynamic_programming", "exhaustive", or a registered one.
        tape_limit: Most entries that one adjoint sweep over raw factors may hold; None for no limit.
        peak_entries: Most entries of computed blocks that may be held at any step, its result included; Jacobians that
            are given are resident and not counted. None for no limit.
        matrix_free: Whether blocks may be carried through raw factors; if not, each Jacobian is formed and multiplied.
        threads: Workers that steps may run on at once, for the least makespan; None to run them one after another.
        batch: Samples; steps of factors that are not shared are priced, and held, once for each.

    Returns:
        The plan.

    Raises:
        TypeError: If a limit, threads or batch is not an integer.
        ValueError: If there is no factor, two neighbours do not fit, an option is unknown or out of range, options
            exclude one another, or no plan keeps to tape_limit.
        InfeasiblePlanError: If no plan keeps to peak_entries; it names the smallest that one does.
    """  # noqa: DOC502 (some are raised further down)
    planner = resolve_strategy(strategy)
    problem = problem_of(
        factors,
        objective=objective,
        tape_limit=tape_limit,
        peak_entries=peak_entries,
        matrix_free=matrix_free,
        threads=threads,
        batch=batch,
    )
    # Ours give the same plan for the same factors; an objective or strategy of the user's own may change its mind.
    known = _is_ours(type(problem.objective)) and _is_ours(planner)
    try:
        return (_planned_before if known else _planned)(problem, planner, strategy)
    except OverflowError as error:
        raise ValueError(
            f"plan: sizes and costs must be such that a float holds the prices by objective="
            f"{problem.objective.name!r}, got sizes below 2^{max(problem.dims).bit_length()}; use "
            f"objective='fma', which is exact at any size."
        ) from error


def problem_of(
    factors: Sequence[Factor],
    *,
    objective: str | Objective,
    tape_limit: int | None,
    peak_entries: int | None,
    matrix_free: bool,
    threads: int | None,
    batch: int,
) -> Problem:
    """The problem that factors and options make, checked.

    Args:
        factors: As in `plan_factors`, like all that follow.
        objective: What to minimise.
        tape_limit: Most entries of an adjoint sweep.
        peak_entries: Most entries of computed blocks.
        matrix_free: Whether raw factors may be eliminated.
        threads: Workers.
        batch: Samples.

    Returns:
        The problem.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If factors make no chain, an option is out of range, or options exclude one another.
    """  # noqa: DOC502 (some are raised further down)
    target, factors = resolve_objective(objective), tuple(factors)
    _check_factors(factors)
    truth("plan", "matrix_free", matrix_free)
    tape_limit = None if tape_limit is None else whole("plan", "tape_limit", tape_limit, least=0)
    peak_entries = None if peak_entries is None else whole("plan", "peak_entries", peak_entries, least=0)
    threads = None if threads is None else whole("plan", "threads", threads, least=1)
    samples = whole("plan", "batch", batch, least=1)
    if tape_limit is not None and any(f.vjp_cost is not None and f.tape is None and not f.given for f in factors):
        raise ValueError(f"plan: tape_limit={tape_limit} needs the tape of each factor; give from_sizes tape or edges.")
    problem = Problem(factors, target, tape_limit, matrix_free, peak_entries, threads, samples)
    if threads is not None and (peak_entries is not None or problem.least_peak):
        limit = f"objective={target.name!r}" if peak_entries is None else f"peak_entries={peak_entries}"
        raise ValueError(
            f"plan: threads={threads} must be left out where held entries are limited, got {limit}: what is held at "
            f"once depends on the schedule."
        )
    return problem


def _planned(problem: Problem, planner: Strategy, strategy: str) -> Plan:
    problem.check_feasible()
    return assemble(problem, planner(problem), strategy=strategy)


_planned_before = lru_cache(maxsize=256)(_planned)


def _is_ours(what: Strategy | type) -> bool:
    return what.__module__.startswith(f"{__package__}.")


def _check_factors(factors: tuple[Factor, ...]) -> None:
    """Check that factors make a chain.

    Args:
        factors: The factors.

    Raises:
        ValueError: If there is none, or one does not fit the next.
    """
    if not factors:
        raise ValueError("plan: factors must hold at least one factor, got none.")
    for place, (inner, outer) in enumerate(zip(factors, factors[1:], strict=False), 1):
        if inner.m != outer.n:
            raise ValueError(
                f"plan: factor F{place + 1} must take the {inner.m} outputs of F{place}, got one of {outer.n} inputs."
            )
