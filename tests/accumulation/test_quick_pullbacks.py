"""Pullbacks of convolutions and pools that other ops make in replayed programs: which, and that they are right."""

import pytest
import torch
from jacobian_checks import F64
from replay_checks import check_compiled_plan, program_of, recorded
from torch import nn
from torch.nn import functional

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.replay import quick_pullbacks

GENERATOR = torch.Generator().manual_seed(0)


def _randn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=GENERATOR, dtype=F64).to(dtype)


def _pullback(forward, *shape):
    """The pullback of a function of an input of this shape, as autograd makes it, and a cotangent."""
    x = _randn(*shape)
    return lambda y_bar: torch.func.vjp(forward, x.to(y_bar.dtype))[1](y_bar)[0], torch.rand_like(forward(x))


def _ops(program) -> set[str]:
    return {str(call.target) for call in program._quickened(program.calls)}


# ---- pools -----------------------------------------------------------------------------------------------------------

POOLED = (4, 8, 48, 32)
POOL = "aten.avg_pool2d_backward.default"
POOLS = {
    "2 x 2": (lambda x: functional.avg_pool2d(x, 2), POOLED, True),
    "3 x 4": (lambda x: functional.avg_pool2d(x, (3, 4)), POOLED, True),
    "rows": (lambda x: functional.avg_pool2d(x, (1, 4)), POOLED, True),
    "columns": (lambda x: functional.avg_pool2d(x, (4, 1)), POOLED, True),
    "one image": (lambda x: functional.avg_pool2d(x, 2), (16, 48, 48), True),
    "a divisor": (lambda x: functional.avg_pool2d(x, 2, divisor_override=3), POOLED, True),
    "adaptive": (lambda x: functional.adaptive_avg_pool2d(x, (16, 8)), POOLED, True),
    "adaptive to one column": (lambda x: functional.adaptive_avg_pool2d(x, (16, 1)), POOLED, True),
    "adaptive, uneven": (lambda x: functional.adaptive_avg_pool2d(x, (9, 8)), POOLED, False),
    "overlapping": (lambda x: functional.avg_pool2d(x, 3, 1), POOLED, False),
    "padded": (lambda x: functional.avg_pool2d(x, 2, padding=1), POOLED, False),
    "a row left over": (lambda x: functional.avg_pool2d(x, (5, 2)), POOLED, False),
    "filled up": (lambda x: functional.avg_pool2d(x, (5, 2), ceil_mode=True), POOLED, False),
    "small": (lambda x: functional.avg_pool2d(x, 2), (4, 8, 16, 16), False),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
@pytest.mark.parametrize("name", POOLS)
def test_means_over_windows_side_by_side_are_spread_by_rows(name, dtype):
    forward, shape, quick = POOLS[name]
    pullback, y_bar = _pullback(forward, *shape)
    y_bar = y_bar.to(dtype)
    program = recorded(pullback, y_bar)
    kept = {op for op in _ops(program) if "avg_pool2d_backward" in op}
    assert bool(kept) is not (quick and dtype is not torch.bfloat16)
    expected, (result,) = pullback(y_bar), program(y_bar)
    assert result.stride() == expected.stride()
    torch.testing.assert_close(result, expected, rtol=2 * torch.finfo(dtype).eps, atol=0.0)


def test_a_cotangent_with_gaps_is_spread_by_the_op_of_pytorch():
    pullback, y_bar = _pullback(lambda x: functional.avg_pool2d(x, 2), *POOLED)
    y_bar = y_bar.to(memory_format=torch.channels_last)
    program = recorded(pullback, y_bar)
    assert POOL in _ops(program)
    assert torch.equal(program(y_bar)[0], pullback(y_bar))


FACTOR = _randn(8, 48, 32)
PRODUCTS = {  # what is done with the pullback, and whether a product reads its rows
    "by one image": (lambda z: z * FACTOR, True),
    "by all images": (lambda z: z * torch.stack(4 * [FACTOR]).sin(), True),
    "from the left": (lambda z: FACTOR * z, True),
    "flat": (lambda z: (z.reshape(4, -1) * FACTOR.flatten()).view(4, 8, -1), True),
    "by one channel": (lambda z: z * FACTOR[0], True),
    "by an image of its own axis": (lambda z: z * FACTOR[None], True),
    "by another product": (lambda z: z * (z.sum() * FACTOR), False),
    "by a row": (lambda z: z * FACTOR[0, 0], False),
    "by a number of each image": (lambda z: z * FACTOR[0, :4, :1].view(4, 1, 1, 1), False),
    "by a transposed image": (lambda z: z * FACTOR.mT.contiguous().mT, False),
    "by a number": (lambda z: z * 3.0, False),
    "by itself": (lambda z: z * z, False),
    "by more than it has": (lambda z: z[:, None] * _FIVE, False),
    "of doubles": (lambda z: z * FACTOR.double(), True),
    "and as it is": (lambda z: (z * FACTOR, z), False),
    "and a view as it is": (lambda z: (z * FACTOR, z.flatten()), False),
    "a sum": (lambda z: z + FACTOR, False),
}
_FIVE = _randn(5, 8, 48, 32)


@pytest.mark.parametrize("window", [2, (3, 4), (1, 4), (4, 1)])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_read_its_rows(name, window):
    after, reads = PRODUCTS[name]
    pullback, y_bar = _pullback(lambda x: functional.avg_pool2d(x, window), *POOLED)

    def whole(y_bar):
        result = after(pullback(y_bar))
        return result if isinstance(result, tuple) else (result,)

    program = recorded(whole, y_bar)
    calls = program._quickened(program.calls)
    assert POOL not in _ops(program)
    whole_rows = [call for call in calls if str(call.target) == "aten.clone.default"]
    sides = (window, window) if isinstance(window, int) else window
    assert len(whole_rows) == (sides[1] > 1) + (sides[0] > 1 and not reads)
    for value, expected in zip(program(y_bar), whole(y_bar), strict=True):
        assert value.stride() == expected.stride()
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0.0)


