"""Products with a Jacobian that are planned as one: U J V with seeds, and the Gauss-Newton matrix."""

import pytest
import torch
from jacobian_checks import F64, assert_same, composed, judged, randn
from torch import nn

from torch_jvpvjp.accumulation import STRATEGIES, Chain
from torch_jvpvjp.accumulation.api import gauss_newton


def _stages():
    return [nn.Linear(5, 4).to(F64), nn.Tanh(), nn.Linear(4, 6).to(F64), nn.Softmax(-1)]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("sides", ["left", "right", "both"])
def test_seeds_multiply_the_jacobian(sides, strategy):
    stages, x = _stages(), randn(2, 5)
    left = randn(3, 12) if sides != "right" else None
    right = randn(10, 2) if sides != "left" else None
    plan = Chain(stages).plan(x, left=left, right=right, strategy=strategy)
    for point in (x, x, x + 0.5):
        expected = judged(composed(stages), point).reshape(12, 10)
        expected = expected if left is None else left @ expected
        expected = expected if right is None else expected @ right
        assert_same(plan(point).reshape(expected.shape), expected)


def test_one_cotangent_does_not_cost_a_jacobian():
    stages = [nn.Linear(40, 50).to(F64), nn.Tanh(), nn.Linear(50, 60).to(F64)]
    x = randn(40)
    chain = Chain(stages)
    assert chain.plan(x, left=randn(1, 60)).cost < chain.plan(x).cost / 10
    assert chain.plan(x, right=randn(40, 1)).cost < chain.plan(x).cost / 10


@pytest.mark.parametrize("objective", ["fma", "memory", "time"])
def test_seeds_without_rows_give_a_product_without_rows(objective):
    chain, x = Chain([nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)]), torch.ones(3)
    assert chain.plan(x, left=torch.ones(0, 2), objective=objective)(x).shape == (0, 3)
    assert chain.plan(x, right=torch.ones(3, 0), objective=objective)(x).shape == (2, 0)
    assert chain.plan(x, left=torch.ones(0, 2), right=torch.ones(3, 0), objective=objective)(x).shape == (0, 0)


def test_bad_seeds_are_refused():
    chain, x = Chain([nn.Linear(3, 2)]), torch.ones(3)
    with pytest.raises(ValueError, match=r"left must be a matrix of shape \(rows, 2\), got \(2, 3\)"):
        chain.plan(x, left=torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"right must be a matrix of shape \(3, columns\), got \(3,\)"):
        chain.plan(x, right=torch.ones(3))
    with pytest.raises(TypeError, match="left must be a floating tensor, got torch.int64"):
        chain.plan(x, left=torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(
        TypeError, match=r"left must be of dtype torch.float32, got torch.float64; use .to\(torch.float32"
    ):
        chain.plan(x, left=torch.ones(1, 2, dtype=F64))
    with pytest.raises(TypeError, match="right must be of dtype torch.float32, got torch.float64"):
        chain.plan(x, right=torch.ones(3, 1, dtype=F64))
    with pytest.raises(ValueError, match=r"left must be on cpu, got meta; use .to\(x.device\)"):
        chain.plan(x, left=torch.ones(1, 2, device="meta"))
    with pytest.raises(TypeError, match="x must be a floating tensor where there are seeds, got tuple"):
        chain.plan((x,), left=torch.ones(1, 2))


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("weighted", [True, False], ids=["hessian", "identity"])
def test_the_gauss_newton_matrix(weighted, strategy):
    stages, x = (_stages()[2:], randn(4)) if strategy == "exhaustive" else (_stages(), randn(5))
    hessian = randn(6, 6)
    hessian = hessian @ hessian.T if weighted else None
    plan = gauss_newton(stages, x, hessian, strategy=strategy)
    for point in (x, x, x - 0.5):
        jacobian = judged(composed(stages), point)
        assert_same(plan(point), jacobian.T @ jacobian if hessian is None else jacobian.T @ hessian @ jacobian)


def test_the_gauss_newton_matrix_of_a_hessian_that_is_not_symmetric():
    stages, x, weights = _stages(), randn(5), randn(6, 6)
    jacobian = judged(composed(stages), x)
    assert_same(gauss_newton(stages, x, weights)(x), jacobian.T @ weights @ jacobian)


def test_a_bad_hessian_is_refused():
    with pytest.raises(ValueError, match=r"hessian must be a matrix of shape \(2, 2\), got \(3, 3\)"):
        gauss_newton(nn.Linear(3, 2), torch.ones(3), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"hessian must be a matrix of shape \(2, 2\), got \(2, 5\)"):
        gauss_newton(nn.Linear(3, 2), torch.ones(3), torch.ones(2, 5))
    with pytest.raises(TypeError, match="gauss_newton: hessian must be of dtype torch.float32, got torch.float64"):
        gauss_newton(nn.Linear(3, 2), torch.ones(3), torch.eye(2, dtype=F64))
    with pytest.raises(TypeError, match="gauss_newton: x must be a floating tensor, got list"):
        gauss_newton(nn.Linear(3, 2), [1.0])
