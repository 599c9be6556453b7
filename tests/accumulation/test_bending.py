"""Jacobians that are differentiated in turn are right where PyTorch's forward mode is right only once."""

import pytest
import torch
from jacobian_checks import F64, assert_same, randn
from torch import nn

from torch_jvpvjp.accumulation import jacobian, plan_jacobian


def _net(*layers):
    return nn.Sequential(*layers).to(F64).requires_grad_(False)


FUNCTIONS = {
    # more outputs than inputs, so that tangents are preferred
    "layer norm": (lambda: _net(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 30), nn.Tanh()), (2, 3)),
    "batch norm": (
        lambda: _net(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 30), nn.Tanh()),
        (5, 3),
    ),
    "instance norm": (lambda: _net(nn.Conv1d(2, 3, 3), nn.InstanceNorm1d(3), nn.Conv1d(3, 9, 3), nn.Tanh()), (1, 2, 6)),
    "batch norm that has learnt": (lambda: _net(nn.BatchNorm1d(3), nn.Linear(3, 30), nn.Tanh()).eval(), (5, 3)),
    "solve": (lambda: lambda x: torch.linalg.solve(x[:3] + 3 * torch.eye(3), x.mT).repeat(9, 1), (5, 3)),
    "determinants": (
        lambda: lambda x: torch.linalg.det(x) * torch.arange(20, dtype=F64) + torch.linalg.slogdet(x)[1],
        (3, 3),
    ),
}


@pytest.mark.parametrize("strategy", ["forward", "reverse", "first call"])
@pytest.mark.parametrize("opaque", [False, True], ids=["recorded", "black box"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient_of_a_jacobian_is_right(name, opaque, strategy):
    make, shape = FUNCTIONS[name]
    function, x = make(), randn(*shape)

    def f(v):
        return function(v) if not opaque or float(v.detach().sum()) < 1e9 else -v

    weights = randn(*f(x).shape, *shape)
    expected = torch.func.grad(lambda v: (torch.func.jacrev(function)(v) * weights).sum())(x)
    leaf = x.clone().requires_grad_()
    options = {} if strategy == "first call" else {"strategy": strategy}
    call = jacobian if strategy == "first call" else lambda f, v, **given: plan_jacobian(f, v, **given)(v)
    (gradient,) = torch.autograd.grad((call(f, leaf, create_graph=True, **options) * weights).sum(), leaf)
    assert_same(gradient, expected)
    if strategy != "first call":
        plan = plan_jacobian(f, x, strategy=strategy)
        assert_same(torch.func.grad(lambda v: (plan(v) * weights).sum())(x), expected)


@pytest.mark.parametrize("chunk_size", [1, 4])
def test_chunks_of_such_a_black_box_are_right(chunk_size):
    make, shape = FUNCTIONS["layer norm"]
    function, x = make(), randn(*shape).requires_grad_()
    plan = plan_jacobian(
        lambda v: function(v) if float(v.detach().sum()) < 1e9 else -v,
        x,
        strategy="forward",
        chunk_size=chunk_size,
        create_graph=True,
    )
    (gradient,) = torch.autograd.grad(plan(x).sin().sum(), x)
    assert_same(gradient, torch.func.grad(lambda v: torch.func.jacrev(function)(v).sin().sum())(x.detach()))