# ---- convolutions ----------------------------------------------------------------------------------------------------

CONVOLUTION, PRODUCT = "aten.convolution_backward.default", "aten._slow_conv2d_backward.output_mask"


def _convolution(kernel, dtype=torch.float32, **options):
    weight = _randn(*kernel, dtype=dtype)
    return lambda x: functional.conv2d(x, weight.to(x.dtype), **options)


CONVOLUTIONS = {
    "grey": (_convolution((16, 1, 3, 3), padding=1), (4, 1, 40, 40), True),
    "coloured": (_convolution((16, 3, 3, 3), padding=1), (4, 3, 40, 40), True),
    "four channels": (_convolution((16, 4, 5, 3), padding=(2, 1)), (4, 4, 40, 24), True),
    "strided": (_convolution((16, 3, 7, 7), stride=2, padding=3), (4, 3, 41, 40), True),
    "patches": (_convolution((16, 3, 8, 8), stride=8), (4, 3, 40, 40), True),
    "one by one": (_convolution((16, 3, 1, 1)), (4, 3, 40, 40), True),
    "five channels": (_convolution((16, 5, 3, 3), padding=1), (4, 5, 40, 40), False),
    "by groups": (_convolution((16, 1, 3, 3), groups=4), (4, 4, 40, 40), False),
    "dilated": (_convolution((16, 3, 3, 3), dilation=2), (4, 3, 40, 40), False),
    "along a line": (lambda x: functional.conv1d(x, _LINE.to(x.dtype)), (4, 3, 400), True),
    "along a line, padded": (lambda x: functional.conv1d(x, _LINE.to(x.dtype), padding=2), (4, 3, 101), True),
    "along a line, strided": (lambda x: functional.conv1d(x, _LINE.to(x.dtype), None, 3, 1), (4, 3, 400), True),
    "along a line, dilated": (lambda x: functional.conv1d(x, _LINE.to(x.dtype), dilation=2), (4, 3, 400), False),
    "along a line of five channels": (lambda x: functional.conv1d(x, _WIDE.to(x.dtype)), (4, 5, 400), False),
    "along a line, transposed": (lambda x: functional.conv_transpose1d(x, _WIDE.to(x.dtype)), (4, 16, 40), False),
    "transposed": (lambda x: functional.conv_transpose2d(x, _BACK.to(x.dtype)), (4, 3, 20, 20), False),
}
_LINE, _WIDE, _BACK = _randn(16, 3, 5), _randn(16, 5, 3), _randn(3, 16, 3, 3)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_pullbacks_to_few_channels_are_products(name):
    forward, shape, quick = CONVOLUTIONS[name]
    pullback, y_bar = _pullback(forward, *shape)
    program = recorded(pullback, y_bar)
    assert ((PRODUCT in _ops(program)), (CONVOLUTION in _ops(program))) == (quick, not quick)
    result, expected = program(y_bar)[0], pullback(y_bar.double())
    assert result.stride() == pullback(y_bar).stride()
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))


