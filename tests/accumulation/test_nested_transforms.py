"""Functions that differentiate inside, as residuals of differential equations do: recorded, and right."""

import pytest
import torch
from jacobian_checks import assert_same, judged, randn
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.nn import functional

from torch_jvpvjp.accumulation import jacobian, plan_jacobian
from torch_jvpvjp.accumulation.count import FmaCounter

POINT, POINTS = torch.tensor([0.3, -0.7], dtype=torch.float64), torch.linspace(-1, 1, 8, dtype=torch.float64)


def _network(weights):
    return lambda point: torch.tanh(weights @ point)


def _layers(weights):
    return lambda point: torch.tanh(functional.linear(point, weights, weights[:, 0]))


FUNCTIONS = {
    "grad": lambda w: grad(lambda p: _network(w)(p).sum())(POINT),
    "hessian": lambda w: hessian(lambda p: _network(w)(p).sum())(POINT),
    "jacfwd": lambda w: jacfwd(_network(w))(POINT),
    "jacrev": lambda w: jacrev(_network(w))(POINT),
    "jvp": lambda w: jvp(_network(w), (POINT,), (POINT,))[1],
    "jvp of a batch": lambda w: vmap(lambda p: jvp(_network(w), (p,), (POINT,))[1])(POINTS.reshape(4, 2)),
    "hessians of a batch": lambda w: vmap(hessian(lambda p: _network(w)(p).sum()))(POINTS.reshape(4, 2)),
    "jacfwd of a batch": lambda w: vmap(jacfwd(_layers(w)))(POINTS.reshape(4, 2)),
    "Laplacians of a batch": lambda w: vmap(lambda p: jacfwd(jacfwd(_layers(w)))(p).sum())(POINTS.reshape(4, 2)),
    "jacobian of a pair": lambda w: jacfwd(lambda p, q: _network(w)(p) * q[0], argnums=(0, 1))(POINT, POINTS)[1],
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_a_derivative_inside_is_recorded(function):
    weights = randn(3, 2)
    plan = plan_jacobian(function, weights)
    assert not plan.runtime.refusals()
    for point in (weights, 2 * weights):
        assert_same(plan(point), judged(function, point))
        assert_same(jacobian(function, point), judged(function, point))


def test_recording_leaves_the_bases_of_pytorch_alone():
    module = torch._functorch.eager_transforms
    before = module._chunked_standard_basis_for_
    plan_jacobian(FUNCTIONS["hessian"], randn(3, 2))
    assert module._chunked_standard_basis_for_ is before


def test_complex_arithmetic_is_counted():
    x = torch.ones(8, 16, dtype=torch.complex128)
    with FmaCounter() as counter:
        torch.fft.fft(x)  # 2.5 N log₂ N for each of eight rows
        x * x
    assert counter.fma == 8 * 160 + 2 * 128
