"""Plans that are made anew, as they were made, where their function has become another chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from .options import Options
from .tracings import Tracing, fitted

if TYPE_CHECKING:
    from .plan import Plan
    from .runtime import Runtime


class Planning(NamedTuple):
    """How the plan of a function was made, so that it can be made anew where the function has become another chain.

    Attributes:
        plan: Makes it, of the function and a point.
        options: The options of the function before a limit on memory chose chunks.
        layout: What the arguments looked like, in words: trees of arguments cannot be pickled.
    """

    plan: Callable[[Runtime, Any], Plan]
    options: Options
    layout: str


def fitted_or_remade(runtime: Runtime, plan: Plan, tracing: Tracing, x: Any) -> Plan:
    """The plan for a function as it is now: a new one where that is another chain than it was.

    Args:
        runtime: The function.
        plan: The plan.
        tracing: The function, taken apart.
        x: The point.

    Returns:
        The plan, or the one that takes its place.

    Raises:
        ValueError: If the plan was made for another function, or for other shapes.
    """
    planning = runtime.planning
    try:
        return fitted(runtime.caller, plan, tracing)
    except ValueError:
        if planning is None or planning.layout != repr(tracing.subject.layout):
            raise
    compiled = {"compile": runtime.options.compile, "compile_mode": runtime.options.compile_mode}
    other = runtime.with_options(replace(planning.options, **compiled))
    other.is_remade = True
    other.adopt(x, tracing)
    tracing.fitted, tracing.remade = (plan, planning.plan(other, x)), True
    return tracing.fitted[1]
