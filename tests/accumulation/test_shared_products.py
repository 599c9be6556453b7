"""A weight that the samples of a batch share is not copied for each of them."""

import pytest
import torch
from jacobian_checks import F64, assert_same, randn
from replay_checks import program_of, values_of
from torch import Tensor

from torch_jvpvjp.accumulation import plan_jacobian

ATEN = torch.ops.aten


def of_left(x: Tensor) -> Tensor:
    return torch.tanh(torch.einsum("ehn,ben->beh", WEIGHT, torch.tanh(x)))


def of_right(x: Tensor) -> Tensor:
    return torch.tanh((torch.tanh(x).unsqueeze(-2) @ WEIGHT).squeeze(-2))


def of_a_left_factor(x: Tensor) -> Tensor:
    return torch.tanh((WEIGHT @ torch.tanh(x).unsqueeze(-1)).squeeze(-1))


WEIGHT = torch.randn(3, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("function", [of_left, of_right, of_a_left_factor])
@pytest.mark.parametrize("strategy", ["forward", "reverse", "dynamic_programming"])
def test_the_samples_stand_side_by_side(function, strategy):
    x = randn(5, 3, 8)
    plan = plan_jacobian(function, x, batch_dims=1, strategy=strategy)
    expected = torch.stack([torch.func.jacrev(lambda v: function(v[None])[0])(sample) for sample in x])
    for _ in range(2):  # the executor, then the recorded program
        assert_same(plan(x), expected)
    program = program_of(plan, x)
    values = values_of(program, [x, WEIGHT])
    copies = [call.outputs[0] for call in program.calls if call.target is ATEN.clone.default]
    for out in map(values.__getitem__, copies):
        if out.shape == (5, 3, 8, 8):
            assert not torch.equal(out, WEIGHT.expand(5, 3, 8, 8))
            assert not torch.equal(out, WEIGHT.mT.expand(5, 3, 8, 8))
    assert any(call.target is ATEN.bmm.default for call in program.calls)
