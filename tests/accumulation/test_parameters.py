"""Jacobians in the parameters of a module, judged by jacrev of functional_call."""

import pytest
import torch
from jacobian_checks import F64, assert_same, check_jacobian, parameters_judged, quiet_judge, randn
from torch import nn

from torch_jvpvjp.accumulation import jacobian, plan_jacobian


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.register_buffer("gain", torch.randn(3))

    def forward(self, v):
        return self.b(self.a(v).sin()) * self.gain


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 2)

    def forward(self, v):
        return self.a(v) if v.sum() > 0 else self.a(v) ** 2


def _convolutional():
    layers = [nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LayerNorm(2)]
    return nn.Sequential(*layers, nn.Linear(2, 3)).eval()


MODULES = {
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), lambda: randn(3)),
    "mlp of rows": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), lambda: randn(5, 3)),
    "tied weights": (Tied, lambda: randn(3)),
    "convolutions": (_convolutional, lambda: randn(1, 1, 3, 3)),
    "embedding": (lambda: nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 2)), lambda: torch.tensor([1, 0, 1])),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
        lambda: randn(1, 2, 4),
    ),
    "recurrent": (lambda: nn.LSTMCell(3, 2), lambda: randn(3)),
    "branching": (Branching, lambda: randn(3)),
}


@quiet_judge
@pytest.mark.parametrize(("module", "x"), MODULES.values(), ids=MODULES)
def test_all_parameters(module, x):
    module, x = module().to(F64), x()
    check_jacobian(module, x, judge=lambda point: parameters_judged(module, point), wrt="parameters")


def test_some_parameters_by_name():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)
    x = randn(3)
    names = ("2.bias", "0.weight")
    expected = parameters_judged(net, x)
    assert_same(jacobian(net, x, wrt="0.weight"), expected["0.weight"])
    assert_same(jacobian(net, x, wrt=list(names)), {name: expected[name] for name in names})


def test_a_plan_follows_the_parameters():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)
    x = randn(3)
    plan = plan_jacobian(net, x, wrt="parameters")
    plan(x)
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert_same(plan(x), parameters_judged(net, x))
    net[2].weight = nn.Parameter(randn(2, 4))
    assert_same(plan(x), parameters_judged(net, x))
    assert_same(jacobian(net, x, wrt="parameters"), parameters_judged(net, x))


@pytest.mark.parametrize("batch", [(4,), (2, 3)], ids=str)
def test_each_sample_of_a_batch_has_a_jacobian_in_the_parameters(batch):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(F64)
    x = randn(*batch, 3)
    dims = len(batch)
    plan = plan_jacobian(net, x, wrt="parameters", batch_dims=dims)
    for point in (x, x, x + 0.3):
        singles = [parameters_judged(net, row) for row in point.reshape(-1, 3)]
        expected = {name: torch.stack([one[name] for one in singles]) for name in singles[0]}
        expected = {name: value.reshape(*batch, *value.shape[1:]) for name, value in expected.items()}
        assert_same(plan(point), expected)
        assert_same(jacobian(net, point, wrt="parameters", batch_dims=dims), expected)


def test_parameters_that_do_not_exist_are_refused():
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"wrt must name parameters of f, weight, bias, got \['gain'\]"):
        jacobian(net, torch.ones(3), wrt="gain")
    with pytest.raises(ValueError, match="which has none"):
        jacobian(nn.Tanh(), torch.ones(3), wrt="parameters")
    with pytest.raises(TypeError, match="f must be an nn.Module where wrt names parameters, got function"):
        jacobian(lambda v: v, torch.ones(3), wrt="parameters")


class Timed(nn.Module):
    """A module of a vector and a number, as of a time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2).to(F64)

    def forward(self, v, time):
        return self.linear(v * time).sin()


def test_an_argument_without_axes():
    net, x, time = Timed(), randn(3), torch.tensor(0.7, dtype=F64)
    expected = parameters_judged(net, x, time)
    plan = plan_jacobian(net, (x, time), wrt="parameters")
    for _ in range(3):
        assert_same(plan((x, time)), expected)
        assert_same(jacobian(net, (x, time), wrt="parameters", objective="fma"), expected)
