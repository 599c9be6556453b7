"""What the tests of recorded programs share."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from torch_jvpvjp.accumulation.program import Program
from torch_jvpvjp.accumulation.tracing.tape import fill, flat_outputs


def program_of(plan: Any, x: Tensor) -> Program:
    """Return the program that a plan replays at x, recorded if it is not yet."""
    plan(x)
    program = plan.runtime.tracing(x).program
    if program is None:
        raise ValueError("the plan replays no program")
    return program


def values_of(program: Program, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return all values of a program, by running its calls one by one."""
    values = {**program.fixed, **dict(zip(program.inputs, inputs, strict=True))}
    for call in program.calls:
        args, kwargs = fill(call.args, values.__getitem__), fill(dict(call.kwargs), values.__getitem__)
        made = flat_outputs(call.target(*args, **kwargs))
        values |= {i: out for i, out in zip(call.outputs, made, strict=True) if i is not None and out is not None}
    return values
