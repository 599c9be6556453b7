"""A replayed program writes into what nobody needs any more, and into nothing else."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, randn
from replay_checks import program_of, run_calls
from torch import Tensor, nn

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.calls import ProgramCall
from torch_jvpvjp.accumulation.program import Program, ProgramRecorder
from torch_jvpvjp.accumulation.replay import by_hand
from torch_jvpvjp.accumulation.replay.overwriting import overwritten

X, WEIGHT = torch.randn(2, 4, 6, dtype=F64), torch.randn(6, 6, dtype=F64)


def _recorded(function):
    """Record a function of x and a weight, rewriting nothing but what is never used."""
    recorder = ProgramRecorder([X, WEIGHT])
    with torch.no_grad(), recorder:
        results = function(X, WEIGHT)
    program = recorder.program(recorder.numbers([results] if isinstance(results, Tensor) else results))
    assert program is not None
    return program


def _written_into(program: Program) -> list[str]:
    """Return the ops that write into an operand."""
    found = overwritten(program.calls, program.results, program.layouts)
    return [program.calls[place].target._schema.name.removeprefix("aten::") for place in sorted(found)]


CASES = {  # what is done, and which ops write into an operand
    "what is given is kept": (lambda x, w: x * 2.0, []),
    "a chain": (lambda x, w: (x.sin() * x + 1.0).tanh(), ["mul", "add", "tanh"]),
    "the second operand": (lambda x, w: x - x.cos(), ["sub"]),
    "a function that has no method": (lambda x, w: torch.maximum(x, x.cos()), ["maximum"]),
    "a square": (lambda x, w: (y := x.sin()) * y, ["mul"]),
    "what is used later": (lambda x, w: ((y := x.sin()) * 2.0) / y, ["div"]),
    "a view that is used later": (lambda x, w: (y := x.sin())[0] + (y * 2.0).sum(), []),
    "two results": (lambda x, w: ((y := x.sin()), y.exp()), []),
    "a result that is a view": (lambda x, w: ((y := x.sin()).mT, y.exp()), []),
    "all of it through a view": (lambda x, w: x.sin().view(48).mul(2.0).view(2, 24).exp(), ["mul", "exp"]),
    "a part": (lambda x, w: x.sin()[0].mul(2.0), []),
    "transposed": (lambda x, w: x.sin().mT * 2.0, ["mul"]),
    "laid out otherwise": (lambda x, w: torch.ones(6, 8, dtype=F64) + x.view(8, 6).sin().t(), []),
    "laid out as the first": (lambda x, w: x.view(8, 6).sin().t() + torch.ones(6, 8, dtype=F64), ["add"]),
    "itself transposed": (lambda x, w: (y := w.sin()) * y.t(), []),
    "expanded": (lambda x, w: x.sum(0).expand(2, 4, 6) * x, []),
    "broadcast": (lambda x, w: x.sin().sum(0) * x, []),
    "compared": (lambda x, w: (x.sin() > 0).to(F64) * 2.0, ["mul"]),
    "added to": (lambda x, w: torch.addmm(w.sin(), w, w), ["addmm"]),
    "added to, and a factor": (lambda x, w: torch.addmm(y := w.sin(), y, w), []),
    "added to, a row": (lambda x, w: torch.addmm(w[0].sin(), w, w), []),
    "a factor": (lambda x, w: torch.addmm(w, w.sin(), w), []),
    "a batch": (lambda x, w: torch.baddbmm(x.sin(), x, w.expand(2, 6, 6)), ["baddbmm"]),
}  # fmt: skip


@pytest.mark.parametrize(("function", "expected"), CASES.values(), ids=CASES)
def test_what_is_written_into(function, expected):
    program = _recorded(function)
    assert _written_into(program) == expected
    before = X.clone(), WEIGHT.clone()
    exact = run_calls(program.calls, {**program.fixed, **dict(zip(program.inputs, before, strict=True))})
    for _ in range(2):
        for found, index in zip(program(X, WEIGHT), program.results, strict=True):
            assert torch.equal(found, exact[index])
            assert found.stride() == exact[index].stride()
    assert torch.equal(X, before[0]) and torch.equal(WEIGHT, before[1])


def test_a_program_that_writes_is_left_alone():
    aten = torch.ops.aten
    program = _recorded(lambda x, w: x.sin() * 2.0)
    first = program.calls[0]
    writing = ProgramCall(aten.zero_.default, first.args, {}, first.outputs)
    assert overwritten([*program.calls, writing], program.results, program.layouts) == {}
    assert by_hand([*program.calls, writing], program.results, program.layouts)(program.calls[1], 1)[0].startswith(
        "mul"
    )


def test_a_jacobian_is_right_call_after_call():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 7), nn.Tanh(), nn.Softplus(), nn.Linear(7, 3)).to(F64)

    def function(v: Tensor) -> Tensor:
        return net(v) * v[:3] + torch.logsumexp(v * v.sin(), 0)

    for strategy in ("forward", "reverse", "dynamic_programming"):
        plan = plan_jacobian(function, randn(5), strategy=strategy)
        weights = [parameter.clone() for parameter in net.parameters()]
        earlier = []
        for _ in range(4):
            x = randn(5)
            before = x.clone()
            earlier.append((plan(x), judged(function, x)))
            assert torch.equal(x, before)
        for found, expected in earlier:
            assert_same(found, expected)
        assert _written_into(program_of(plan, randn(5)))
        for parameter, weight in zip(net.parameters(), weights, strict=True):
            assert torch.equal(parameter, weight)


def _recorded_ops(function, *inputs):
    """Return the ops of a program, and check it at another point."""
    recorder = ProgramRecorder(inputs)
    with torch.no_grad(), recorder:
        results = function(*inputs)
    program = recorder.program(recorder.numbers(list(results)))
    assert program is not None
    moved = [1.1 * one + 0.2 for one in inputs]
    for found, expected in zip(program.run(*moved), function(*(one.clone() for one in moved)), strict=True):
        torch.testing.assert_close(found, expected)
    return [call.target for call in program.calls]


def test_writes_into_what_nothing_else_looks_at_are_recorded_as_ops_that_write_into_nothing():
    """As autograd writes 1 - y, among others."""

    def function(x):
        s = x.sigmoid()
        rest = torch.empty_like(s).fill_(1.0).sub_(s)
        summed = torch.zeros_like(x).add_(x * rest).mul_(2)
        rest = rest.exp()
        return summed, rest

    ops = _recorded_ops(function, torch.randn(3, 4))
    assert not any(op._schema.is_mutable for op in ops)
    assert torch.ops.aten.fill.Scalar not in ops


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (y := x.exp(), y.view(-1), y.mul_(2))[1:],  # seen by a view from before
        lambda x: (y := x.exp(), y[0].add_(1), y)[1:],  # written through a view
        lambda x: (y := x.clone(), y.t().mul_(x.t()), y)[1:],
        lambda x: (y := torch.ones(4, dtype=torch.float64), y.add_(x.sum()), y[None] * x)[1:],
        lambda x: (y := x.exp(), z := y * 2, y.add_(z), z.mul_(y), y * z)[3:],  # each used before and after
        lambda x: (y := x.exp(), y.t_(), y.mul_(3))[2:],
        lambda x: (y := (x[None] @ x.t()[None])[0], y.add_(1), y * 2)[1:],
        lambda x: (y := torch.zeros(4, 4, dtype=torch.float32), y.add_(x), y.sin())[2:],  # of another dtype
    ],
)
def test_writes_mean_what_they_meant(function):
    _recorded_ops(function, torch.randn(4, 4, dtype=torch.float64))
