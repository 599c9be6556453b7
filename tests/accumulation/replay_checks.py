"""What the tests of recorded programs share."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.calls import ProgramCall
from torch_jvpvjp.accumulation.program import Program, ProgramRecorder
from torch_jvpvjp.accumulation.tracing.tape import fill, flat_outputs


def program_of(plan: Any, x: Tensor) -> Program:
    """Return the program that a plan replays at x, recorded if it is not yet."""
    plan(x)
    program = plan.runtime.tracing(x).program
    if program is None:
        raise ValueError("the plan replays no program")
    return program


def recorded(function: Callable[..., Tensor | Sequence[Tensor]], *inputs: Tensor) -> Program:
    """Return the program of a function of some tensors."""
    recorder = ProgramRecorder(inputs)
    with torch.no_grad(), recorder:
        results = function(*inputs)
    program = recorder.program(recorder.numbers([results] if isinstance(results, Tensor) else results))
    assert program is not None
    return program


def values_of(program: Program, inputs: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return all values of a program, by running its calls one by one."""
    return run_calls(program.calls, {**program.fixed, **dict(zip(program.inputs, inputs, strict=True))})


def run_calls(calls: Sequence[ProgramCall], values: Mapping[int, Tensor], *, anew: bool = False) -> dict[int, Tensor]:
    """Return values with those that calls make.

    Args:
        calls: The calls, in order.
        values: What is known.
        anew: Whether to forget first what is known of the values that the calls make.
    """
    made = {index for call in calls for index in call.outputs}
    known = {index: value for index, value in values.items() if not (anew and index in made)}
    for call in calls:
        args, kwargs = fill(call.args, known.__getitem__), fill(dict(call.kwargs), known.__getitem__)
        results = flat_outputs(call.target(*args, **kwargs))
        known |= {i: out for i, out in zip(call.outputs, results, strict=True) if i is not None and out is not None}
    return known


def check_compiled_plan(net: nn.Module, x: Tensor) -> None:
    """Check that the compiled plan of a network of float32 has the Jacobian that the network has in float64."""
    compiled = plan_jacobian(net, torch.zeros_like(x)).compile()
    expected = torch.func.jacrev(net.double())(x.double())
    net.float()
    torch.testing.assert_close(compiled(x).double(), expected, rtol=1e-3, atol=1e-5)
