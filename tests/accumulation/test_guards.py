"""A plan, and what `jacobian` keeps, follow the function as it is at each call: nothing recorded outlives a change."""

import array
import functools
import math

import pytest
import torch
from guard_checks import Scaled
from jacobian_checks import F64, assert_same, judged, randn
from torch import nn

from torch_jvpvjp.accumulation import cache, jacobian, plan_jacobian

GAIN = 2.0


OTHER_CHAINS = {
    "a hook": (Scaled, lambda f: f.linear.register_forward_hook(lambda module, args, out: out**2)),
    "a list": (Scaled, lambda f: f.acts.__setitem__(0, nn.Sequential(nn.Tanh(), nn.Softmax(-1)))),
    "the mode": (lambda: Scaled().eval(), lambda f: f.train()),
}


@pytest.mark.parametrize(("make", "change"), OTHER_CHAINS.values(), ids=OTHER_CHAINS)
def test_a_function_that_became_another_chain_is_planned_anew(make, change, monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    f, x = make(), randn(3)
    plan = plan_jacobian(f, x)
    for _ in range(2):
        assert_same(jacobian(f, x), judged(f, x))
    change(f)
    for _ in range(3):
        assert_same(jacobian(f, x), judged(f, x))
    try:  # a plan is for one chain: it fits the new one, or says that it does not
        found = plan(x)
    except ValueError as error:
        assert "make" in str(error)
    else:
        assert_same(found, judged(f, x))


def test_the_default_dtype_is_seen(jacobian_of):
    def function(v):
        return v * torch.full((3,), 1 / 3).double()

    x = randn(3)
    found = jacobian_of(function)
    single = [found(x) for _ in range(2)]
    torch.set_default_dtype(F64)
    try:
        for _ in range(2):
            assert_same(found(x), torch.eye(3, dtype=F64) / 3, 1e-15)
    finally:
        torch.set_default_dtype(torch.float32)
    for one in [*single, found(x)]:
        assert (one.diagonal() - 1 / 3).abs().min() > 1e-10


def test_what_cannot_be_watched_is_not_kept(jacobian_of):
    gains = array.array("d", [1.0, 2.0, 3.0])

    def function(v):
        return v.sin() * gains[0]

    x = randn(3)
    found = jacobian_of(function)
    for gain in (1.0, 3.0, 1.5):
        gains[0] = gain
        for _ in range(2):
            assert_same(found(x), judged(function, x))


def test_a_name_looked_up_by_hand_is_not_kept(jacobian_of, monkeypatch):
    def function(v):
        return v.sin() * globals()["GAIN"]

    x = randn(3)
    found = jacobian_of(function)
    for gain in (2.0, 5.0):
        monkeypatch.setitem(globals(), "GAIN", gain)
        for _ in range(2):
            assert_same(found(x), judged(function, x))


def test_a_function_that_seeds_draws_the_same_in_every_call(jacobian_of):
    def function(v):
        torch.manual_seed(0)
        return v * torch.rand(3, dtype=F64)

    x = randn(3)
    found = jacobian_of(function)
    for _ in range(3):
        assert_same(found(x), judged(function, x))


def test_autocast_is_seen(monkeypatch):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    x = torch.randn(3)
    found = functools.partial(jacobian, net)
    plain = [found(x) for _ in range(2)]
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            half = found(x)
            expected = torch.func.jacrev(net)(x)
        assert half.dtype == torch.bfloat16 and expected.dtype == torch.float32
        torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.02)
        torch.testing.assert_close(found(x), plain[0])


def test_numbers_that_compare_equal_are_told_apart():
    x = randn(3)

    def function(v, number):
        return v * math.copysign(2.0, number)

    plan = plan_jacobian(function, (x, math.nan), wrt=0)
    assert_same(plan((x, float("nan"))), 2 * torch.eye(3, dtype=F64))
    for number in (0.0, 0.0, -0.0):
        found = jacobian(function, (x, number), wrt=0, objective="fma")
        assert_same(found, math.copysign(2.0, number) * torch.eye(3, dtype=F64))
