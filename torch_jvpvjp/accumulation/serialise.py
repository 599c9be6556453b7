"""Plans as JSON. Integers are written in full, so nothing is lost beyond 2^63."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from .assemble import assemble
from .bracket import Action, Bracket, Mode
from .factor import Factor
from .plan import Plan, Step
from .planning import problem_of
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
        TypeError: If it is no text.
        ValueError: If the text is not a plan, or what it records is not what its steps are and cost.
    """  # noqa: DOC502 (the ValueError is raised further down)
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"Plan.from_json: text must be what to_json returned, got {type(text).__name__}.")
    data = _read(text)
    try:
        plan = _assembled(data)
        shapes = [_shape(data[key]) for key in ("input_shape", "output_shape")]
        recorded = {key: data[key] for key in ("fma", "cost", "peak_entries", "makespan", "steps")}
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).removeprefix("plan: ").rstrip(".")
        raise ValueError(f"Plan.from_json: the text must hold a plan as to_json writes it, got {what}.") from error
    _check_recorded(plan, recorded)
    plan = replace(plan, cost=recorded["cost"]) if isinstance(plan.cost, float) else plan
    return replace(plan, input_shape=shapes[0], output_shape=shapes[1])


def _read(text: str | bytes) -> dict[str, Any]:
    """What the text of a plan holds.

    Args:
        text: JSON.

    Returns:
        The object in it.

    Raises:
        ValueError: If it is not JSON, or not of a plan.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"Plan.from_json: text must be JSON, got {text[:40]!r}: {error}.") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise ValueError(f"Plan.from_json: format must be {FORMAT!r}, got {found!r}; make the plan again.")
    return data


def _assembled(data: dict[str, Any]) -> Plan:
    """Return the plan of the recorded factors, options and steps, priced."""
    problem = problem_of(
        [_factor_from_data(factor) for factor in data["factors"]],
        objective=data["objective"],
        peak_entries=data["peak_limit"],
        **{key: data[key] for key in ("tape_limit", "matrix_free", "threads", "batch")},
    )
    brackets = [_bracket_from_data(step) for step in data["steps"]]
    return assemble(problem, brackets, strategy=str(data["strategy"]))


def _check_recorded(plan: Plan, recorded: dict[str, Any]) -> None:
    """Check that what a file says of a plan is what its steps are and cost.

    Seconds are not compared: they were told by the model of the device that the plan was made for.

    Args:
        plan: The plan, assembled anew.
        recorded: What the file says.

    Raises:
        ValueError: If they differ.
    """
    found: dict[str, Any] = {"fma": plan.fma, "peak_entries": plan.peak_entries}
    if not isinstance(plan.cost, float):
        found |= {"cost": plan.cost, "makespan": plan.makespan}
    for step, came in zip(steps_to_data(plan), _in_order(recorded["steps"], plan), strict=True):
        if step != came:
            raise ValueError(f"Plan.from_json: a step must be what it is priced as, {step}, got {came}.")
    for key, value in found.items():
        if recorded[key] != value:
            those = "those" if key in {"fma", "peak_entries"} else "that"
            raise ValueError(f"Plan.from_json: {key} must be {those} of the steps, {value}, got {recorded[key]}.")


def _in_order(steps: list[dict[str, Any]], plan: Plan) -> list[dict[str, Any]]:
    """Return recorded steps in the order of those of a plan, whose blocks they form."""
    by_block = {(step["bracket"][0], step["bracket"][2]): step for step in steps}
    return [by_block[step.decision.span] for step in plan.steps]


def _shape(sizes: Any) -> tuple[int, ...] | None:
    """The recorded shape of x or of f(x), or None if none was.

    Args:
        sizes: What the file says.

    Returns:
        The shape.

    Raises:
        TypeError: If it is not a list of sizes.
    """
    if sizes is None:
        return None
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise TypeError(f"a shape must be a list of sizes, got {sizes!r}")
    return tuple(sizes)


_FACTOR_FIELDS = ("label", "n", "m", "jvp_cost", "vjp_cost", "tape", "given", "forming_cost", "shared", "launches")
_LATER_FIELDS = ("pull_launches",)  # which files of earlier versions do not hold


def _factor_to_data(factor: Factor) -> dict[str, Any]:
    structure = None if factor.structure is None else factor.structure.to_data()
    return {key: getattr(factor, key) for key in (*_FACTOR_FIELDS, *_LATER_FIELDS)} | {"structure": structure}


def _factor_from_data(data: dict[str, Any]) -> Factor:
    structure = None if data["structure"] is None else structure_from_data(data["structure"])
    fields: dict[str, Any] = {key: data[key] for key in _FACTOR_FIELDS}
    fields |= {key: data[key] for key in _LATER_FIELDS if key in data}
    for key, value in fields.items():
        _check_field(key, value)
    return Factor(**fields, structure=structure)


_TYPES = {"label": str, "given": bool, "shared": bool}  # of fields that are no counts
_KNOWN = ("n", "m", "launches")  # counts that there always are


def _check_field(key: str, value: Any) -> None:
    """Check a field of a factor.

    Args:
        key: The field.
        value: What the file says.

    Raises:
        TypeError: If it is not of the type of that field, or a count that is negative.
    """
    if key in _TYPES:
        right = isinstance(value, _TYPES[key])
    else:
        right = (value is None and key not in _KNOWN) or (type(value) is int and value >= 0)
    if not right:
        raise TypeError(f"{key}={value!r} of a factor")


def _bracket_from_data(data: dict[str, Any]) -> Bracket:
    mode = None if data["mode"] is None else Mode(data["mode"])
    j, k, i = data["bracket"]
    return Bracket(Action(data["action"]), mode, j, k, i)
