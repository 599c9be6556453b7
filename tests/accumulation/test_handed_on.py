"""What compiled pullbacks are handed, and what they make again."""

import pytest
import torch
from jacobian_checks import F64, assert_same, randn
from torch import nn

from torch_jvpvjp.accumulation import differentiable, jacobian
from torch_jvpvjp.accumulation.differentiable import Replay, _copies, _noise, _pulled, _Recording
from torch_jvpvjp.accumulation.handed_on import made_again
from torch_jvpvjp.accumulation.program import ProgramRecorder

_aten = torch.ops.aten


def _cut(function, inputs, wanted, multiplied=()):
    """Return the ops that are run again, and those that make what is handed on ("input" for an input)."""
    recorder = ProgramRecorder(inputs)
    with recorder:
        found = function(*inputs)
    numbers = dict(zip(found, recorder.numbers(list(found.values())), strict=True))
    again, handed = made_again(
        recorder._calls,
        recorder._inputs,
        [numbers[name] for name in wanted],
        [numbers[name] for name in multiplied],
        recorder._layouts,
    )
    makers = {index: call.target._opname for call in recorder._calls for index in call.outputs}
    return [call.target._opname for call in again], sorted(makers.get(index, "input") for index in handed)


def _layer(x, w):
    h = torch.mm(x, w)
    turned = h.view(4, 2, 3).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    scaled = turned * 2 + 1
    return {"turned": turned, "scaled": scaled, "y": torch.mm(scaled.view(-1, 2), scaled.view(-1, 2).t())}


def test_views_copies_and_arithmetic_are_made_again_from_a_product():
    inputs = [torch.randn(8, 5), torch.randn(5, 3)]
    again, handed = _cut(_layer, inputs, ["turned", "scaled"])
    assert handed == ["mm"]
    assert again == ["view", "transpose", "clone", "mul", "add"]


def test_what_products_take_on_both_sides_is_handed_on():
    inputs = [torch.randn(8, 5), torch.randn(5, 3)]
    again, handed = _cut(_layer, inputs, ["turned", "scaled"], ["scaled"])
    assert handed == ["add", "mm"]
    assert again == ["view", "transpose", "clone"]


def test_exponentials_are_not_taken_again_and_views_of_inputs_are():
    def function(x):
        e = x[1:].t().exp()
        return {"e": e, "slope": e * (1 - e), "seen": x.view(-1)}

    again, handed = _cut(function, [torch.randn(4, 6)], ["e", "slope", "seen"])
    assert handed == ["exp", "input"]
    assert again == ["rsub", "mul", "view"]


def test_what_is_read_from_few_entries_is_not_handed_on_expanded():
    def function(x, w):
        small = torch.mm(x, w)
        return {"large": small[:, None, :].expand(8, 50, 3).clone(memory_format=torch.contiguous_format) * 2}

    _, handed = _cut(function, [torch.randn(8, 5), torch.randn(5, 3)], ["large"])
    assert handed == ["mm"]


class _Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.kind = nn.Linear(4, 6), nn.Linear(6, 3), kind
        self.c = nn.Conv2d(1, 2, 3, padding=1)

    def forward(self, x):
        if self.kind == "image":
            h = nn.functional.silu(self.c(x.unflatten(-1, (1, 2, 2))))
            return nn.functional.avg_pool2d(h, 2).flatten(-3)
        h = self.a(x)
        h = {"silu": nn.functional.silu, "tanh": torch.tanh, "relu": torch.relu, "softmax": lambda t: t.softmax(-1)}[
            self.kind
        ](h)
        return torch.cat([self.b(h), h[..., :2] * x[..., 1:3].exp()], -1)


@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("kind", ["silu", "tanh", "relu", "softmax", "image"])
def test_a_pullback_that_makes_values_again_is_that_of_autograd(kind, batch_dims):
    """The same recordings as are compiled, run as they are."""
    net = _Net(kind).to(F64)
    x = randn(*[5][:batch_dims], 4).requires_grad_()
    parameters = dict(net.named_parameters())

    def made(inputs):
        given = dict(zip(parameters, inputs[1:], strict=True))
        each = torch.func.jacrev(lambda sample: torch.func.functional_call(net, given, (sample[None],))[0])
        return [torch.func.vmap(each)(inputs[0]) if batch_dims else each(inputs[0])]

    inputs = _copies([x, *parameters.values()])
    recording = _Recording(made, inputs, None, 1 << 22)
    plain = _Recording(made, inputs, None, 1 << 22).programs(Replay(1 << 22), exact=False)
    original = Replay.run
    Replay.run = lambda self, program: program.run  # pyright: ignore[reportAttributeAccessIssue]
    try:
        found = recording.programs(Replay(1 << 22, compiled=True), exact=False)
    finally:
        Replay.run = original
    assert found is not None
    assert plain is not None
    handed = sum(is_value for is_value, _ in found.given)
    assert handed <= sum(is_value for is_value, _ in plain.given)
    moved = [(1.1 * one.detach() + 0.1).requires_grad_(one.requires_grad) for one in inputs]
    parts = made(moved)
    bars = _noise(parts)
    expected = _pulled(parts, moved, bars)
    with torch.no_grad():
        again, values = found.run(moved)
        pulled = found.pull([moved[place] for place in found.kept], values, bars)
    assert_same(again[0], parts[0])
    assert found.pulled == tuple(expected)
    for one, judge in zip(pulled, expected.values(), strict=True):
        assert_same(one, judge)


def test_compiled_flows_hand_on_no_view(monkeypatch):
    made = []
    original = differentiable.Differentiable.run

    def run(self, inputs):
        parts, values = original(self, inputs)
        made.extend(values)
        return parts, values

    monkeypatch.setattr(differentiable.Differentiable, "run", run)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    jacobian(net, torch.randn(3, 4), batch_dims=1, create_graph=True, compile=True).square().sum().backward()
    assert made
    assert not any(value._is_view() for value in made)
    assert len({value.untyped_storage().data_ptr() for value in made}) == len(made)
