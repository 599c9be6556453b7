"""Sweeps through convolutions in replayed programs lie with channels innermost, and give what they gave."""

import pytest
import torch
from channels_last_checks import (
    ADJOINTS,
    SCALE,
    SIDE,
    TERM,
    WEIGHTS,
    back,
    by_columns,
    calls_of,
    forth,
    given,
    grown,
    grown_back,
    halved,
    larger,
    larger_back,
    largest_back,
    masked,
    mean_back,
    normalised,
    of_all_pixels,
    of_each_channel,
    of_each_channel_in_a_stack,
    primal,
    randn,
    scaled,
    slope,
    slope_of_tanh,
    spread,
    turned_in,
)
from replay_checks import recorded, run_calls
from torch.nn import functional

from torch_jvpvjp.accumulation.replay import channels_last

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")

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
    "a shortcut by strides": (lambda g: back(back(y := halved(g), side=SIDE, stride=2) + spread(y)), 2),
    "a shortcut by strides first": (lambda g: back(spread(y := halved(g)) + scaled(back(y, side=SIDE, stride=2))), 2),
    "a shortcut by strides to an odd side": (
        lambda g: back(back(y := halved(g), side=15, stride=2) + spread(y, 15), side=15), 2,
    ),
    "a shortcut by long strides": (
        lambda g: back(back(y := halved(g)[..., :6, :6].contiguous(), side=SIDE, stride=3) + spread(y, stride=3)), 2,
    ),
    "a shortcut with a factor": (
        lambda g: back(torch.add(back(y := halved(g), side=SIDE, stride=2), spread(y), alpha=0.5)), 3,
    ),
    "a shortcut that is used again": (
        lambda g: back(back(y := halved(g), side=SIDE, stride=2) + (z := spread(y))) + z, 3,
    ),
    "two shortcuts": (lambda g: back(spread(y := halved(g)) + spread(y.flip(0)) + back(y, side=SIDE, stride=2)), 2),
    "a shortcut without strides": (lambda g: back(back(g) + spread(g, stride=1)), 3),
    "images of other sides": (lambda t: forth(forth(t).view(ADJOINTS, 24, SIDE // 2, 2 * SIDE)), 2),
    "images of fewer channels": (lambda t: forth(forth(t).view(2 * ADJOINTS, 12, SIDE, SIDE), (24, 12)), 2),
    "a number of no axes": (lambda g: back(back(g) * SCALE.to(g)[3]), 2),
    "a cube": (lambda g: back(back(g).pow(3)), 2),
    "the larger of two": (lambda g: back(torch.maximum(y := back(g), back(y))), 3),
    "a comparison": (lambda g: back(torch.where((y := back(g)) > 0, y, SCALE.to(g).view(24, SIDE, SIDE))), 2),
    "a copy in float64": (lambda g: (back(y := back(g)), y.double()), 2),
    "a scale of each channel": (lambda g: back(masked(back(g), of_each_channel(g))), 2),
    "a scale of each channel, also looked at": (lambda g: (back(y := masked(back(g), of_each_channel(g))), y), 2),
    "scales of each channel in a stack": (
        lambda g: back(masked(masked(back(g), (s := of_each_channel_in_a_stack(g))[2]) + masked(g, s[1]), s[0])), 2,
    ),
    "a scale of each channel on tangents": (lambda t: forth(masked(forth(t), of_each_channel(t, 7))), 2),
    "a scale before what grows": (lambda t: forth(grown(masked(forth(t), of_each_channel(t)), (24, 12)), (24, 12)), 3),
    "a scale of columns": (lambda t: forth(by_columns(forth(t), of_each_channel(t))), 2),
    "the primal with a bias": (lambda t: functional.conv2d(forth(t), WEIGHTS[24, 24].to(t), SCALE[:24].to(t)), 0),
    "one tangent": (lambda t: forth(forth(t[:1])), 0),
    "alone": (lambda g: scaled(back(g)), 0),
    "small": (lambda g: back(back(g[:1, :, :4, :4].contiguous(), side=4), side=4), 0),
    "to images alone": (lambda g: (back(g, (24, 3)), back(g, (24, 2))), 0),
}  # fmt: skip


PRIMALS = {  # with a primal besides, and how many of its convolutions find their channels innermost
    "slopes of the primal": (lambda g: back(masked(back(g), slope(primal(g)))), 1),
    "slopes of the primal, on columns": (lambda t: forth(by_columns(forth(t), slope(primal(t)))), 1),
    "slopes of a primal of few channels": (lambda g: back(masked(back(g), slope(primal(g, (24, 2))))), 0),
    "slopes of a small primal, of two convolutions": (
        lambda g: back(masked(back(g), (1 - (y := torch.tanh(forth(primal(g, (24, 2))))) * y).flatten())), 1,
    ),
    "slopes met before the first": (lambda g: back(back(masked(g * 2.0, slope(primal(g))))), 1),
    "slopes met without a convolution behind": (lambda g: (back(back(g)), masked(g * 2.0, slope(primal(g)))), 1),
    "slopes of another image": (lambda g: back(back(g)) * slope(primal(g)).view(SIDE, 24, SIDE).sum(), 1),
    "slopes scaled": (lambda g: back(masked(back(g), slope(normalised(primal(g))) * of_each_channel(g))), 1),
    "a normalised primal": (lambda g: back(masked(back(g), normalised(forth(g[:1])).cos().flatten())), 1),
    "a primal normalised by itself": (
        lambda g: back(masked(back(g), functional.batch_norm(primal(g), None, None, training=True).flatten())), 1,
    ),
    "a primal of two samples": (
        lambda g: back(back(g) * torch.cat([primal(g), primal(g[1:]) ** 2]).sum(0, keepdim=True)), 2,
    ),
    "a residual of the primal": (lambda g: back(masked(back(g), slope((y := primal(g)) + primal(y)))), 2),
    "a strided primal": (
        lambda g: back(masked(back(g), larger(primal(g, stride=2)).flatten())), 1,
    ),
    "a large primal": (
        lambda g: back(masked(back(g), functional.avg_pool2d(primal(normalised(larger(g))), 2).flatten())), 1,
    ),
    "means of the primal, and slopes before them": (
        lambda g: back(masked(
            masked(back(g), slope_of_tanh(y := primal(g, (24, 2)).tanh())),
            larger(forth(functional.avg_pool2d(y, 2))).flatten(),
        )), 1,
    ),
    "slopes of sigmoids": (
        lambda g: back(masked(
            back(g), torch.ops.aten.sigmoid_backward(torch.full_like(g[:1], 2.0), primal(g).sigmoid()).flatten()
        )), 1,
    ),
    "adjoints of a mean": (
        lambda g: back(back((of_all_pixels(g).div(4.0).reshape(ADJOINTS, -1) * slope(primal(g))).view_as(g))), 1,
    ),
    "adjoints of a mean of small numbers": (
        lambda g: back(back((torch.exp(of_all_pixels(g)).reshape(ADJOINTS, -1) * slope(primal(g))).view_as(g))), 1,
    ),
    "the largest of the primal": (
        lambda g: back(masked(back(g), larger(functional.max_pool2d(primal(g), 2)).flatten())), 1,
    ),
    "the largest of the primal, and back": (
        lambda g: back(torch.ops.aten.max_pool2d_with_indices_backward(
            back(g[:, :, ::2, ::2].contiguous(), side=SIDE // 2), (y := primal(g)).expand_as(g), [2, 2], [2, 2], [0, 0],
            [1, 1], False,
            torch.ops.aten.max_pool2d_with_indices(y, [2, 2])[1].expand(ADJOINTS, 24, SIDE // 2, SIDE // 2).clone(),
        )), 1,
    ),
    "the largest of the primal, where they were": (
        lambda g: (back(back(g)), *torch.ops.aten.max_pool2d_with_indices(primal(g), [2, 2])), 1,
    ),
    "a primal that is returned": (lambda g: (back(masked(back(g), slope(y := primal(g)))), y), 1),
    "a primal that is looked at": (lambda g: (back(back(g)), primal(g).flatten(2).cumsum(1)), 1),
    "a primal that is a weight": (
        lambda g: functional.conv2d(back(back(g)), primal(g)[:, :, :3, :3].reshape(2, 12, 3, 3).repeat(1, 2, 1, 1)), 1,
    ),
    "a primal that multiplies": (lambda g: back(back(g)).flatten(2) @ primal(g).view(-1, 24), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CASES, *PRIMALS])
def test_sweeps_lie_with_channels_innermost_and_results_as_before(name):
    function, turned = CASES.get(name) or PRIMALS[name]
    g = given()
    before = g.clone()

    def whole(g):
        result = function(g)
        return result if isinstance(result, tuple) else (result,)

    program = recorded(whole, g)
    assert turned_in(program, of_one=name in PRIMALS) == turned
    assert turned_in(program) > 0 or not turned
    for value, plain, expected in zip(program(g), whole(g), whole(g.double()), strict=True):
        assert value.stride() == plain.stride()
        expected = expected.double()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()))
    assert torch.equal(g, before)
    values = run_calls(calls_of(program), {**program.fixed, program.inputs[0]: g})
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
@pytest.mark.parametrize("name", [*CASES, *PRIMALS])
def test_nothing_unwritten_is_read_and_what_is_not_finite_spreads_no_further(poisoned, name):
    assert torch.empty(4).isnan().all()
    function = (CASES.get(name) or PRIMALS[name])[0]

    def whole(g):
        result = function(g)
        return result if isinstance(result, tuple) else (result,)

    g = randn(ADJOINTS, 24, SIDE, SIDE)
    program = recorded(whole, g)
    assert all(value.isfinite().all() for value in program(g))
    g[1, 3, 5, 5], g[0, 2, 1, 1] = float("nan"), float("inf")
    for value, expected in zip(program(g), whole(g), strict=True):
        assert torch.equal(value.isfinite(), expected.isfinite())


def test_where_onednn_does_nothing_all_stays(monkeypatch):
    function, g = CASES["a residual"][0], randn(ADJOINTS, 24, SIDE, SIDE)
    assert turned_in(recorded(function, g.double())) == 0
    monkeypatch.setattr(channels_last, "onednn_is_on", lambda: False)
    assert turned_in(recorded(function, g)) == 0
