"""Batches of independent samples: the Jacobian of each, and a function that mixes them is refused."""

import pytest
import torch
from jacobian_checks import F64, assert_same, randn
from torch import nn

from torch_jvpvjp.accumulation import STRATEGIES, jacobian, plan_jacobian
from torch_jvpvjp.accumulation.batches import _parts


def _net():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 2), nn.Softmax(-1)).to(F64)


def _looped(f, x, dims):
    flat = x.reshape(-1, *x.shape[dims:])
    rows = [torch.func.jacrev(f)(row[None])[0, ..., 0, :] for row in flat]
    return torch.stack(rows).reshape(*x.shape[:dims], *rows[0].shape)


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("batch", [(5,), (2, 3), (1,)], ids=str)
def test_each_sample_has_its_jacobian(batch, strategy):
    net, x = _net(), randn(*batch, 3)
    plan = plan_jacobian(net, x, batch_dims=len(batch), strategy=strategy)
    for point in (x, x, x + 0.4):
        assert_same(plan(point), _looped(net, point, len(batch)))
    assert_same(jacobian(net, x, batch_dims=len(batch)), _looped(net, x, len(batch)))


def test_an_empty_batch_has_no_jacobians():
    assert jacobian(_net(), randn(0, 3), batch_dims=1).shape == (0, 2, 3)


def test_several_inputs_and_outputs_of_a_batch():
    def function(a, b):
        return {"p": a * b.sum(-1, keepdim=True), "q": b.square()}

    a, b = randn(4, 3), randn(4, 2)
    found = jacobian(function, (a, b), batch_dims=1)
    expected = torch.func.vmap(torch.func.jacrev(function, argnums=(0, 1)))(a, b)
    assert_same(found, expected)
    only = plan_jacobian(function, (a, b), batch_dims=1, wrt=0)
    for scale in (1, 1, 3):
        assert_same(only((a, scale * b)), torch.func.vmap(torch.func.jacrev(function))(a, scale * b))


def test_images_keep_their_axes():
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)).to(F64).eval()
    x = randn(3, 1, 4, 4)
    expected = torch.stack([torch.func.jacrev(lambda image: net(image[None])[0])(image) for image in x])
    assert_same(jacobian(net, x, batch_dims=1), expected)


