"""Plans live as long as the function that they are kept for, and are of no other."""

import copy
import functools
import gc
import pickle
import weakref

import pytest
import torch
from guard_checks import Scaled, Scaler
from jacobian_checks import assert_same, judged, randn
from torch import nn

from torch_jvpvjp.accumulation import api, cache, jacobian, plan_jacobian


def _cubed(v):
    return (v**3).sum()


def _copied(f):
    made = copy.copy(f)
    made.gain = 7.0
    return made


OTHERS = {
    "wrapped": (lambda: _cubed, lambda f: functools.wraps(f)(lambda v: 5 * f(v))),
    "gradient": (lambda: _cubed, torch.func.grad),
    "copied object": (Scaler, _copied),
    "copied module": (Scaled, _copied),
}


@pytest.mark.parametrize(("make", "other"), OTHERS.values(), ids=OTHERS)
def test_what_takes_over_the_attributes_of_a_function_does_not_take_over_its_plans(make, other, monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    f, x = make(), randn(3)
    for _ in range(2):
        assert_same(jacobian(f, x), judged(f, x))
    made = other(f)
    for _ in range(2):
        assert_same(jacobian(made, x), judged(made, x))
        assert_same(jacobian(f, x), judged(f, x))


def test_a_plan_is_copied_and_pickled_without_what_it_has_recorded():
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double(), randn(3)
    plan = plan_jacobian(net, x)
    expected = [plan(x) for _ in range(3)][-1]
    for made in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        for _ in range(2):
            assert_same(made(x), expected)


def test_a_plan_keeps_no_argument_alive():
    net, x, other = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), randn(3), randn(4)

    def function(v, w):
        return net(v) * w

    plan = plan_jacobian(function, (x, other), wrt=0)
    for _ in range(3):
        plan((x, other))
    alive = [weakref.ref(x), weakref.ref(other)]
    storages = [weakref.ref(tensor.untyped_storage()) for tensor in (x, other)]
    del x, other
    gc.collect()
    assert [one() for one in alive + storages] == [None] * 4


def test_a_function_and_its_plans_die_together(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), randn(3)
    weight = weakref.ref(net[0].weight)
    for _ in range(3):
        jacobian(net, x)
    net[0].weight = nn.Parameter(randn(4, 3))
    for _ in range(3):
        jacobian(net, x)
    gc.collect()
    assert weight() is None
    whole = weakref.ref(net)
    del net
    gc.collect()
    assert whole() is None


def test_what_is_kept_on_a_function_is_no_change_of_it(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()).double(), randn(3)
    plan = plan_jacobian(net, x)
    for _ in range(2):
        jacobian(net, x)
    # Under vmap nothing can be recorded anew, and a black box is another chain than the plan is for.
    assert_same(torch.func.vmap(plan)(x[None]), judged(net, x)[None])


def test_jacobian_calls_a_plan_of_the_same_function_itself(monkeypatch):
    def f(v):
        return v.sin() * v.sum()

    x = randn(3)
    plan = plan_jacobian(f, x)
    monkeypatch.setattr(api, "remembered", None)  # where it is looked for once more
    assert_same(jacobian(f, x, plan=plan), judged(f, x))
    with pytest.raises(TypeError, match="NoneType"):
        jacobian(lambda v: f(v), x, plan=plan)
