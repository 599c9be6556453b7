"""What a function keeps from its first call, and what it refers to that no guard can watch."""

import array
import functools
import logging
import sys
import types
import warnings
from abc import ABC, abstractmethod
from contextvars import ContextVar
from functools import lru_cache
from time import perf_counter as pc

import numpy as np
import pytest
import torch
from guard_checks import Below, Pair, Slotted, by_object
from jacobian_checks import F64, assert_same, randn
from numpy.random import rand as draw
from torch import nn

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


def _cached_by_functools(cached=functools.lru_cache):
    @cached
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
    "functools.cache": lambda: _cached_by_functools(functools.cache),
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


class _Abstract(nn.Module, ABC):
    factor = 2.0

    @abstractmethod
    def inner(self, x): ...

    def forward(self, x):
        return self.factor * self.inner(x)


class _Concrete(_Abstract):
    def inner(self, x):
        return x.sin()


_LOG, _DEPTH = logging.getLogger(__name__), ContextVar("depth", default=2.0)


@lru_cache(maxsize=1)
def _cached(n):
    return n * FACTORS[0]


FACTORS = [3.0]


def _logs(x):
    _LOG.debug("called")
    if x.dim() > 5:
        warnings.warn("many axes", stacklevel=2)
    return _cached(2) * x.sin()


def test_abstract_classes_logs_caches_and_context_are_recorded():
    x = torch.rand(3, dtype=torch.float64)
    module = _Concrete()
    plan = plan_jacobian(module, x)
    assert not plan.runtime.refusals()
    torch.testing.assert_close(plan(x).diagonal(), 2 * x.cos())
    module.factor = 5.0
    torch.testing.assert_close(plan(x).diagonal(), 5 * x.cos())

    plan = plan_jacobian(_logs, x)
    assert not plan.runtime.refusals()
    torch.testing.assert_close(plan(x).diagonal(), 6 * x.cos())
    FACTORS[0] = 4.0
    torch.testing.assert_close(plan(x).diagonal(), 6 * x.cos())  # as f itself, whose cache has the old one
    _cached(7)  # the one entry that there is place for
    torch.testing.assert_close(plan(x).diagonal(), 8 * x.cos())
    _cached.cache_clear()
    FACTORS[0] = 3.0
    torch.testing.assert_close(plan(x).diagonal(), 6 * x.cos())

    plan = plan_jacobian(lambda x: x.sin() * _DEPTH.get(), x)
    assert not plan.runtime.refusals()
    token = _DEPTH.set(7.0)
    torch.testing.assert_close(plan(x).diagonal(), 7 * x.cos())
    _DEPTH.reset(token)
    torch.testing.assert_close(plan(x).diagonal(), 2 * x.cos())


def test_what_a_function_imports_as_it_runs_is_watched(monkeypatch):
    module, inner = types.ModuleType("somebodys"), types.ModuleType("somebodys.inner")
    module.inner, inner.factor = inner, 2.0
    monkeypatch.setitem(sys.modules, "somebodys", module)
    monkeypatch.setitem(sys.modules, "somebodys.inner", inner)

    def by_name(x):
        from somebodys.inner import factor

        return factor * x.sin()

    def by_module(x):
        import somebodys.inner

        return somebodys.inner.factor * x.sin()

    x = torch.rand(3, dtype=torch.float64)
    plans = [plan_jacobian(f, x) for f in (by_name, by_module)]
    for factor in (2.0, 3.0):
        inner.factor = factor
        for plan in plans:
            assert not plan.runtime.refusals()
            torch.testing.assert_close(plan(x).diagonal(), factor * x.cos())
    other = types.ModuleType("somebodys.inner")
    other.factor = 4.0
    monkeypatch.setitem(sys.modules, "somebodys.inner", other)
    torch.testing.assert_close(plans[0](x).diagonal(), 4 * x.cos())


@pytest.mark.parametrize("named", ["from numpy.random import rand", "import numpy.random as r"])
def test_random_numbers_that_are_imported_as_it_runs_are_seen(named):
    drawn = "rand()" if "rand" == named[-4:] else "r.rand()"
    scope = {}
    exec(f"def f(x):\n    {named}\n    return x * float({drawn})", scope)  # noqa: S102 (our own text)
    plan = plan_jacobian(scope["f"], torch.rand(3))
    assert "what changes by itself: random" in next(iter(plan.runtime.refusals().values()))
