"""Looking at a plan: its stages, predicted against measured times, a progress bar; and keeping it in a file."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, randn
from torch import nn
from torch.func import jacrev

from torch_jvpvjp.accumulation import Plan, jacobian, plan_jacobian
from torch_jvpvjp.ops import rms_norm


def _net():
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 5)).to(F64)


@pytest.mark.parametrize("strategy", ["dynamic_programming", "forward", "reverse"])
def test_verify_has_a_row_for_each_step(strategy):
    net, x = _net(), randn(4)
    plan = plan_jacobian(net, x, strategy=strategy)
    verified = plan.verify(x)
    text = str(verified)
    assert "predicted" in text and "measured" in text and "a call, with f" in text
    assert verified.call.measured > 0 and verified.call.predicted > verified.predicted
    assert_same(plan(x), judged(net, x))


def test_a_black_box_is_verified_too():
    def function(v):
        return v.sin() if float(v.detach().sum()) > 0 else v * v

    x = randn(4)
    plan = plan_jacobian([torch.tanh, function], x)
    assert "measured" in str(plan.verify(x))
    assert_same(plan(x), judged(lambda v: function(v.tanh()), x))


def test_explain_prints_a_row_for_each_stage(capsys):
    net, x = _net(), randn(4)
    plan = plan_jacobian(net, x, explain=True)
    text = capsys.readouterr().out
    assert f"{len(plan.factors)} stages" in text
    for place in range(1, len(plan.factors) + 1):
        assert f"F{place}" in text
    assert "4 → 6" in text and "diagonal" in text and "gelu" in text
    assert_same(jacobian(net, x, explain=True), judged(net, x))
    assert f"{len(plan.factors)} stages" in capsys.readouterr().out


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_progress_does_not_change_the_result(chunk_size, capsys):
    net, x = _net(), randn(4)
    plan = plan_jacobian(net, x, progress=True, chunk_size=chunk_size)
    for point in (x, x + 1):
        assert_same(plan(point), judged(net, point))
    assert "jacobian" in capsys.readouterr().out
    assert_same(jacobian(net, x, progress=True), judged(net, x))


def test_a_plan_from_a_file_takes_the_jacobian(tmp_path):
    net, x = _net(), randn(4)
    for options in ({"objective": "fma"}, {"strategy": "reverse"}, {}):
        plan_jacobian(net, x, **options).save(tmp_path / "plan.json")
        loaded = Plan.load(tmp_path / "plan.json")
        for point in (x, x, x + 0.3):
            assert_same(jacobian(net, point, plan=loaded), judged(net, point))
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert_same(jacobian(net, x, plan=loaded), judged(net, x))


@pytest.mark.slow
@pytest.mark.compiled
def test_a_compiled_plan_gives_the_jacobian():
    net, x = _net(), randn(4)
    plan = plan_jacobian(net, x).compile()
    for point in (x, x, x + 0.3):
        assert_same(plan(point), judged(net, point))
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert_same(plan(x), judged(net, x))


@pytest.mark.slow
@pytest.mark.compiled
def test_a_compiled_plan_calls_ops_that_only_python_can_call(caplog):
    def function(x):
        return (torch.linalg.solve(torch.eye(3, dtype=x.dtype) * 4 + x[:, None] * x, x), rms_norm(x, (3,)))

    x = randn(3)
    plan = plan_jacobian(function, x).compile()
    for point in (x, x, x + 0.3):
        for found, expected in zip(plan(point), jacrev(function)(point), strict=True):
            assert_same(found, expected)
    assert "c-shim" not in caplog.text  # what Inductor warns of where its C++ goes back to Python for an op


def test_what_cannot_be_recorded_is_not_compiled():
    with pytest.raises(ValueError, match="the function must be recordable, got one that is not"):
        plan_jacobian(lambda v: v if float(v.detach().sum()) > 0 else -v, randn(3)).compile()