def test_other_convolutions_stay(monkeypatch):
    pullback, y_bar = _pullback(_convolution((16, 3, 3, 3)), 4, 3, 40, 40)
    assert CONVOLUTION in _ops(recorded(pullback, y_bar.double()))
    strided = y_bar.to(memory_format=torch.channels_last)
    assert CONVOLUTION in _ops(recorded(pullback, strided))
    weight, x = _randn(16, 3, 3, 3), _randn(4, 3, 40, 40)
    of_weights = lambda y_bar: torch.func.vjp(lambda w: functional.conv2d(x, w), weight)[1](y_bar)[0]  # noqa: E731
    assert CONVOLUTION in _ops(recorded(of_weights, y_bar))
    monkeypatch.setattr(quick_pullbacks, "onednn_is_on", lambda: False)
    assert CONVOLUTION in _ops(recorded(pullback, y_bar))


def test_each_thread_has_a_sample(monkeypatch):
    pullback, y_bar = _pullback(_convolution((16, 3, 3, 3)), 4, 3, 40, 40)
    for threads, op in ((4, PRODUCT), (5, CONVOLUTION)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert op in _ops(recorded(pullback, y_bar))


@pytest.mark.parametrize("batch", [1, 5])
def test_jacobians_of_convolutions_along_lines(batch):
    layers = [nn.Unflatten(-1, (1, 30)), nn.Conv1d(1, 3, 5, padding=2), nn.Tanh(), nn.Conv1d(3, 2, 4, stride=2)]
    net = nn.Sequential(*layers, nn.Flatten(-2), nn.Linear(28, 4))
    x = _randn(batch, 30)
    plan = plan_jacobian(net, x, batch_dims=1)
    for point in (x, x.cos(), 2 * x):
        found = plan(point)
        expected = torch.func.vmap(torch.func.jacrev(net.double()))(point.double())
        net.float()
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-5)
    assert PRODUCT in _ops(program_of(plan, x))


# ---- Jacobians -------------------------------------------------------------------------------------------------------


def _net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Sigmoid(), nn.AdaptiveAvgPool2d(16),
        nn.Flatten(), nn.Linear(2048, 10),
    )  # fmt: skip


def test_a_jacobian_replayed_with_them_is_right():
    net, x = _net(), _randn(1, 3, 64, 64)
    plan = plan_jacobian(net, torch.zeros(1, 3, 64, 64))
    ops = _ops(program_of(plan, x))
    assert not any("avg_pool2d_backward" in op for op in ops)
    expected = torch.func.jacrev(net.double())(x.double())
    net.float()
    for _ in range(3):
        torch.testing.assert_close(plan(x).double(), expected, rtol=1e-4, atol=1e-6)
    assert plan.verify(x).rows  # the time of each step is taken of the same calls


@pytest.mark.compiled
def test_a_compiled_program_has_them_too():
    check_compiled_plan(_net(), _randn(1, 3, 64, 64))