MIXING = {
    "mean": lambda v: v - v.mean(0),
    "cumsum": lambda v: v.cumsum(0),
    "sum": lambda v: v * v.sum(),
    "flip": lambda v: v.flip(0),
    "neighbours": lambda v: v * v.roll(1, 0),
    "halves": lambda v: torch.cat([v[len(v) // 2 :], v[: len(v) // 2]]).sin() + v,
    "last": lambda v: v + v[-1:],
    "batch norm": nn.BatchNorm1d(3, dtype=F64),
}


@pytest.mark.parametrize("samples", [2, 3, 4, 10, 64])
@pytest.mark.parametrize("wide", [False, True], ids=["few outputs", "many outputs"])
@pytest.mark.parametrize("function", MIXING.values(), ids=MIXING)
def test_a_function_that_mixes_samples_is_refused(function, wide, samples):
    wider = (lambda v: torch.cat([function(v)] * 3, 1)) if wide else lambda v: function(v)
    with pytest.raises(ValueError, match="must treat the samples of batch_dims=1 independently|more than 1 value per"):
        jacobian(wider, randn(samples, 3), batch_dims=1)


@pytest.mark.parametrize("samples", [3, 20])
@pytest.mark.parametrize(
    "jacobian_of", [lambda f, x: jacobian(f, x, batch_dims=1), lambda f, x: plan_jacobian(f, x, batch_dims=1)(x)]
)
def test_samples_without_a_value_are_no_mixture(jacobian_of, samples):
    """A value may be NaN or infinite, by itself as in the batch."""
    function = lambda x: torch.stack([x.log().sum(-1), x[..., 0] ** 2, 1 / x[..., 1]], -1)  # noqa: E731
    x = randn(samples, 3)
    x[0], x[1, 1] = -1.0, 0.0
    expected = torch.stack([torch.func.jacrev(function)(one) for one in x])
    torch.testing.assert_close(jacobian_of(function, x)[2:], expected[2:], equal_nan=True)
    with pytest.raises(ValueError, match="independently"):
        jacobian_of(lambda x: function(x) + x.sum(0)[:1] * 1e-3, x)


@pytest.mark.parametrize("m", [1, 2, 4, 5, 9, 40])
@pytest.mark.parametrize("samples", [1, 2, 9])
def test_first_calls_of_any_number_of_outputs_are_right(m, samples):
    def function(v):
        return (v[..., :, None] * torch.linspace(0, 1, m, dtype=F64)).sin().sum(-2)

    x = randn(samples, 3)
    expected = torch.func.vmap(torch.func.jacrev(function))(x)
    assert_same(jacobian(lambda v: function(v), x, batch_dims=1), expected)
    assert_same(jacobian(lambda v: function(v), x[:, None], batch_dims=2), expected[:, None])
    assert_same(jacobian(lambda v: {"y": function(v)}, x, batch_dims=1)["y"], expected)


def test_first_calls_of_a_function_made_for_one_size_of_batch():
    gain = randn(4, 1)
    x = randn(4, 3)
    with pytest.raises(ValueError, match="must keep the batch of batch_dims=1 axes in front"):
        jacobian(lambda v: (v * gain).reshape(4, 3), x, batch_dims=1)


def test_bad_batches_are_refused():
    with pytest.raises(ValueError, match="must have at least batch_dims=3 axes, got 2"):
        jacobian(torch.sin, randn(2, 3), batch_dims=3)
    with pytest.raises(ValueError, match="have one batch in front|one batch of batch_dims=1 axes in front"):
        jacobian(torch.mul, (randn(2, 3), randn(3, 3)), batch_dims=1)
    with pytest.raises(ValueError, match=r"keep the batch of batch_dims=1 axes in front"):
        jacobian(lambda v: torch.stack([v, v]), randn(4, 3), batch_dims=1)
    plan = plan_jacobian(torch.sin, randn(4, 3), batch_dims=1)
    with pytest.raises(ValueError, match=r"x must have the batch .*4.* that the plan was made for, got .*5"):
        plan(randn(5, 3))
    with pytest.raises(ValueError, match="sparse must be False with batch_dims=1"):
        jacobian(torch.sin, randn(4, 3), batch_dims=1, sparse=True)


def test_a_black_box_of_a_batch_sees_each_sample_with_its_own_arguments():
    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(v, w):
            return v**3 * w

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, y_bar):
            v, w = ctx.saved_tensors
            return 3 * v**2 * w * y_bar, v**3 * y_bar

    a, b = randn(4, 3), randn(4, 3)
    plan = plan_jacobian(lambda v, w: Cube.apply(v, w), (a, b), wrt=0, batch_dims=1)
    for scale in (1, 2):
        assert_same(plan((a, scale * b)), torch.diag_embed(3 * a**2 * scale * b))


MOVES = {
    "mirror": lambda v: v.flip(0),
    "neighbours": lambda v: v.roll(1, 0),
    "halves": lambda v: v.roll(v.shape[0] // 2, 0),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_parts_of_a_batch_of_any_size_show_that_samples_move(move):
    for count in range(2, 200):
        moved = move(torch.arange(count))
        assert any(not torch.equal(part[move(torch.arange(len(part)))], moved[part]) for part in _parts(count)), count


def test_what_mixes_along_the_second_axis_of_a_batch_is_refused():
    with pytest.raises(ValueError, match="batch_dims=2 independently"):
        jacobian(lambda v: v @ v.mT @ v, torch.randn(2, 3, 4, dtype=torch.float64), batch_dims=2)


def test_samples_without_outputs_have_empty_jacobians():
    x = torch.randn(4, 3, dtype=torch.float64)
    assert jacobian(lambda v: v[..., :0], x, batch_dims=1).shape == (4, 0, 3)
