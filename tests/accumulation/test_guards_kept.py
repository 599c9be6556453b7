"""What a function keeps from its first call, and what it refers to that no guard can watch."""

import array
import functools
from time import perf_counter as pc

import numpy as np
import pytest
import torch
from guard_checks import Below, Pair, Slotted, by_object
from jacobian_checks import F64, assert_same, randn
from numpy.random import rand as draw

from torch_jvpvjp.accumulation import plan_jacobian


def _cached_in_a_cell():
    table = None

    def function(v):
        nonlocal table
        if table is None:
            table = torch.arange(3.0, dtype=F64)
        return v.sin() * table

    return function


def _cached_in_a_global():
    def function(v):
        global TABLE
        if TABLE is None:
            TABLE = torch.arange(3.0, dtype=F64)
        return v.sin() * TABLE

    globals()["TABLE"] = None
    return function


def _cached_by(owner):
    def function(v):
        if owner.gain is None:
            owner.gain = torch.arange(3.0, dtype=F64)
        return v.sin() * owner.gain

    return function


def _cached_in_a_dict(look_at_data=False):
    tables = {}

    def function(v):
        if 3 not in tables:
            tables[3] = torch.arange(3.0, dtype=F64)
        if look_at_data and float(v.detach().sum()) > 1e9:
            return v
        return v.sin() * tables[3]

    return function


def _cached_by_functools():
    @functools.lru_cache
    def table(n):
        return torch.arange(n, dtype=F64)

    return lambda v: v.sin() * table(3)


TABLE = None
CACHES = {
    "a cell": _cached_in_a_cell,
    "a global": _cached_in_a_global,
    "a slot": lambda: _cached_by(Slotted(None)),
    "a class": lambda: _cached_by(type("Owner", (), {"gain": None})),
    "a dict": _cached_in_a_dict,
    "a dict, of a function that looks at data": lambda: _cached_in_a_dict(look_at_data=True),
    "functools.lru_cache": _cached_by_functools,
}


@pytest.mark.parametrize("make", CACHES.values(), ids=CACHES)
def test_what_a_first_call_keeps_is_no_tensor_without_data(make):
    f, x = make(), randn(3)
    plan = plan_jacobian(f, x)
    for _ in range(2):
        assert_same(plan(x), torch.diag(torch.arange(3.0, dtype=F64) * x.cos()))
    assert_same(f(x), torch.arange(3.0, dtype=F64) * x.sin())


@pytest.mark.parametrize("settings", [Slotted(), Pair(2.0, {}), Below(), np.float32(2.0)], ids=repr)
def test_settings_without_a_dict_are_watched(settings):
    function = by_object(settings, lambda one: float(getattr(one, "gain", 2.0)))
    assert not plan_jacobian(function, randn(3)).runtime.refusals()


def test_objects_that_hide_what_they_keep_are_not_watched():
    class Window(array.array):
        pass

    window, clock = Window("d", [1.0, 2.0]), iter(range(1, 1000))
    for function in (lambda v: v * window[0], lambda v: v * next(clock), lambda v: v * draw(), lambda v: v * pc()):
        plan = plan_jacobian(function, randn(3))
        assert "cannot be watched" in next(iter(plan.runtime.refusals().values()))


def test_arrays_too_large_to_be_compared_in_each_call_are_not_watched():
    table = np.ones(3 << 20)
    plan = plan_jacobian(lambda v: v * table[0], randn(3))
    assert "1,048,576 bytes" in next(iter(plan.runtime.refusals().values()))
