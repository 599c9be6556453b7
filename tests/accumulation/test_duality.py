"""Where PyTorch's JVP of a function is not the transpose of its VJP, ours is that of `jacrev`, which has the VJP."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, quiet_judge, randn

from torch_jvpvjp.accumulation import jacobian, plan_jacobian
from torch_jvpvjp.accumulation.carrying import dual

pytestmark = quiet_judge
INDEX = torch.tensor([[0, 2, 0], [1, 1, 2]])


def _product(v):
    return v.scatter_reduce(1, INDEX, v.sin(), "prod")  # its JVP is zero in 2.11 to 2.15


def _unpooled(v):
    return torch.nn.functional.max_unpool1d(v[None], INDEX[None], 1, 1, 0, (3,))[0]


def _padded(v):
    return torch.nn.functional.embedding(INDEX, v.T, padding_idx=1)  # whose row has no gradient


def _scaled_out_of_sight(v):
    y = v.sin()
    with torch.no_grad():
        y.mul_(2)
    return y * v


def _asked(v):
    return v.sin() * 2 if v.requires_grad else v.detach().sin() * 2


def _asked_where_it_looks(v):
    return _asked(v) if float(v.detach().sum()) > -1e9 else v


def _scaled_by_frequency(v):
    return torch.nn.functional.embedding(INDEX, v.T, scale_grad_by_freq=True)


FUNCTIONS = {
    "an op": _product,
    "entries written twice": _unpooled,
    "a row without gradient": _padded,
    "rows scaled by their frequency": _scaled_by_frequency,
    "written under no_grad": _scaled_out_of_sight,
    "asked for grad": _asked_where_it_looks,
}


@pytest.mark.parametrize("copies", [1, 30], ids=["square", "tall"])
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_vjp_counts(f, copies):
    def function(v):
        return torch.cat([f(v).reshape(-1)] * copies)

    x = randn(2, 3)
    expected = judged(function, x)
    assert_same(jacobian(function, x), expected)
    assert_same(jacobian(function, x, create_graph=True), expected)
    plan = plan_jacobian(function, x)
    for _ in range(2):
        assert_same(plan(x), expected)


@pytest.mark.parametrize("f", [_product, _unpooled], ids=["product", "unpooled"])
def test_forward_plans_transpose_the_vjp(f):
    x = randn(2, 3)
    plan = plan_jacobian(lambda v: f(v) * 1, x, strategy="forward")
    for _ in range(2):
        assert_same(plan(x), judged(f, x))


def test_duality_is_that_of_one_matrix():
    matrix, x_dot, y_bar = randn(4, 3), randn(3), randn(4)
    assert dual([y_bar], [matrix @ x_dot], [matrix.T @ y_bar], [x_dot])
    assert not dual([y_bar], [matrix @ x_dot], [matrix.T @ y_bar * 1.01], [x_dot])
    assert dual([y_bar], [matrix @ x_dot * torch.inf], [matrix.T @ y_bar], [x_dot])  # nothing to compare


def test_a_function_whose_pullback_takes_no_rows_at_once_goes_row_by_row():
    def function(v):
        y = torch.zeros(2, 3, dtype=F64)
        y[0] = v[0]
        return y.add_(v * v).masked_select(INDEX > 0)

    x = randn(2, 3)
    plan = plan_jacobian(function, x, strategy="reverse")
    for _ in range(2):
        assert_same(plan(x), judged(function, x))


def _far_apart(v):
    return torch.logcumsumexp(v * 20, 1) / 20  # whose JVP adds 1e-13 to what may be less than that


def _greatest(v):
    return torch.zeros_like(v).scatter_reduce(1, INDEX, v.relu(), "amax", include_self=False)


def _inverse_of_factor(v):
    return torch.cholesky_inverse(v[:, :2].tril())


WRONG_AT_SOME_POINTS = {
    "sums of exponentials": (_far_apart, torch.tensor([[-3.0, -1.0, 1.0], [2.0, -2.0, 0.0]], dtype=F64)),
    "a tie": (_greatest, torch.tensor([[-3.0, -1.0, 1.0], [2.0, -2.0, 0.0]], dtype=F64)),
    "a factor": (_inverse_of_factor, torch.tensor([[2.0, 0.0, 1.0], [0.3, 3.0, 0.0]], dtype=F64)),
}


@pytest.mark.parametrize("opaque", [False, True], ids=["recorded", "black box"])
@pytest.mark.parametrize("f, x", WRONG_AT_SOME_POINTS.values(), ids=WRONG_AT_SOME_POINTS)
def test_the_vjp_counts_where_the_jvp_is_right_at_most_points(f, x, opaque):
    def function(v):
        value = f(v) if not opaque or float(v.detach().sum()) < 1e9 else -v
        return torch.cat([value.reshape(-1)] * 9)

    def gradient(take):
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(take(leaf).square().sum(), leaf)[0]

    expected = judged(function, x)
    for found in (
        jacobian(function, x),
        jacobian(function, x, create_graph=True).detach(),
        jacobian(function, x, chunk_size=2),
        plan_jacobian(function, x + 0.1)(x),
        plan_jacobian(function, x)(x),
        plan_jacobian(function, x, chunk_size=2)(x),
    ):
        assert_same(found, expected)
    assert_same(plan_jacobian(function, x + 0.1, strategy="forward")(x), expected)
    expected = gradient(lambda v: torch.autograd.functional.jacobian(function, v, create_graph=True))
    assert_same(gradient(lambda v: jacobian(function, v, create_graph=True)), expected)
    assert_same(gradient(lambda v: plan_jacobian(function, x, create_graph=True)(v)), expected)


SINGULAR = {
    "a column of zeros": torch.tensor([[0.0, 1, 2], [0, 3, 4], [0, 5, 6]], dtype=F64),
    "a pivot of zero": torch.tensor([[1.0, 0, 0], [0, 2, 0], [0, 0, 0]], dtype=F64),
    "rank 1": torch.tensor([[1.0, 2, 0], [2, 4, 0], [0, 0, 0]], dtype=F64),
    "zeros": torch.zeros(3, 3, dtype=F64),
}


@pytest.mark.parametrize("opaque", [False, True], ids=["recorded", "black box"])
@pytest.mark.parametrize("copies", [1, 20])
@pytest.mark.parametrize("x", SINGULAR.values(), ids=SINGULAR)
def test_the_determinant_of_a_singular_matrix_has_the_cofactors_for_its_derivative(x, copies, opaque):
    def function(v):
        value = torch.linalg.det(v) if not opaque or float(v.detach().sum()) < 1e9 else -v.sum()
        return value * torch.arange(1, copies + 1)

    def cofactor(i, j):
        rows, columns = [k for k in range(3) if k != i], [k for k in range(3) if k != j]
        return (-1) ** (i + j) * torch.linalg.det(x[rows][:, columns])

    cofactors = torch.stack([torch.stack([cofactor(i, j) for j in range(3)]) for i in range(3)])
    expected = cofactors * torch.arange(1, copies + 1).reshape(-1, 1, 1)
    regular = torch.eye(3, dtype=F64) + x / 10
    plan = plan_jacobian(function, regular)
    found = [
        jacobian(function, x),
        jacobian(function, x, create_graph=True).detach(),
        jacobian(function, x, chunk_size=2),
        plan_jacobian(function, x)(x),
        plan_jacobian(function, x, create_graph=True)(x).detach(),
        [plan(regular), plan(regular), plan(x)][-1],
        [plan(regular), plan(x)][-1],
        plan_jacobian(function, x, strategy="forward")(x),
    ]
    if not opaque:
        batch = jacobian(torch.linalg.det, torch.stack([regular, x]), batch_dims=1)
        assert_same(batch[1], cofactors)
    for one in found:
        assert_same(one, expected)
        assert not one.requires_grad
