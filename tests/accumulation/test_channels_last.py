"""Sweeps through convolutions in replayed programs lie with channels innermost, and give what they gave."""

import pytest
import torch
from jacobian_checks import F64
from replay_checks import check_compiled_plan, program_of, recorded, run_calls
from torch import nn
from torch.nn import functional

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.program import Program
from torch_jvpvjp.accumulation.replay import channels_last

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
GENERATOR = torch.Generator().manual_seed(0)
ADJOINTS, SIDE = 3, 16
CONVOLUTIONS = {"aten.convolution.default", "aten.convolution_backward.default"}


def _randn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=GENERATOR, dtype=F64).to(dtype)


WEIGHTS = {
    channels: _randn(*channels, 3, 3) / 10 for channels in [(24, 24), (24, 3), (24, 12), (12, 24), (24, 2), (2, 24)]
}
SCALE, TERM = _randn(24 * SIDE * SIDE), _randn(ADJOINTS, 24 * SIDE * SIDE)
BEFORE_POOL = _randn(ADJOINTS, 24, 2 * SIDE, 2 * SIDE)


def back(g, channels=(24, 24), side=SIDE, **options):
    """The pullback of a convolution of 3 x 3 to an input of a side."""
    weight, like = WEIGHTS[channels].to(g), g.new_zeros(len(g), channels[1], side, side)
    options = {"padding": 1} | options
    return torch.func.vjp(lambda x: functional.conv2d(x, weight, **options), like)[1](g)[0]


def forth(t, channels=(24, 24), **options):
    """The tangent of a convolution of 3 x 3."""
    return functional.conv2d(t, WEIGHTS[channels].to(t), **({"padding": 1} | options))


def grown(t, channels=(24, 24)):
    """The tangent of a transposed convolution of 3 x 3 by strides of 2."""
    return functional.conv_transpose2d(t, WEIGHTS[channels].to(t), stride=2)


