"""Sums and products with a factor of which one tensor has no tangent: what PyTorch's JVPs do then ends the process."""

import pytest
import torch
from jacobian_checks import F64, assert_same, randn

from torch_jvpvjp import differentiable_op
from torch_jvpvjp._zero_tangents import without_scaled_zeros
from torch_jvpvjp.accumulation import jacobian, plan_jacobian
from torch_jvpvjp.accumulation.count import FmaCounter

N = 4
CONSTANT, MATRIX = randn(N), randn(N, N)


def _opaque(x):
    y = torch.addr(MATRIX, torch.add(x, CONSTANT, alpha=0.5).sin(), x, alpha=0.5, beta=0.3) @ CONSTANT
    return y if float(x.detach().abs().max()) < 1e9 else -y


def _pushed_within(x):
    pushed = torch.func.jvp(
        lambda t: torch.add(t * t, CONSTANT, alpha=0.5) * torch.sub(CONSTANT, t, alpha=3), (x,), (CONSTANT,)
    )
    return pushed[0] + pushed[1]


FUNCTIONS = {
    "a sum with a number of no axes": lambda x: torch.add(x.max(), CONSTANT.view(1, 1, N), alpha=0.5) * x,
    "a sum with another shape": lambda x: torch.sub(x[:2, None], x, alpha=0.5) * x,
    "rsub": lambda x: torch.rsub(CONSTANT.view(1, N), x.max(), alpha=0.5) * x,
    "an outer product added": lambda x: torch.addr(MATRIX, x, x.sin(), alpha=0.5, beta=0.2),
    "to a constant": lambda x: torch.addr(MATRIX, x, CONSTANT, alpha=0.5, beta=0.2) * x,
    "addcmul": lambda x: torch.addcmul(CONSTANT, x[:, None], x.sin(), value=0.5),
    "a black box": _opaque,
    "a JVP within": _pushed_within,
}


@pytest.mark.parametrize("strategy", ["forward", "reverse", "first call"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_jacobians_are_right(name, strategy):
    function, x = FUNCTIONS[name], randn(N)
    expected = torch.func.jacrev(function)(x)
    if strategy == "first call":
        assert_same(jacobian(function, x), expected)
        return
    plan = plan_jacobian(function, x, strategy=strategy)
    for _ in range(3):
        assert_same(plan(x), expected)
    leaf = x.clone().requires_grad_()
    again = plan_jacobian(function, leaf, strategy=strategy, create_graph=True)
    (gradient,) = torch.autograd.grad(again(leaf).square().sum(), leaf)
    assert_same(gradient, torch.func.grad(lambda v: torch.func.jacrev(function)(v).square().sum())(x))


def test_an_op_of_such_a_formula_is_right():
    @differentiable_op("zero_tangents::sum")
    def op(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.add(x.sin(), y, alpha=0.5) * torch.sub(y[:1], x, alpha=2.0)

    x = randn(N)
    for function in (lambda x: op(x, CONSTANT), lambda x: op(CONSTANT, x * x)):
        expected = torch.func.jacrev(function)(x)
        assert_same(torch.func.jacfwd(function)(x), expected)
        assert_same(plan_jacobian(function, x, strategy="forward")(x), expected)


def test_operations_are_counted():
    x = randn(N)
    with FmaCounter() as counter:
        tangent = torch.func.jvp(lambda a: torch.add(a, CONSTANT, alpha=0.5), (x,), (x,))[1]
    assert counter.fma >= N
    assert_same(tangent, x)


@pytest.mark.parametrize(("dtype", "number"), [(F64, 2), (torch.float32, 0.5), (torch.float32, 2.0j)])
def test_the_zero_is_that_which_the_product_would_be(dtype, number):
    zero = torch.ops.aten._efficientzerotensor([2, 3], dtype=dtype, device="cpu")
    func, args, kwargs = without_scaled_zeros(torch.ops.aten.mul.Scalar, (zero, number), {})
    made, expected = func(*args, **kwargs), torch.zeros(2, 3, dtype=dtype) * number
    assert made._is_zerotensor()
    assert (made.dtype, made.shape, made.device) == (expected.dtype, expected.shape, expected.device)


def test_other_products_stay():
    call = torch.ops.aten.mul.Scalar, (torch.ones(2), 2.0), {}
    assert without_scaled_zeros(*call) == call
