"""Functions whose control flow looks at data: the way taken is recorded, and every call finds out which one it is."""

import threading

import pytest
import torch
from branching_functions import FUNCTIONS, WEIGHT, N, clipped, controlled_steps, counted, piecewise, refusing, scaled
from jacobian_checks import F64, assert_same, judged, quiet_judge, randn
from torch import nn

from torch_jvpvjp.accumulation import Chain, Plan, gauss_newton, jacobian, plan_jacobian
from torch_jvpvjp.accumulation import branches as ways

named = {function.__name__: function for function in FUNCTIONS}


def _points():
    return [scale * randn(N) for scale in (1, 0.2, 1.5, 0.05, 0.6)]


def _recorded(plan):
    return not plan.runtime.refusals()


@quiet_judge
@pytest.mark.parametrize("options", [{}, {"create_graph": True}, {"memory_limit": 100_000}], ids=str)
@pytest.mark.parametrize("f", named.values(), ids=named)
def test_every_call_has_the_jacobian_of_the_way_that_is_taken_there(f, options):
    points = _points()
    plan = plan_jacobian(f, points[0], **options)
    assert _recorded(plan)
    in_a_row = [x * (1 + place / 1000) for x in points for place in range(4)]
    for x in (*points, *in_a_row, *reversed(points)):
        assert_same(plan(x).detach(), judged(f, x))
    for x in points:
        assert_same(jacobian(f, x, objective="fma"), judged(f, x))
    copied = Plan.from_json(plan.to_json())
    assert_same(jacobian(f, points[0], plan=copied), judged(f, points[0]))


@pytest.mark.parametrize("f", [clipped, piecewise, scaled, counted, controlled_steps], ids=lambda f: f.__name__)
def test_second_derivatives(f):
    x = randn(N).requires_grad_()
    plan = plan_jacobian(f, x, create_graph=True)
    for point in (x, (0.1 * x).detach().requires_grad_(), x):
        found = torch.autograd.grad(plan(point).sin().sum(), point)[0]
        assert_same(found, torch.func.grad(lambda v: torch.func.jacrev(f)(v).sin().sum())(point))


@pytest.mark.parametrize("f", [clipped, piecewise, counted], ids=lambda f: f.__name__)
def test_compiled_calls(f):
    x = randn(N)
    plan = plan_jacobian(f, x).compile()
    for point in (x, x, 0.1 * x, 0.1 * x, x, 0.1 * x):
        assert_same(plan(point), judged(f, point))


def test_what_f_raises_is_raised_and_does_no_harm():
    x = randn(N).clamp(min=-2)
    plan = plan_jacobian(refusing, x)
    for _ in range(2):
        assert_same(plan(x), judged(refusing, x))
        for call in (plan, lambda v: jacobian(refusing, v), lambda v: plan_jacobian(refusing, v)):
            with pytest.raises(ValueError, match="x must not be below -3"):
                call(x - 9)


@pytest.fixture
def traced(monkeypatch):
    """The points at which functions were recorded."""
    from torch_jvpvjp.accumulation import runtime

    calls, own = [], runtime.trace_subject

    def counting(subject, *args, **options):
        calls.append(options["as_it_stands"])
        return own(subject, *args, **options)

    monkeypatch.setattr(runtime, "trace_subject", counting)
    return calls


def test_jacobian_records_another_way_once_calls_have_paid_for_it(traced, monkeypatch):
    from torch_jvpvjp.accumulation import cache

    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)

    def f(v):
        return clipped(v)

    x = torch.ones(N, dtype=F64)
    for _ in range(3):
        assert_same(jacobian(f, x), judged(f, x))
    assert_same(jacobian(f, 0.01 * x), judged(f, 0.01 * x))
    assert traced == [None]
    for _ in range(200):
        jacobian(f, 0.01 * x)
    assert traced[1:] == [None]
    assert_same(jacobian(f, 0.01 * x), judged(f, 0.01 * x))
    assert_same(jacobian(f, x), judged(f, x))


def test_two_ways_are_recorded_once_each(traced):
    x = torch.ones(N, dtype=F64)
    plan = plan_jacobian(clipped, x)
    for _ in range(5):
        for point in (x, 0.01 * x):
            assert_same(plan(point), judged(clipped, point))
    assert traced == [None, None]


