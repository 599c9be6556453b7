"""Rows of many samples lie column by column where all that is made of them is pointwise, and as they did elsewhere."""

import pytest
import torch
from jacobian_checks import F64, assert_same, randn
from replay_checks import program_of, run_calls
from torch import Tensor

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.program import ProgramRecorder

SAMPLES = 96


def pressures(state: Tensor) -> Tensor:
    """Mixes the entries of each sample, one by one."""
    mass, momentum, energy = state.unbind(-1)
    speed = momentum / (2 + mass * mass)
    pressure = 0.4 * (energy - 0.5 * momentum * speed).exp()
    return torch.stack([mass * speed, momentum * speed + pressure, (energy + pressure) * speed.abs().sqrt()], -1)


def mixed(state: Tensor) -> Tensor:
    """The same, with a product of matrices of each sample behind it, and more behind that."""
    matrix = torch.sin(state[..., :, None] * state[..., None, :])
    return 2 * torch.tanh((matrix @ pressures(state)[..., None]).squeeze(-1)) + state


def turned(state: Tensor) -> Tensor:
    """The same, with a product of matrices in front that all samples share."""
    return pressures(state @ TURN)


TURN = torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(0))


def rows_of(program):
    """Return the constants of a program that hold a few rows for each sample."""
    return [tensor for tensor in program.fixed.values() if tensor.shape[:1] == (SAMPLES,) and tensor.numel() > SAMPLES]


@pytest.mark.parametrize("function", [pressures, turned, mixed])
def test_replays_give_the_jacobians_of_every_batch(function):
    plan = plan_jacobian(function, randn(SAMPLES, 3), batch_dims=1)
    for _ in range(4):
        x = randn(SAMPLES, 3)
        found = plan(x)
        assert_same(found, torch.func.vmap(torch.func.jacrev(function))(x))
        assert found.is_contiguous()


def test_rows_lie_by_columns_where_all_is_pointwise():
    x = randn(SAMPLES, 3)
    program = program_of(plan_jacobian(pressures, x, batch_dims=1), x)
    rows = rows_of(program)
    assert rows
    assert all(tensor.stride(0) == 1 for tensor in rows)


def _program(function):
    x = randn(SAMPLES, 1, 1)
    recorder = ProgramRecorder([x])
    with recorder, torch.no_grad():
        result = function(x)
    program = recorder.program(recorder.numbers([result]))
    assert program is not None
    values = run_calls(program.calls, {**program.fixed, 0: x})
    assert_same(values[program.results[0]], result)
    assert values[program.results[0]].stride() == result.stride()
    return program


def _rows() -> Tensor:
    return torch.arange(1.0, 4.0, dtype=F64)[:, None] * 2


def test_rows_lie_by_columns_where_they_are_collected():
    program = _program(lambda x: torch.stack([(_rows() * x).exp(), _rows() / x], 3))
    assert {tensor.stride() for tensor in rows_of(program)} == {(1, SAMPLES, SAMPLES)}


@pytest.mark.parametrize(
    "function",
    [lambda x: (_rows() * x) @ x, lambda x: (_rows() * x).sum(1), lambda x: (_rows() * x).exp()],
    ids=["product", "sum", "result"],
)
def test_rows_lie_as_they_did_elsewhere(function):
    assert not rows_of(_program(function))
