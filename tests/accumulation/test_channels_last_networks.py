"""Jacobians of networks whose sweeps and primals lie with channels innermost are right."""

import pytest
import torch
from channels_last_checks import calls_of, randn, turned_in
from replay_checks import check_compiled_plan, program_of
from torch import nn
from torch.nn import functional

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.program import Program

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


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
    net, x = _net(), randn(1, 3, 32, 32)
    plan = plan_jacobian(net, torch.zeros(1, 3, 32, 32))
    assert turned_in(program_of(plan, x)) > 3
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
    net, x, basis = _UNet(), randn(1, 3, 16, 16), randn(6, 3 * 16 * 16)

    def function(z):
        if forwards:
            return net(x.to(z) + (z @ basis.to(z)).view(x.shape))
        return functional.avg_pool2d(net(z), 8).flatten()

    point = randn(6) if forwards else x
    plan = plan_jacobian(function, torch.zeros_like(point))
    program = program_of(plan, point)
    assert turned_in(program) >= 2
    assert not [call for call in calls_of(program) if _is_copy_of_joined(call, program)]
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
    net, z = _Decoder(), randn(1, 6)
    plan = plan_jacobian(net, torch.zeros(1, 6))
    assert turned_in(program_of(plan, z)) == 3  # the first is too small to begin with
    expected = torch.func.jacrev(net.double())(z.double())
    net.float()
    for _ in range(3):
        torch.testing.assert_close(plan(z).double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("strategy", ["forward", "reverse"])
def test_a_batch_has_the_jacobian_of_each_sample(strategy):
    torch.manual_seed(0)
    net, samples = _Decoder(), randn(2, 6)
    plan = plan_jacobian(net, torch.zeros(2, 6), batch_dims=1, strategy=strategy)
    expected = torch.stack([torch.func.jacrev(net.double())(z[None].double())[0, ..., 0, :] for z in samples])
    net.float()
    for _ in range(3):
        torch.testing.assert_close(plan(samples).double(), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.compiled
def test_a_compiled_plan_of_it_is_right():
    check_compiled_plan(_net(), randn(1, 3, 32, 32))