def test_a_function_that_never_goes_the_same_way_is_called_as_it_stands(traced, monkeypatch):
    def f(v):
        return v * int(1000 * v.norm())

    plan = plan_jacobian(f, randn(N))
    for _ in range(4):
        x = randn(N)
        assert_same(plan(x), judged(f, x))
    assert traced[:3] == [None, None, None]
    assert traced[3] is not None
    x = randn(N)
    (branches,) = plan.runtime._branches.values()
    branches.paid = 1e9  # what calls have taken is now more than what a recording takes
    assert_same(plan(x), judged(f, x))
    assert traced[-1] is None
    assert_same(plan(x), judged(f, x))


def test_a_way_that_cannot_be_recorded_is_no_hindrance_to_those_that_can():
    def f(v):
        return v * float(v.detach().sum()) if v.sum() > 0 else (WEIGHT @ v).sin() * v

    x = torch.ones(N, dtype=F64)
    plan = plan_jacobian(f, -x)
    for point in (x, -x, x, -2 * x, 2 * x, 3 * x, -x):
        assert_same(plan(point), judged(f, point))
    assert _recorded(plan)


def test_many_ways_are_kept_and_told_apart(traced):
    def f(v):
        for place in range(N):
            v = v.sin() if v[place] > 0 else v * v + v
        return v

    points = [randn(N) for _ in range(30)]
    plan = plan_jacobian(f, points[0])
    (branches,) = plan.runtime._branches.values()
    for x in (*points, *points):
        branches.paid = 1e9
        assert_same(plan(x), judged(f, x))
    assert len(branches._found) <= ways._MOST


def test_other_arguments_decide_too():
    def f(v, w):
        return v * w.sum() if w.norm() > v.norm() else v.sin() * w

    x = randn(N)
    plan = plan_jacobian(f, (x, x + 1), wrt=0)
    assert _recorded(plan)
    for scale in (1, 5, 0.1, 5, 0.1):
        given = (x, scale * x)
        assert_same(plan(given), judged(lambda v, w=given[1]: f(v, w), x))


def test_tensors_from_outside_decide_too():
    threshold = torch.tensor(0.5, dtype=F64)
    power = torch.tensor(2.0, dtype=F64)

    def f(v):
        return v ** float(power) if v.norm() > threshold else v.sin()

    x = randn(N)
    plan = plan_jacobian(f, x)
    assert _recorded(plan)  # a fraction that does not depend on x may be handed to Python
    for value, exponent in ((0.5, 2), (100.0, 2), (0.5, 3), (0.5, 2)):
        threshold.fill_(value)
        power.fill_(exponent)
        assert_same(plan(x), judged(f, x))


def test_parameters_and_trees():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(N, N), nn.Linear(N, 2)

        def forward(self, given):
            y = self.first(given["x"])
            if y.sum() > 0:
                y = y.tanh()
            return {"y": self.second(y), "n": y.norm()}

    net = Gated().to(F64)
    plan = plan_jacobian(net, {"x": randn(N)})
    for _ in range(6):
        x = {"x": randn(N)}
        assert_same(plan(x), judged(net, x))
    plan = plan_jacobian(net, ({"x": randn(N)},), wrt="parameters")
    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}
    for _ in range(6):
        x = {"x": randn(N)}
        judge = torch.func.jacrev(lambda given, x=x: torch.func.functional_call(net, given, (x,)))
        assert_same(plan((x,)), judge(parameters))


def test_stages_of_a_chain_and_a_stage_that_cannot_be_recorded():
    def secret(v):
        return v * v if float(v.detach().sum()) > 0 else v  # a float stays with Python

    plan = plan_jacobian([torch.sin, clipped, secret, piecewise], randn(N))
    assert list(plan.runtime.refusals()) == ["secret", "piecewise"]
    for x in _points():
        expected = judged(lambda v: piecewise(secret(clipped(v.sin()))), x)
        assert_same(plan(x), expected)


def test_seeds():
    x, left, right = randn(N), randn(2, N), randn(N, 3)
    plan = Chain([clipped, piecewise]).plan(x, left=left, right=right)
    for point in (x, 0.1 * x, x):
        assert_same(plan(point), left @ judged(lambda v: piecewise(clipped(v)), point) @ right)


@quiet_judge
@pytest.mark.parametrize("hessian", [None, randn(N, N)], ids=["identity", "hessian"])
@pytest.mark.parametrize("f", [f for f in FUNCTIONS if f is not refusing], ids=lambda f: f.__name__)
def test_gauss_newton_goes_the_way_that_f_goes(f, hessian):
    points = _points()
    plan = gauss_newton(f, points[0], hessian)
    for x in (*points, *points):
        jacobian_at = judged(f, x)
        assert_same(plan(x), jacobian_at.T @ (jacobian_at if hessian is None else hessian @ jacobian_at))


