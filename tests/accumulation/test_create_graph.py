"""Gradients of Jacobians: by create_graph, and inside torch.func transforms."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, randn
from torch import nn

from torch_jvpvjp.accumulation import STRATEGIES, jacobian, plan_jacobian


def _net():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2), nn.Softmax(-1)).to(F64)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_loss_of_the_jacobian_has_its_gradient_in_x_and_parameters(strategy):
    net, x = _net(), randn(3).requires_grad_()
    plan = plan_jacobian(net, x, create_graph=True, strategy=strategy)
    leaves = [x, *net.parameters()]
    expected = torch.autograd.grad(
        torch.autograd.functional.jacobian(net, x, create_graph=True).sin().sum(), leaves, allow_unused=True
    )
    for _ in range(2):
        for found in (plan(x), jacobian(net, x, create_graph=True)):
            gradients = torch.autograd.grad(found.sin().sum(), leaves, allow_unused=True)
            for gradient, judge in zip(gradients, expected, strict=True):
                zero = torch.zeros(1, dtype=F64)
                assert_same((zero if gradient is None else gradient).sum(), (zero if judge is None else judge).sum())
                if gradient is not None and judge is not None:
                    assert_same(gradient, judge)


def test_gradients_of_jacobians_by_differences():
    x, weight = randn(3).requires_grad_(), randn(2, 3).requires_grad_()

    def loss(v, w):
        return jacobian(lambda u: (w @ u.sin()).tanh() * u.sum(), v, create_graph=True)

    assert torch.autograd.gradcheck(loss, (x, weight))


def test_gradients_in_what_the_jacobian_of_parameters_depends_on():
    net, x = _net(), randn(3)
    found = jacobian(net, x, wrt="0.weight", create_graph=True)
    (gradient,) = torch.autograd.grad(found.square().sum(), net[3].weight)
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def judge(outer):
        def function(inner):
            return torch.func.functional_call(net, parameters | {"3.weight": outer, "0.weight": inner}, (x,))

        return torch.func.jacrev(function)(parameters["0.weight"]).square().sum()

    assert_same(gradient, torch.func.grad(judge)(parameters["3.weight"]))


def test_without_create_graph_nothing_is_attached():
    net, x = _net(), randn(3).requires_grad_()
    plan = plan_jacobian(net, x)
    for _ in range(2):
        assert not plan(x).requires_grad and not jacobian(net, x).requires_grad
    assert not jacobian(net, x, wrt="0.weight").requires_grad


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_replayed_plan_is_right_inside_transforms(strategy):
    net, batch = _net(), randn(4, 3)
    plan = plan_jacobian(net, batch[0], strategy=strategy)
    for _ in range(2):
        plan(batch[0])
    assert_same(torch.func.vmap(plan)(batch), torch.stack([judged(net, row) for row in batch]))
    assert_same(torch.func.jacrev(plan)(batch[0]), torch.func.jacrev(torch.func.jacrev(net))(batch[0]))
    assert_same(torch.func.jacfwd(plan)(batch[0]), torch.func.jacrev(torch.func.jacrev(net))(batch[0]))
    hessians = torch.func.vmap(torch.func.jacrev(plan))(batch)
    assert_same(hessians, torch.func.vmap(torch.func.jacrev(torch.func.jacrev(net)))(batch))
    assert_same(plan(batch[1]), judged(net, batch[1]))


def test_a_plan_that_was_first_called_inside_a_transform_is_right_outside():
    net, x = _net(), randn(3)
    plan = plan_jacobian(net, x)
    torch.func.grad(lambda v: plan(v).sum())(x)
    for point in (x, x, x + 1):
        assert_same(plan(point), judged(net, point))


def test_forward_mode_by_dual_numbers():
    net, x, direction = _net(), randn(3), randn(3)
    plan = plan_jacobian(net, x)
    plan(x)
    with torch.autograd.forward_ad.dual_level():
        pushed = torch.autograd.forward_ad.unpack_dual(plan(torch.autograd.forward_ad.make_dual(x, direction))).tangent
    assert_same(pushed, torch.func.jvp(torch.func.jacrev(net), (x,), (direction,))[1])


def _written(x):
    out = torch.zeros_like(x)
    out[..., 0] = x[..., 0] ** 2
    out[..., -1] = x[..., 1].sin() * x[..., 2]
    return out


def _stacked(x):
    return torch.stack([x[..., 0] ** 2, 0 * x[..., 1], x[..., 1].sin() * x[..., 2]], -1)


def _scattered(x):
    return torch.select_scatter(2 * x, x[..., 1].exp(), -1, -2).sin()


def _put_together(x):
    return torch.stack([2 * x[..., 0], x[..., 1].exp(), 2 * x[..., 2]], -1).sin()


@pytest.mark.parametrize("objective", ["fma", "memory", "time"])
@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize(("written", "alike"), [(_written, _stacked), (_scattered, _put_together)])
def test_what_is_written_into_a_place_counts_once(written, alike, batch_dims, objective):
    x = randn(2, 3).requires_grad_()  # under `vmap`, the derivative of `select_scatter` counts it as often as x is long
    jacrev = torch.func.jacrev(alike)
    expected = torch.func.vmap(jacrev)(x) if batch_dims else jacrev(x)
    found = plan_jacobian(written, x, batch_dims=batch_dims, objective=objective, create_graph=True)(x)
    assert_same(found, expected)
    assert_same(*(torch.autograd.grad(jacobian.sin().sum(), x)[0] for jacobian in (found, expected)))
