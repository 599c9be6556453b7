"""What calls become where images lie with channels innermost."""

import pytest
import torch
from channels_last_checks import (
    ADJOINTS,
    SIDE,
    back,
    calls_of,
    forth,
    given,
    masked,
    normalised,
    of_all_pixels,
    of_each_channel,
    primal,
    randn,
    slope,
    targets_of,
)
from jacobian_checks import F64
from replay_checks import recorded, run_calls
from torch.nn import functional

from torch_jvpvjp.accumulation.replay import convolutions, few_channels

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


def test_slopes_of_a_primal_that_lies_so_are_copied_nowhere():
    program = recorded(lambda g: back(masked(back(g), slope(normalised(primal(g))) * of_each_channel(g))), given())
    clones = [call for call in calls_of(program) if call.target is torch.ops.aten.clone.default]
    assert [program.layouts[call.outputs[0]].numel for call in clones].count(24 * SIDE * SIDE) == 1  # what is convolved
    assert not {"expand", "ones_like"} & set(targets_of(program))
    ones = [index for index, tensor in program.fixed.items() if tensor.numel() == 24 * SIDE * SIDE]
    slopes = [call for call in calls_of(program) if call.target is torch.ops.aten.threshold_backward.default]
    assert len(slopes) == len(ones) == 1
    assert ones[0] not in slopes[0].operands


def test_adjoints_of_a_mean_are_made_of_one_pixel():
    program = recorded(
        lambda g: back(back((of_all_pixels(g).div(4.0).reshape(ADJOINTS, -1) * slope(primal(g))).view_as(g))), given()
    )
    (scaled,) = [call for call in calls_of(program) if call.target is torch.ops.aten.div.Tensor]
    assert program.layouts[scaled.outputs[0]].numel == ADJOINTS * 24


def test_an_image_of_many_entries_is_turned_as_a_matrix():
    x = randn(1, 24, 2 * SIDE, 2 * SIDE)
    program = recorded(lambda x: forth(forth(forth(x).expand(2, -1, -1, -1).contiguous())), x)
    (turned,) = [call for call in calls_of(program) if call.target is torch.ops.aten.t.default]
    assert program.layouts[turned.outputs[0]].shape == (4 * SIDE * SIDE, 24)
    (value,), expected = program(x), forth(forth(forth(x.double()).expand(2, -1, -1, -1)))
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()))


def test_a_scale_of_each_channel_is_the_weight_s():
    program = recorded(lambda g: back(masked(back(g), of_each_channel(g))), given())
    (product,) = [call for call in calls_of(program) if call.target is torch.ops.aten.mul.Tensor]
    assert program.layouts[product.outputs[0]].shape == (24, 24, 3, 3)


@pytest.mark.parametrize("count", [2, 7])
@pytest.mark.parametrize("few", [1, 3])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 3), (2, 4), (1, 5)], ids=str)
def test_adjoints_of_few_channels_are_sums_of_rows(kernel, few, count, monkeypatch):
    monkeypatch.setattr(few_channels, "_LEAST_SHIFTED", 0)
    monkeypatch.setattr(few_channels, "_MOST", 2)
    weight, g = randn(24, few, *kernel) / 10, randn(count, 24, 9, 12)
    least, middle, most = (0, 0), tuple(size // 2 for size in kernel), tuple(size - 1 for size in kernel)
    for padding in {least, middle, most, (most[0], 0), (0, most[1])}:
        sides = [n + k - 1 - 2 * p for n, k, p in zip((9, 12), kernel, padding, strict=True)]
        if min(sides) < 1:
            continue

        def function(g, sides=sides, padding=padding):
            like = g.new_zeros(len(g), few, *sides)
            return torch.func.vjp(lambda x: functional.conv2d(x, weight.to(g), padding=padding), like)[1](g)[0]

        program = recorded(lambda g: function(forth(forth(g))), g)  # noqa: B023 (called at once)
        assert "col2im" not in targets_of(program)
        expected = function(forth(forth(g.double())))
        assert program(g)[0].is_contiguous()
        torch.testing.assert_close(program(g)[0].double(), expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()))


OPTIONS = {  # of a convolution of (11, 13) pixels, and whether its pullback becomes a convolution
    "plain": ({}, True),
    "padded": ({"padding": 1}, True),
    "padded to the full": ({"padding": (2, 1)}, True),
    "padded by more": ({"padding": 3}, False),
    "strided": ({"stride": 2}, True),
    "strided otherwise along each": ({"stride": (3, 2), "padding": (1, 0)}, True),
    "dilated": ({"dilation": (2, 3), "padding": 2}, True),
    "strided and dilated": ({"stride": 2, "dilation": 2, "padding": 1}, True),
    "strided by more than the kernel": ({"stride": 5}, True),
}


@pytest.mark.parametrize(
    ("options", "becomes"),
    [
        ({"stride": 2, "output_padding": 1}, True),
        ({"stride": (3, 2), "output_padding": (2, 0), "padding": 1}, True),
        ({"dilation": 2, "output_padding": 1}, False),
        ({"dilation": (1, 3), "output_padding": (0, 2), "padding": 2}, False),
        ({"stride": 2, "dilation": 3, "output_padding": 2}, False),
        ({"stride": 2, "dilation": 3, "output_padding": 1}, True),
    ],
    ids=str,
)
def test_a_pullback_of_a_larger_output_is_the_pullback(options, becomes):
    x, weight = randn(3, 24, 16, 16), randn(24, 24, 3, 3) / 10

    def grown(x):
        return functional.conv_transpose2d(x, weight.to(x), **options)

    def pullbacks(g):
        before = torch.func.vjp(forth, torch.zeros_like(g))[1](g)[0]
        return back(torch.func.vjp(grown, x.to(g))[1](before)[0])

    program = recorded(pullbacks, g := randn(*grown(x).shape))
    backwards = [call for call in calls_of(program) if call.target is convolutions.BACKWARD]
    assert (not backwards) is becomes
    (value,), expected = program(g), pullbacks(g.double())
    assert value.shape == expected.shape
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=3e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_pullback_as_a_convolution_is_the_pullback(name, transposed):
    options, becomes = OPTIONS[name]
    x, weight = randn(3, 4, 11, 13, dtype=F64), randn(*((4, 6) if transposed else (6, 4)), 3, 3, dtype=F64)
    function = functional.conv_transpose2d if transposed else functional.conv2d
    y_bar = torch.randn_like(function(x, weight, **options))

    def pullback(y_bar, x, weight):
        return torch.func.vjp(lambda x: function(x, weight, **options), x)[1](y_bar)[0]

    program = recorded(pullback, y_bar, x, weight)
    (call,) = [call for call in program.calls if str(call.target) == "aten.convolution_backward.default"]
    again = convolutions.as_a_convolution(call, program.layouts)
    assert (again is not call) == (becomes or transposed)
    values = dict(zip(program.inputs, (y_bar, x, weight), strict=True))
    torch.testing.assert_close(run_calls([again], values)[call.outputs[0]], pullback(y_bar, x, weight))
