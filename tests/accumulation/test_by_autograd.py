"""Functions that autograd takes and no transform of torch.func does are planned, as one stage of adjoints."""

import copy

import numpy as np
import pytest
import torch
from jacobian_checks import F64, assert_same, randn
from torch import nn

from torch_jvpvjp.accumulation import Chain, jacobian, plan_jacobian

WEIGHT = torch.linspace(-1, 1, 25, dtype=F64).reshape(5, 5)


class Old(torch.autograd.Function):
    """One without `setup_context`; its derivative is twice that of exp, so that nobody can take another for it."""

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, y_bar):
        return 2 * y_bar * ctx.saved_tensors[0]


class InNumpy(Old):
    """One that leaves PyTorch in both directions, so that it takes rows one by one."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = np.exp(x.detach().numpy())
        return torch.from_numpy(ctx.y)

    @staticmethod
    def backward(ctx, y_bar):
        return torch.from_numpy(2 * y_bar.numpy() * ctx.y)


def old(x):
    return WEIGHT @ Old.apply(WEIGHT @ x).tanh()


def in_numpy(x):
    return WEIGHT @ InNumpy.apply(WEIGHT @ x).tanh()


def energy(x):
    return (WEIGHT @ x).cos().exp().sum() * x.square().sum()


def forces(x):
    return -torch.autograd.grad(energy(x), x, create_graph=True)[0]


def forces_of_own_point(x):
    with torch.enable_grad():
        x = x if x.requires_grad else x.detach().requires_grad_()
        return forces(x)


FUNCTIONS = {f.__name__: f for f in (old, in_numpy, forces, forces_of_own_point)}


def by_autograd(f, x):
    return torch.autograd.functional.jacobian(f, x)


@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"memory_limit": "1MB"}, {"objective": "fma"}], ids=str)
def test_a_plan_gives_the_jacobian_of_autograd(f, options):
    x = randn(5)
    plan = plan_jacobian(f, x, **options)
    for point in (x, x, x + 0.3):
        assert_same(plan(point), by_autograd(f, point))
        assert_same(jacobian(f, point, **options), by_autograd(f, point))


@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_it_stands_between_stages_that_are_recorded(f):
    x, layers = randn(7), [nn.Linear(7, 5).to(F64), nn.Linear(5, 3).to(F64)]
    stages = [layers[0], f, layers[1]]
    plan = Chain(stages).plan(x)
    expected = layers[1].weight @ by_autograd(f, layers[0](x).detach()) @ layers[0].weight
    assert len(plan.factors) == 3 and plan.factors[1].jvp_cost is None
    assert_same(plan(x), expected.detach())


@pytest.mark.parametrize("f", [old, forces], ids=lambda f: f.__name__)
def test_samples_of_a_batch_go_one_after_another(f):
    x = randn(3, 5)

    def each(samples):
        return torch.stack([f(sample) for sample in samples])

    found = plan_jacobian(each, x, batch_dims=1)(x)
    assert_same(found, torch.stack([by_autograd(f, sample) for sample in x]))


@pytest.mark.parametrize("f", [old, forces], ids=lambda f: f.__name__)
def test_the_jacobian_of_a_plan_is_differentiated(f):
    x = randn(5).requires_grad_()
    plan = plan_jacobian(f, x, create_graph=True)
    expected = torch.autograd.functional.jacobian(f, x, create_graph=True)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    for found in (plan(x), jacobian(f, x, create_graph=True)):
        assert_same(torch.autograd.grad(found.square().sum(), x)[0], gradient)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).to(F64).train()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_plan_counts_a_batch_in_each_call_and_none_before(wrapped):
    net, x = network(), randn(6, 4)
    expected, f = by_autograd(copy.deepcopy(net), x), (lambda v: net(v)) if wrapped else net
    statistics = copy.deepcopy(net[1].state_dict())
    plan = plan_jacobian(f, x)
    assert all(torch.equal(statistics[key], value) for key, value in net[1].state_dict().items())
    once = copy.deepcopy(net)
    once(x)
    assert_same(plan(x), expected)
    assert_same(net[1].running_mean, once[1].running_mean)
    for calls in range(2, 4):
        assert_same(plan(x), expected)
        assert net[1].num_batches_tracked == calls


def test_statistics_that_are_not_tracked_are_recorded():
    net, x = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, track_running_stats=False)).to(F64).train(), randn(6, 4)
    plan = plan_jacobian(net, x)
    assert not plan.runtime.refusals()
    assert_same(plan(x), by_autograd(net, x))
