"""A Jacobian inside of a function that is differentiated is part of what is differentiated."""

import pytest
import torch
from jacobian_checks import F64, assert_same, randn
from torch import Tensor

from torch_jvpvjp.accumulation import jacobian, plan_jacobian

WEIGHT = torch.randn(3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))


def rows(x: Tensor) -> Tensor:
    return torch.sin(x @ WEIGHT.T) * x[..., :3]


def manipulability(x: Tensor, by=jacobian) -> Tensor:
    matrix = by(rows, x)
    return torch.linalg.det(matrix @ matrix.T).sqrt()


@pytest.mark.parametrize("inner_calls", [0, 100], ids=["first calls", "the inner one is planned"])
def test_a_jacobian_of_a_jacobian(inner_calls):
    x = randn(4)
    expected = torch.func.jacrev(torch.func.jacrev(rows))(x)
    of_manipulability = torch.func.grad(lambda v: manipulability(v, lambda f, u: torch.func.jacrev(f)(u)))(x)
    inner = lambda v: jacobian(rows, v)  # noqa: E731
    for _ in range(inner_calls):
        inner(x)
    for _ in range(3):
        assert_same(jacobian(inner, x), expected)
        assert_same(jacobian(manipulability, x), of_manipulability)
    assert not jacobian(rows, x.clone().requires_grad_()).requires_grad


def test_a_jacobian_of_what_a_plan_returns():
    x, plan = randn(4), plan_jacobian(rows, randn(4))
    plan(x)  # the next call replays
    expected = torch.func.jacrev(torch.func.jacrev(rows))(x)
    assert_same(jacobian(lambda v: plan(v), x), expected)
    assert_same(plan_jacobian(lambda v: jacobian(rows, v), x)(x), expected)


def test_jacobians_of_jacobians_of_a_batch():
    x = randn(5, 4)
    expected = torch.func.vmap(torch.func.jacrev(torch.func.jacrev(rows)))(x)
    for _ in range(3):
        assert_same(jacobian(lambda v: jacobian(rows, v, batch_dims=1), x, batch_dims=1), expected)


def test_an_error_leaves_nothing_behind():
    def fails(v: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    x = randn(4).requires_grad_()
    with pytest.raises(RuntimeError, match="on purpose"):
        jacobian(fails, x)
    assert not jacobian(rows, x).requires_grad
