"""Long products of steps with one matrix, in segments side by side: which they are, and that they stay the same."""

from functools import partial

import pytest
import torch
from replay_checks import program_of, recorded

from torch_jvpvjp._onednn import onednn_products
from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.replay import recurrences

pytestmark = pytest.mark.skipif(onednn_products() is None, reason="PyTorch was built without oneDNN")
N, STEPS = 176, 38  # as small as a product of oneDNN may be; in no number of segments without a remainder
GENERATOR = torch.Generator().manual_seed(0)


def _randn(*shape, scale=1.0):
    return scale * torch.randn(shape, generator=GENERATOR)


W, BIASES = _randn(N, N, scale=N**-0.5), _randn(STEPS, N, scale=0.3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(recurrences, "onednn_is_quicker_in_rows", lambda threads: True)


def _of(x, weight):
    """The tensors that a function refers to, in the dtype of x."""
    return weight.to(x.dtype), BIASES.to(x.dtype)


def _recurrence(x, steps=STEPS, weight=W):
    w, biases = _of(x, weight)
    for bias in biases[:steps]:
        x = torch.tanh(w @ x + bias)
    return x


def _integrator(x, steps=STEPS, weight=W):
    w, biases = _of(x, weight)
    for bias in biases[:steps]:
        x = x + 0.1 * torch.sigmoid(w @ x + bias)
    return x


def _mixed(x):
    return _integrator(_recurrence(x, 20), 18)


def _after_another(x):
    return _recurrence(_of(x, W.t().contiguous())[0] @ x.sin())


def _before_another(x):
    return _of(x, W.flip(0))[0] @ _recurrence(x).square()


def _also_halfway(x):
    half = _integrator(x, 20)
    return torch.cat([half, _integrator(half, 18)])


def _of_two_matrices(x):
    w, v = _of(x, W)[0], _of(x, W.flip(1))[0]
    for step in range(STEPS):
        x = torch.tanh((v if step % 2 else w) @ x)
    return x


CASES = {  # the function, and whether some of it goes in segments
    "recurrence": (_recurrence, True),
    "integrator": (_integrator, True),
    "steps of both kinds": (_mixed, True),
    "after another": (_after_another, True),
    "before another": (_before_another, True),
    "also halfway": (_also_halfway, True),
    "transposed": (partial(_recurrence, weight=W.t()), True),
    "a transposed integrator": (partial(_integrator, weight=W.t()), False),  # of which the result is transposed too
    "few steps": (partial(_recurrence, steps=6), False),
    "two matrices in turn": (_of_two_matrices, False),
    "small": (partial(_recurrence, weight=W[:100, :100].contiguous()), False),
}


@pytest.mark.parametrize(("function", "expected"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("together", [True, False], ids=["stacked", "one by one"])
def test_jacobians_are_those_of_float64(monkeypatch, function, expected, together):
    n = 100 if function is CASES["small"][0] else N
    monkeypatch.setattr("test_recurrences.BIASES", BIASES[:, :n])
    x = _randn(n)
    plan = plan_jacobian(function, x)
    program = program_of(plan, x)
    calls = program._quickened(program.replayed if together else program.calls)
    rows = [program.layouts[call.outputs[0]].shape[0] for call in calls if call.target.namespace == "mkldnn"]
    assert (max(rows, default=0) >= 2 * n) is expected
    point = _randn(n)
    exact = torch.func.jacrev(function)(point.double())
    found = program._written(calls)(point, *plan.runtime.tracing(point).constants.values())[0]
    for jacobian in (found.reshape(exact.shape), plan(point)):
        torch.testing.assert_close(jacobian.double(), exact, rtol=1e-4, atol=3e-6 * float(exact.abs().max()))


@pytest.mark.parametrize(("used", "op"), [([3], "select"), ([-1, 0, 3], "select"), (range(8), "unbind")])
def test_a_tensor_of_which_few_parts_are_used_is_not_taken_apart_whole(used, op):
    x = _randn(5, 16)
    program = recorded(lambda v: [v.unbind(1)[place] * 2 for place in used], x)
    calls = program._quickened(program.calls)
    assert {str(call.target).split(".")[1] for call in calls if call.target.is_view} == {op}
    for found, place in zip(program(x), used, strict=True):
        torch.testing.assert_close(found, x[:, place] * 2, rtol=0, atol=0)
