"""Jacobians inside of functions that `torch.compile` compiles: such a call runs as it stands, between two graphs."""

import pytest
import torch
from jacobian_checks import assert_same, randn
from torch import nn

from torch_jvpvjp.accumulation import Chain, gauss_newton, jacobian, plan_jacobian

pytestmark = pytest.mark.compiled
NET = nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.SiLU(), nn.Linear(9, 6)).double()
PLAN = plan_jacobian(NET, torch.zeros(6, dtype=torch.float64))
FUNCTIONS = {
    "jacobian": lambda x: 2 * jacobian(NET, x * x).sum(),
    "a plan": lambda x: 2 * PLAN(x * x).sum(),
    "a plan made inside": lambda x: plan_jacobian(NET, x)(x).square().sum(),
    "a function made inside": lambda x: jacobian(lambda y: NET(y) * y, 2 * x).square().sum(),
    "gauss_newton": lambda x: gauss_newton(NET, x)(x).sum(),
    "a chain": lambda x: Chain([NET]).plan(x)(x).sum(),
    "a compiled plan": lambda x: jacobian(NET, x, compile=True).sum(),
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=list(FUNCTIONS))
def test_values_are_those_outside(function):
    compiled = torch.compile(function, backend="aot_eager")
    for _ in range(3):
        x = randn(6)
        assert_same(compiled(x), function(x))


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # Dynamo's own, of any two graphs
def test_a_loss_of_a_jacobian_has_the_gradients_that_it_has_outside():
    def loss(x):
        return jacobian(NET, x, batch_dims=1, create_graph=True).square().sum() + NET(x).sum()

    x, compiled = randn(3, 6), torch.compile(loss, backend="aot_eager")
    for _ in range(3):
        found, expected = (
            torch.autograd.grad(f(x), list(NET.parameters()), allow_unused=True) for f in (compiled, loss)
        )
        assert_same(torch.cat([g.flatten() for g in found]), torch.cat([g.flatten() for g in expected]))
