"""Plans as JSON. Integers are written in full, so nothing is lost beyond 2^63."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from .assemble import assemble
from .bracket import Action, Bracket, Mode
from .cost import resolve_objective
from .factor import Factor
from .plan import Plan, Step
from .problem import Problem
from .structure import structure_from_data

FORMAT = "torch_jvpvjp.plan/2"


def steps_to_data(plan: Plan) -> list[dict[str, Any]]:
    """Return the steps as JSON-ready dictionaries."""
    return [_step_to_data(step) for step in plan.steps]


def _step_to_data(step: Step) -> dict[str, Any]:
    return {
        "action": step.action.value,
        "mode": None if step.mode is None else step.mode.value,
        "bracket": list(step.bracket),
        "shape": list(step.shape),
        "fma": step.fma,
        "structure": step.structure,
    }


def plan_to_json(plan: Plan) -> str:
    """Return the plan as JSON, without its callables."""
    data = {
        "format": FORMAT,
        "objective": plan.objective,
        "strategy": plan.strategy,
        "cost": plan.cost,
        "fma": plan.fma,
        "peak_entries": plan.peak_entries,
        "bracketing": plan.bracketing(),
        "tape_limit": plan.tape_limit,
        "matrix_free": plan.matrix_free,
        "peak_limit": plan.peak_limit,
        "threads": plan.threads,
        "batch": plan.batch,
        "unit": plan.unit,
        "makespan": plan.makespan,
        "input_shape": plan.input_shape,
        "output_shape": plan.output_shape,
        "factors": [_factor_to_data(factor) for factor in plan.factors],
        "steps": steps_to_data(plan),
    }
    return json.dumps(data, indent=1, ensure_ascii=False)


def plan_from_json(text: str) -> Plan:
    """The plan that `plan_to_json` wrote, assembled and priced again.

    Args:
        text: What `plan_to_json` returned.

    Returns:
        The plan.

    Raises:
        ValueError: If the text is not a plan, or its recorded cost or fma are not those of its steps.
    """
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"Plan.from_json: text must be JSON, got {text[:40]!r}: {error}.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"Plan.from_json: format must be {FORMAT!r}, got {found!r}; make the plan again.")
    try:
        factors = tuple(_factor_from_data(factor) for factor in data["factors"])
        brackets = [_bracket_from_data(step) for step in data["steps"]]
        shapes = [None if data[key] is None else tuple(data[key]) for key in ("input_shape", "output_shape")]
        recorded, fma = data["cost"], data["fma"]
        limits = {key: data[key] for key in ("tape_limit", "matrix_free", "threads", "batch")}
        limits |= {"peak_entries": data["peak_limit"]}
        objective, strategy = data["objective"], data["strategy"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Plan.from_json: the text must hold every field that to_json writes, got {type(error).__name__}: {error}."
        ) from error
    problem = Problem(factors, resolve_objective(objective), **limits)
    plan = assemble(problem, brackets, strategy=strategy)
    if plan.fma != fma:
        raise ValueError(f"Plan.from_json: fma must be those of the steps, {plan.fma}, got {fma}.")
    if isinstance(plan.cost, float):
        plan = replace(plan, cost=recorded)  # seconds were told by the model of the device that it was planned for
    elif plan.cost != recorded:
        raise ValueError(f"Plan.from_json: cost must be that of the steps, {plan.cost}, got {recorded}.")
    return replace(plan, input_shape=shapes[0], output_shape=shapes[1])


_FACTOR_FIELDS = ("label", "n", "m", "jvp_cost", "vjp_cost", "tape", "given", "forming_cost", "shared", "launches")
_LATER_FIELDS = ("pull_launches",)  # which files of earlier versions do not hold


def _factor_to_data(factor: Factor) -> dict[str, Any]:
    structure = None if factor.structure is None else factor.structure.to_data()
    return {key: getattr(factor, key) for key in (*_FACTOR_FIELDS, *_LATER_FIELDS)} | {"structure": structure}


def _factor_from_data(data: dict[str, Any]) -> Factor:
    structure = None if data["structure"] is None else structure_from_data(data["structure"])
    fields: dict[str, Any] = {key: data[key] for key in _FACTOR_FIELDS} | {"structure": structure}
    return Factor(**fields, **{key: data[key] for key in _LATER_FIELDS if key in data})


def _bracket_from_data(data: dict[str, Any]) -> Bracket:
    mode = None if data["mode"] is None else Mode(data["mode"])
    j, k, i = data["bracket"]
    return Bracket(Action(data["action"]), mode, j, k, i)
