"""What the tests of images with channels innermost share: sweeps of convolutions, and how many of a program lie so."""

import torch
from jacobian_checks import F64
from torch.nn import functional

from torch_jvpvjp.accumulation.program import Program

GENERATOR = torch.Generator().manual_seed(0)
ADJOINTS, SIDE = 3, 16
CONVOLUTIONS = {"aten.convolution.default", "aten.convolution_backward.default"}


def randn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=GENERATOR, dtype=F64).to(dtype)


WEIGHTS = {
    channels: randn(*channels, 3, 3) / 10 for channels in [(24, 24), (24, 3), (24, 12), (12, 24), (24, 2), (2, 24)]
}
PIXEL = randn(24, 24, 1, 1) / 5
SCALE, TERM = randn(24 * SIDE * SIDE), randn(ADJOINTS, 24 * SIDE * SIDE)
BEFORE_POOL = randn(ADJOINTS, 24, 2 * SIDE, 2 * SIDE)


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


def halved(g):
    return g[:, :, ::2, ::2].repeat(2, 1, 1, 1)


def spread(g, side=SIDE, stride=2, **options):
    """The pullback of a convolution of single pixels."""
    weight, like = PIXEL.to(g), g.new_zeros(len(g), 24, side, side)
    return torch.func.vjp(lambda x: functional.conv2d(x, weight, stride=stride, **options), like)[1](g)[0]


def of_each_channel(g, at=0):
    """A number for each channel, written out for all pixels as the slopes of a normalisation are."""
    return g[0, :, at, at].reshape(1, 24, 1, 1).expand(1, 24, SIDE, SIDE).reshape(-1)


def of_all_pixels(g):
    return g[:, :, 1, 2].reshape(ADJOINTS, 1, 24, 1, 1).expand(ADJOINTS, 1, 24, SIDE, SIDE)


def of_each_channel_in_a_stack(g):
    stacked = g[0, :, 1, :3].t().reshape(3, 1, 24, 1, 1).expand(3, 1, 24, SIDE, SIDE).clone()
    return [part.reshape(-1) for part in stacked.unbind(0)]


def primal(g, channels=(24, 24), **options):
    """A value of one image, with a bias, after `relu`."""
    bias = SCALE[: channels[0]].to(g)
    return functional.conv2d(g[:1, : channels[1]], WEIGHTS[channels].to(g), bias, padding=1, **options).relu()


def normalised(x):
    mean, var, weight, bias = (SCALE[24 * k : 24 * (k + 1)].to(x) for k in range(4))
    return functional.batch_norm(x, mean, var.square() + 0.5, weight, bias, training=False)


def slope(y):
    """The diagonal of `relu`, as a plan has it."""
    return torch.ops.aten.threshold_backward(torch.ones_like(y), y, 0).reshape(-1)


def slope_of_tanh(y):
    return torch.ops.aten.tanh_backward(torch.ones_like(y), y).reshape(-1)


def masked(g, diagonal):
    return (g.flatten(1) * diagonal).view_as(g)


def given():
    return randn(ADJOINTS, 24, SIDE, SIDE)


def calls_of(program: Program):
    return program._quickened(program.calls)


def turned_in(program: Program, *, of_one: bool = False) -> int:
    """How many convolutions of a program, of sweeps or else of one image, lie with channels innermost."""
    convolved = [program.layouts[call.operands[0]] for call in calls_of(program) if str(call.target) in CONVOLUTIONS]
    return sum(not layout.contiguous and (layout.shape[0] == 1) is of_one for layout in convolved)


def targets_of(program: Program) -> list[str]:
    return [call.target._schema.name.removeprefix("aten::") for call in calls_of(program)]
