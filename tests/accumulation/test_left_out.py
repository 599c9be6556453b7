"""Ops of `torch.library`, whose derivatives PyTorch leaves out without a word: taken by autograd, or refused."""

import numpy as np
import pytest
import torch
from jacobian_checks import F64, assert_same, randn

import torch_jvpvjp as tj

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*an autograd kernel was not registered"),  # which PyTorch says of zeros
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # and of a custom op under vmap
]


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


# Results that autograd takes for constants: the statistics of a normalisation.

aten = torch.ops.aten
GAIN, SHIFT = randn(4), randn(4)
NORMS = {
    "layer": lambda v: torch.native_layer_norm(v, (3,), None, None, 1e-5),
    "two axes": lambda v: torch.native_layer_norm(v, (4, 3), None, None, 1e-5),
    "group": lambda v: torch.native_group_norm(v, GAIN, SHIFT, 2, 4, 3, 2, 1e-5),
    "batch": lambda v: torch.native_batch_norm(v, GAIN, SHIFT, None, None, True, 0.1, 1e-5),
    "batch without statistics": lambda v: aten._native_batch_norm_legit.no_stats(v, GAIN, None, True, 0.1, 1e-5),
}
WAYS_OF_ONE = {name: way for name, way in WAYS.items() if "batch" not in name}
statistics_of = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)


def by_differences(f, x):
    """The Jacobian by central differences."""
    steps = 1e-6 * torch.eye(x.numel(), dtype=F64).reshape(-1, *x.shape)
    return torch.stack([(f(x + step) - f(x - step)).flatten() / 2e-6 for step in steps], 1)


@statistics_of
@pytest.mark.parametrize("way", WAYS_OF_ONE.values(), ids=WAYS_OF_ONE)
def test_statistics_of_a_normalisation_have_their_derivatives(norm, way):
    x = randn(2, 4, 3)
    for f in (
        lambda v: norm(v)[1],
        lambda v: norm(v)[2],
        lambda v: v.sum() + norm(v)[1].sin() - norm(v)[2],  # of which autograd records the first term alone
        lambda v: (norm(v)[0] * (norm(v)[1].sum() + norm(v)[2].sum()))[..., :2],
    ):
        expected = by_differences(f, x)
        assert_same(way(f, x).reshape(expected.shape), expected, 1e-7)


@statistics_of
def test_statistics_that_are_detached_are_constants(norm):
    def f(v):
        y, mean, factor = norm(v)
        with torch.no_grad():
            scaled = 3 * factor
        return y * (mean.detach().sum() + scaled.sum())

    x = randn(2, 4, 3)
    expected = torch.autograd.functional.jacobian(f, x)
    for way in WAYS_OF_ONE.values():
        assert_same(way(f, x).reshape(expected.shape), expected)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_statistics_in_batches(way):
    def f(v):
        y, mean, factor = torch.native_layer_norm(v, (3,), None, None, 1e-5)
        return v + y * factor + mean

    x = randn(3)
    expected = by_differences(f, x)
    assert_same(way(f, x).reshape(expected.shape), expected, 1e-7)


def test_a_statistic_without_a_known_derivative_is_refused():
    def updated(v):
        return aten._native_batch_norm_legit(v, GAIN, SHIFT, SHIFT.clone(), GAIN.square(), True, 0.1, 1e-5)

    def solved(v):
        return torch.linalg.lstsq(v, v.sin(), driver="gelsd")

    x = randn(2, 4, 3)
    for f, words in (
        (lambda v: updated(v)[0] * updated(v)[2].sum(), "result 2 of _native_batch_norm_legit"),
        (lambda v: solved(v).singular_values, "result 3 of linalg_lstsq"),
    ):
        for way in WAYS_OF_ONE.values():
            with pytest.raises(NotImplementedError, match=f"{words}, of which PyTorch has no derivative"):
                way(f, x)
    detached = tj.jacobian(lambda v: updated(v)[0] * updated(v)[2].detach().sum(), x)
    assert_same(detached, torch.autograd.functional.jacobian(lambda v: updated(v)[0] * updated(v)[2].detach().sum(), x))


def test_gradients_inside_of_a_function_are_given_statistics_for_what_they_are():
    def f(v):
        y = torch.nn.functional.layer_norm(v, (3,)).sin()
        (gradient,) = torch.autograd.grad(y.sum(), v, create_graph=True)
        return gradient

    x = randn(4, 3)
    expected = by_differences(lambda v: f(v.requires_grad_()).detach(), x)
    for way in (WAYS["first calls"], WAYS["plan"]):
        assert_same(way(f, x).reshape(expected.shape), expected, 1e-7)


@pytest.mark.parametrize("elsewhere", [torch.sin, lambda v: torch.native_layer_norm(v, (3,), None, None, 1e-5)[0]])
def test_a_function_that_uses_statistics_on_another_way_is_asked_again(elsewhere):
    def f(v):
        if v.sum() > 0:
            y, mean, factor = torch.native_layer_norm(v, (3,), None, None, 1e-5)
            return v * factor.sum() + mean
        return elsewhere(v)

    x = randn(4, 3).abs()
    for point in (-x, x, -x, x):
        expected = by_differences(f, point)
        assert_same(tj.jacobian(f, point).reshape(expected.shape), expected, 1e-7)


def test_layers_in_a_function_are_not_run_again():
    net, calls = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)).to(F64), []

    def f(v):
        calls.append(1)
        return net(v)

    tj.jacobian(f, randn(3))
    assert len(calls) == 1


def test_calls_of_a_function_that_does_not_normalise_are_not_noticed():
    modes = []

    def f(v):
        modes.append(torch._C._len_torch_function_stack())
        return v.exp() * v.sum()

    tj.jacobian(f, randn(3))
    assert modes == [0]


def test_what_was_recorded_before_does_not_stand_for_what_is_out_of_sight():
    outside = randn(4, 1).requires_grad_() * 3  # a node, as the norm is one

    def f(v):
        return v.sin() * outside + torch.native_layer_norm(v, (3,), None, None, 1e-5)[1]

    x = randn(4, 3)
    expected = by_differences(lambda v: f(v).detach(), x)
    assert_same(tj.jacobian(f, x).reshape(expected.shape), expected, 1e-7)
