"""Ops of `torch.library`, whose derivatives PyTorch leaves out without a word: taken by autograd, or refused."""

import numpy as np
import pytest
import torch
from jacobian_checks import F64, assert_same, randn

import torch_jvpvjp as tj

pytestmark = pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered")  # which PyTorch says of zeros


@torch.library.custom_op("left_out::with_pullback", mutates_args=())
def with_pullback(x: torch.Tensor) -> torch.Tensor:
    return x * x


with_pullback.register_autograd(
    lambda ctx, y_bar: 2 * y_bar * ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


@torch.library.custom_op("left_out::without", mutates_args=())
def without(x: torch.Tensor) -> torch.Tensor:
    return x * x


@torch.library.custom_op("left_out::without_but_fake", mutates_args=())
def without_but_fake(x: torch.Tensor) -> torch.Tensor:
    return x * x


without_but_fake.register_fake(torch.empty_like)

LIBRARY = torch.library.Library("left_out", "FRAGMENT")
LIBRARY.define("seen_through(Tensor x) -> Tensor")
LIBRARY.impl("seen_through", lambda x: x * x, "CPU")
for name in ("numpy", "numpy_but_fake"):
    LIBRARY.define(f"{name}(Tensor x) -> Tensor")
    LIBRARY.impl(name, lambda x: torch.from_numpy(np.square(x.detach().numpy())), "CPU")
torch.library.register_fake("left_out::numpy_but_fake", torch.empty_like, lib=LIBRARY)


class PushedAlone(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, x_dot):
        return 2 * x_dot * ctx.saved_tensors[0]


DERIVED = {"pullback": with_pullback, "seen through": torch.ops.left_out.seen_through, "pushed": PushedAlone.apply}
UNDERIVED = {
    "custom op": without,
    "custom op with fake": without_but_fake,
    "library": torch.ops.left_out.numpy,
    "library with fake": torch.ops.left_out.numpy_but_fake,
}

WAYS = {
    "first calls": lambda f, x: tj.jacobian(f, x),
    "create_graph": lambda f, x: tj.jacobian(f, x, create_graph=True).detach(),
    "chunks": lambda f, x: tj.jacobian(f, x, chunk_size=2),
    "sparse": lambda f, x: tj.jacobian(f, x, sparse=True).to_dense(),
    "plan": lambda f, x: tj.plan_jacobian(f, x)(x),
    "plan to be differentiated": lambda f, x: tj.plan_jacobian(f, x, create_graph=True)(x).detach(),
    "batch": lambda f, x: tj.jacobian(f, torch.stack([x, x]), batch_dims=1)[1],
    "plan of a batch": lambda f, x: tj.plan_jacobian(f, torch.stack([x, x]), batch_dims=1)(torch.stack([x, x]))[1],
    "batch of trees": lambda f, x: tj.jacobian(lambda t: f(t["x"]), {"x": torch.stack([x, x])}, batch_dims=1)["x"][1],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("sizes", [(2, 30), (5, 5), (30, 2)], ids=["wide", "square", "tall"])
@pytest.mark.parametrize("op", DERIVED.values(), ids=DERIVED)
def test_an_op_with_one_derivative_is_right(op, sizes, way):
    n, m = sizes
    weight, x = randn(m, n), randn(n)
    expected = weight @ torch.diag(2 * x + x.cos())
    assert_same(way(lambda v: (op(v) + v.sin()) @ weight.T, x), expected)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("sizes", [(2, 30), (30, 2)], ids=["wide", "tall"])
@pytest.mark.parametrize("op", UNDERIVED.values(), ids=UNDERIVED)
def test_an_op_without_a_derivative_is_refused(op, sizes, way):
    n, m = sizes
    weight = randn(m, n)
    with pytest.raises(NotImplementedError, match="left_out::.*, of which PyTorch has no derivative"):
        way(lambda v: (op(v) + v.sin()) @ weight.T, randn(n))


def test_what_has_no_derivative_may_stand_beside_the_way():
    def scaled(v):
        return v.sin() * without(v.detach())

    x = randn(4)
    expected = torch.diag(x.cos() * x * x)
    for found in (tj.jacobian(scaled, x), tj.plan_jacobian(scaled, x)(x), tj.jacobian(scaled, x, create_graph=True)):
        assert_same(found.detach(), expected)


def test_what_torch_func_does_not_take_is_differentiated_by_autograd():
    at = torch.tensor([1, 2])

    def halves(v):  # of which torch.func cannot look at the indices
        return torch.cat([place * part.square() for place, part in enumerate(torch.tensor_split(v, at))])

    x = randn(4)
    expected = torch.diag(2 * x * torch.tensor([0, 1, 2, 2], dtype=F64))
    assert_same(tj.jacobian(halves, x, create_graph=True).detach(), expected)
    assert_same(tj.jacobian(halves, x), expected)


def test_a_jacobian_inside_of_a_function_that_autograd_alone_takes():
    def outer(v):
        return tj.jacobian(lambda t: (t * t * t).sum(), v) * with_pullback(v)

    x = randn(4)
    expected = torch.diag(12 * x**3)
    for found in (tj.jacobian(outer, x), tj.plan_jacobian(outer, x)(x), tj.jacobian(outer, x, create_graph=True)):
        assert_same(found.detach(), expected)