def test_gauss_newton_of_many_ways_keeps_some():
    def f(v):
        return v.sin() * int(1e6 * v.norm())

    plan = gauss_newton(f, randn(N))
    for _ in range(ways.MOST_KEPT + 3):
        x = randn(N)
        assert_same(plan(x), judged(f, x).T @ judged(f, x))
    assert len(plan.runtime._tracings) <= ways.MOST_KEPT


def test_gauss_newton_refuses_a_way_that_cannot_be_recorded():
    def f(v):
        return v.sin() if v.sum() > 0 else v * float(v.detach().max())

    x = torch.ones(N, dtype=F64)
    plan = gauss_newton(f, x)
    with pytest.raises(ValueError, match="f must be recordable at x, got one that is not"):
        plan(-x)
    assert_same(plan(x), torch.diag(x.cos() ** 2))
    with pytest.raises(ValueError, match="multiply jacobian"):
        gauss_newton(f, -x)


def test_inside_of_transforms_values_are_not_seen():
    x = randn(N)
    plan = plan_jacobian(clipped, x)
    found = torch.func.jacrev(lambda v: jacobian(clipped, v))(x)
    assert_same(found, torch.func.jacrev(torch.func.jacrev(clipped))(x))
    assert_same(
        torch.func.jvp(plan, (0.1 * x,), (x,))[1], torch.func.jvp(torch.func.jacrev(clipped), (0.1 * x,), (x,))[1]
    )
    assert_same(plan(x), judged(clipped, x))
    with pytest.raises(RuntimeError, match="data-dependent"):
        torch.func.vmap(plan)(torch.stack([x, 0.1 * x]))


def test_samples_of_a_batch_cannot_go_each_its_own_way():
    with pytest.raises((RuntimeError, ValueError, NotImplementedError)):
        plan_jacobian(clipped, randn(3, N), batch_dims=1)(randn(3, N))


def test_a_jacobian_inside_of_a_function_that_is_planned():
    def inner(v):
        return v.sin() if v.sum() > 0 else v * v

    def f(v):
        return jacobian(inner, v) @ v

    for x in (randn(3), -randn(3), randn(3)):
        assert_same(jacobian(f, x, objective="fma"), judged(lambda v: torch.func.jacrev(inner)(v) @ v, x))


def test_a_plan_that_was_loaded_says_why_it_does_not_fit():
    def f(v):
        return v.sin() if v.sum() > 0 else (WEIGHT @ v).tanh()

    x = torch.ones(N, dtype=F64)
    loaded = Plan.from_json(plan_jacobian(f, x, objective="fma").to_json())
    assert_same(jacobian(f, x, plan=loaded), judged(f, x))
    with pytest.raises(ValueError, match="f looks at data, and may go another way here"):
        jacobian(f, -x, plan=loaded)
    assert_same(jacobian(f, x, plan=loaded), judged(f, x))


def test_a_plan_for_ways_that_another_function_has_not_is_refused():
    def moved(v):
        return v[0] + v

    def solved(v):
        return torch.linalg.matrix_exp(torch.diag(v)).sum(1) * v

    x = randn(3)
    plan = Plan.from_json(plan_jacobian(moved, x, objective="fma").to_json())
    with pytest.raises(ValueError, match="by a JVP or a VJP or a closed form, at factor F1 .* by a JVP or a VJP;"):
        jacobian(solved, x, plan=plan)


def test_explained_and_verified(capsys):
    x = torch.ones(N, dtype=F64)
    plan = plan_jacobian(piecewise, x, explain=True)
    assert "It looks at data, once" in capsys.readouterr().out
    for point in (x, 0.6 * x):
        assert len(plan.verify(point).rows) > 0
    assert plan.verify(0.6 * x).rows != plan.verify(x).rows


def test_threads():
    points = _points()
    plan = plan_jacobian(piecewise, points[0])
    expected, failures = [judged(piecewise, x) for x in points], []

    def work():
        try:
            for _ in range(10):
                for x, one in zip(points, expected, strict=True):
                    assert_same(plan(x), one)
        except BaseException as error:  # noqa: BLE001 (of another thread)
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