def grown_back(g, channels=(24, 24)):
    """The pullback of `grown`."""
    like = g.new_zeros(len(g), channels[0], (g.shape[2] - 1) // 2, (g.shape[3] - 1) // 2)
    return torch.func.vjp(lambda x: grown(x, channels), like)[1](g)[0]


def larger(t, mode="nearest"):
    return functional.interpolate(t, scale_factor=2, mode=mode)


def larger_back(g, mode="nearest"):
    like = g.new_zeros(len(g), g.shape[1], g.shape[2] // 2, g.shape[3] // 2)
    return torch.func.vjp(lambda x: larger(x, mode), like)[1](g)[0]


def by_columns(t, diagonal):
    """A diagonal on tangents that are the columns of a matrix."""
    return (diagonal.to(t)[: t[0].numel(), None] * t.flatten(1).t()).t().view_as(t)


def mean_back(g):
    return torch.func.vjp(lambda x: functional.avg_pool2d(x, 2), BEFORE_POOL.to(g))[1](g)[0]


def largest_back(g, count=1):
    before = BEFORE_POOL[:count].to(g)
    if count == 1:  # one image, whose places all adjoints share
        return torch.func.vmap(torch.func.vjp(lambda x: functional.max_pool2d(x, 2), before)[1])(g[:, None])[0][:, 0]
    return torch.func.vjp(lambda x: functional.max_pool2d(x, 2), before)[1](g)[0]


def scaled(g):
    return (g.reshape(len(g), -1) * SCALE.to(g)).view_as(g)


def _calls(program: Program):
    return program._quickened(program.calls)


def _turned(program: Program) -> int:
    """How many convolutions of a program lie with channels innermost."""
    found = [call for call in _calls(program) if str(call.target) in CONVOLUTIONS]
    return sum(not program.layouts[call.operands[0]].contiguous for call in found)


CASES = {  # what is done with a cotangent, and how many convolutions find its channels innermost
    "twice": (lambda g: back(back(g)), 2),
    "a diagonal between": (lambda g: back(scaled(back(g))), 2),
    "from the left": (lambda g: back((SCALE.to(g) * back(g).flatten(1)).view_as(g)), 2),
    "a number between": (lambda g: back(2.0 * back(g)), 2),
    "a mask of pixels": (lambda g: back(back(g) * SCALE.to(g).view(1, 24, SIDE, SIDE)), 2),
    "another product for each": (lambda g: back((back(g).flatten(1) * TERM.to(g)).view_as(g)), 2),
    "itself between": (lambda g: back((y := back(g)) * y), 2),
    "a residual": (lambda g: back(scaled((y := scaled(back(g))) + back(y))), 3),
    "a residual with a factor": (lambda g: back(torch.add(y := back(g), back(y), alpha=0.5)), 3),
    "a difference": (lambda g: back((y := back(g)) - scaled(back(y))), 3),
    "strided": (lambda g: back(back(g, side=2 * SIDE, stride=2), side=2 * SIDE), 2),
    "dilated": (lambda g: back(back(g, padding=2, dilation=2)), 2),
    "down and up": (lambda g: back(back(g, (24, 12)), (12, 24)), 2),
    "a mean": (lambda g: back(scaled(back(mean_back(g), side=2 * SIDE, stride=1)[:, :, ::2, ::2].contiguous())), 2),
    "a mean first": (lambda g: back(back(mean_back(g), side=2 * SIDE), side=2 * SIDE), 2),
    "the largest": (lambda g: back(largest_back(back(g)), side=2 * SIDE), 2),
    "the largest of many": (lambda g: back(largest_back(back(g), ADJOINTS), side=2 * SIDE), 2),
    "to an image": (lambda g: back(scaled(back(g)), (24, 3)), 1),
    "to an image in two ways": (lambda g: (back(y := back(g), (24, 2)), back(y, (24, 3))), 1),
    "looked at between": (lambda g: (back(y := back(g)), y.sin()), 2),
    "looked at between, flat": (lambda g: (back(y := scaled(back(g))), y.view(len(g), -1).cumsum(1)), 2),
    "returned between": (lambda g: (back(y := back(g)), y, y.flatten(1)), 2),
    "a sum over channels": (lambda g: back(back(g) * back(g).sum(1, keepdim=True)), 2),
    "one of each channel": (lambda g: back(back(g) * SCALE.to(g)[:24, None, None]), 2),
    "one of each channel, flat": (lambda g: back((back(g).flatten(1) * SCALE.to(g)[:1]).view_as(g)), 2),
    "one of each image": (lambda g: back(back(g) * SCALE.to(g)[:ADJOINTS, None, None, None]), 2),
    "another order of axes": (lambda g: back(back(g).transpose(2, 3).contiguous()), 2),
    "tangents": (lambda t: forth(forth(t)), 2),
    "a diagonal on tangents": (lambda t: forth(by_columns(forth(t), SCALE)), 2),
    "tangents from the left": (lambda t: forth((forth(t).flatten(1).t() * SCALE.to(t)[:, None]).t().view_as(t)), 2),
    "a residual of tangents": (
        lambda t: forth(((y := forth(t)).flatten(1).t() + by_columns(forth(y), SCALE).flatten(1).t()).t().view_as(t)),
        3,
    ),
    "tangents that are returned as columns": (lambda t: (forth(y := forth(t)), y.flatten(1).t()), 2),
    "tangents by rows and by columns": (lambda t: forth(scaled(by_columns(forth(t), SCALE))), 2),
    "a sum of rows and columns": (lambda t: forth((y := forth(t)) + y.flatten(1).t().reshape(y.shape)), 2),
    "tangents of an image": (lambda t: forth(forth(t[:, :2].contiguous(), (24, 2))), 1),
    "tangents to an image": (lambda t: forth(by_columns(forth(t), SCALE), (2, 24)), 2),
    "tangents that grow": (lambda t: forth(grown(forth(t), (24, 12)), (24, 12)), 3),
    "adjoints that shrink": (lambda g: back(grown_back(g.repeat(3, 1, 1, 1)[:, :, 1:, 1:].contiguous()), side=7), 2),
    "upsampled": (lambda t: forth(larger(forth(t))), 2),
    "upsampled linearly": (lambda t: forth(larger(forth(t), "bilinear")), 2),
    "upsampled first": (lambda t: forth(forth(larger(t))), 2),
    "downsampled": (lambda t: forth(forth(functional.avg_pool2d(forth(larger(t)), 2))), 3),
    "the pullback of upsampling": (lambda g: back(back(larger_back(g.repeat(2, 1, 1, 1)), side=8), side=8), 2),
    "the pullback of linear upsampling": (lambda g: back(larger_back(back(g), "bilinear"), side=8), 2),
    "some of the channels": (lambda g: back(back(g)[:, 3:15].contiguous(), (12, 24)), 2),
    "the channels in two parts": (lambda g: back((y := back(g))[:, :12].contiguous(), (12, 24)) + back(y), 3),
    "a part, flat, beside a product": (
        lambda g: back(
            (back(y := back(g), (24, 12)).flatten(1) + y[:, 12:].flatten(1)).view(-1, 12, SIDE, SIDE), (12, 24)
        ),
        3,
    ),
    "a part of a part": (lambda g: back(back(g)[:, 4:20][:, :12].contiguous(), (12, 24)), 2),
    "some rows and columns": (lambda g: back(2.0 * back(g)[:, :, 2:14][..., 3:15], side=12), 2),
    "a part that is returned": (lambda g: (back(y := back(g)), y[:, 5:9]), 2),
    "a part that is looked at": (lambda g: (back(y := back(g)), y[:, 5:9].sin(), y[:, 5:9] * TERM[0, 0]), 2),
    "a part by columns": (
        lambda t: forth((forth(t)[:, :12].flatten(1).t() * 2.0).t().view(-1, 12, SIDE, SIDE), (24, 12)), 2,
    ),
    "channels joined": (lambda t: forth(torch.cat([forth(t, (12, 24)), t[:, :12]], 1)), 2),
    "channels joined with themselves": (lambda t: forth(torch.cat([y := forth(t, (12, 24)), y.neg()], 1)), 2),
    "joined, behind another axis": (lambda t: forth(torch.cat([forth(t, (12, 24))[:, None]] * 2, 2).squeeze(1)), 2),
    "rows joined": (lambda t: forth(torch.cat([y := forth(t), y, t], -2)), 2),
    "images joined": (lambda t: forth(torch.cat([y := forth(t), y], 0)), 2),
    "joined and cut again": (lambda t: forth(torch.cat([y := forth(t), forth(y)], 1)[:, 6:30].contiguous()), 3),
    "joined and returned": (lambda t: (forth(y := torch.cat([forth(t, (12, 24)), t[:, 12:]], 1)), y), 2),
    "the primal with a bias": (lambda t: functional.conv2d(forth(t), WEIGHTS[24, 24].to(t), SCALE[:24].to(t)), 0),
    "one tangent": (lambda t: forth(forth(t[:1])), 0),
    "alone": (lambda g: scaled(back(g)), 0),
    "small": (lambda g: back(back(g[:1, :, :4, :4].contiguous(), side=4), side=4), 0),
    "to images alone": (lambda g: (back(g, (24, 3)), back(g, (24, 2))), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sweeps_lie_with_channels_innermost_and_results_as_before(name):
    function, turned = CASES[name]
    g = _randn(ADJOINTS, 24, SIDE, SIDE)
    given = g.clone()

    def whole(g):
        result = function(g)
        return result if isinstance(result, tuple) else (result,)

    program = recorded(whole, g)
    assert _turned(program) == turned
    for value, before, expected in zip(program(g), whole(g), whole(g.double()), strict=True):
        assert value.stride() == before.stride()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()))
    assert torch.equal(g, given)
    values = run_calls(_calls(program), {**program.fixed, program.inputs[0]: g})
    for index, value in values.items():
        lies, layout = zip(value.shape, value.stride(), strict=True), program.layouts[index]
        assert value.shape == layout.shape
        assert [s for n, s in lies if n > 1] == [s for n, s in zip(layout.shape, layout.stride, strict=True) if n > 1]


@pytest.fixture
def poisoned():
    """Memory that nobody has written is NaN."""
    before, filled = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.filterwarnings("ignore:.*deterministic")
@pytest.mark.parametrize("name", CASES)
def test_nothing_unwritten_is_read_and_what_is_not_finite_spreads_no_further(poisoned, name):
    assert torch.empty(4).isnan().all()
    function = CASES[name][0]

    def whole(g):
        result = function(g)
        return result if isinstance(result, tuple) else (result,)

    g = _randn(ADJOINTS, 24, SIDE, SIDE)
    program = recorded(whole, g)
    assert all(value.isfinite().all() for value in program(g))
    g[1, 3, 5, 5], g[0, 2, 1, 1] = float("nan"), float("inf")
    for value, expected in zip(program(g), whole(g), strict=True):
        assert torch.equal(value.isfinite(), expected.isfinite())


def test_where_onednn_does_nothing_all_stays(monkeypatch):
    function, g = CASES["a residual"][0], _randn(ADJOINTS, 24, SIDE, SIDE)
    assert _turned(recorded(function, g.double())) == 0
    monkeypatch.setattr(channels_last, "onednn_is_on", lambda: False)
    assert _turned(recorded(function, g)) == 0


class _Block(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(n, m, 3, 2, 1, bias=False), nn.BatchNorm2d(m)
        self.conv2, self.norm2 = nn.Conv2d(m, m, 3, 1, 1), nn.BatchNorm2d(m)
        self.skip = nn.Conv2d(n, m, 1, 2)

    def forward(self, x):
        h = functional.silu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.skip(x))


def _net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.MaxPool2d(2), _Block(12, 24), _Block(24, 40), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(160, 10),
    ).eval()  # fmt: skip


def test_the_jacobian_of_a_residual_network_is_right():
    net, x = _net(), _randn(1, 3, 32, 32)
    plan = plan_jacobian(net, torch.zeros(1, 3, 32, 32))
    assert _turned(program_of(plan, x)) > 3
    expected = torch.func.jacrev(net.double())(x.double())
    net.float()
    for _ in range(3):
        torch.testing.assert_close(plan(x).double(), expected, rtol=1e-3, atol=1e-5)
    assert plan.verify(x).rows


class _Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.grow = nn.Linear(6, 24 * 4 * 4), nn.ConvTranspose2d(24, 20, 4, 2, 1)
        self.conv, self.skip, self.last = nn.Conv2d(20, 20, 3, padding=1), nn.Conv2d(20, 20, 1), nn.Conv2d(20, 3, 3)

    def forward(self, z):
        h = functional.gelu(self.grow(self.first(z).view(-1, 24, 4, 4)))
        h = functional.interpolate(h, scale_factor=2)
        return torch.sigmoid(self.last(torch.tanh(self.conv(h)) + self.skip(h)))


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.low = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1)
        self.last, self.out = nn.Conv2d(40, 16, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        high = torch.tanh(self.first(x))
        low = functional.silu(self.low(functional.max_pool2d(high, 2)))
        joined = torch.cat([high, functional.interpolate(low, scale_factor=2)], 1)
        return self.out(torch.tanh(self.last(joined)))


@pytest.mark.parametrize("forwards", [False, True], ids=["adjoints", "tangents"])
def test_the_jacobian_of_a_network_that_joins_channels_is_right(forwards):
    torch.manual_seed(0)
    net, x, basis = _UNet(), _randn(1, 3, 16, 16), _randn(6, 3 * 16 * 16)

    def function(z):
        if forwards:
            return net(x.to(z) + (z @ basis.to(z)).view(x.shape))
        return functional.avg_pool2d(net(z), 8).flatten()

    point = _randn(6) if forwards else x
    plan = plan_jacobian(function, torch.zeros_like(point))
    program = program_of(plan, point)
    assert _turned(program) >= 2
    assert not [call for call in _calls(program) if _is_copy_of_joined(call, program)]
    net.double()
    expected = (torch.func.jacfwd if forwards else torch.func.jacrev)(function)(point.double())
    net.float()
    for _ in range(3):
        torch.testing.assert_close(plan(point).double(), expected, rtol=1e-3, atol=1e-6)


def _is_copy_of_joined(call, program: Program) -> bool:
    """Whether a call brings the images that were joined, of 40 channels, into another order."""
    return call.target is torch.ops.aten.clone.default and program.layouts[call.outputs[0]].shape[1:] == (40, 16, 16)


def test_the_jacobian_of_a_decoder_is_right():
    torch.manual_seed(0)
    net, z = _Decoder(), _randn(1, 6)
    plan = plan_jacobian(net, torch.zeros(1, 6))
    assert _turned(program_of(plan, z)) == 3  # the first is too small to begin with
    expected = torch.func.jacrev(net.double())(z.double())
    net.float()
    for _ in range(3):
        torch.testing.assert_close(plan(z).double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("strategy", ["forward", "reverse"])
def test_a_batch_has_the_jacobian_of_each_sample(strategy):
    torch.manual_seed(0)
    net, samples = _Decoder(), _randn(2, 6)
    plan = plan_jacobian(net, torch.zeros(2, 6), batch_dims=1, strategy=strategy)
    expected = torch.stack([torch.func.jacrev(net.double())(z[None].double())[0, ..., 0, :] for z in samples])
    net.float()
    for _ in range(3):
        torch.testing.assert_close(plan(samples).double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.compiled
def test_a_compiled_plan_of_it_is_right():
    check_compiled_plan(_net(), _randn(1, 3, 32, 32))
