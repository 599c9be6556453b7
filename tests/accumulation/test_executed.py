"""Of a function that could reach what changes by itself, the code that runs is watched, and so are its changes."""

import copy
import cProfile
import dataclasses
import functools
import gc
import os
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor

import model_library as library
import pytest
import torch
import torch.nn.functional as F
from guard_checks import assert_change_is_seen
from jacobian_checks import F64, assert_same, judged, randn
from model_library import Attention, Config, Model
from torch import nn

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.executed import Executed

GAIN = 2.0


def _model():
    torch.manual_seed(0)
    model = Model(Config()).eval()
    return lambda v: model(torch.outer(v, torch.linspace(-1, 1, 4, dtype=F64))), model


def _doubled(module, args, output):
    return 2 * output


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Gated(Attention):
    def forward(self, x):
        return super().forward(x).sigmoid()


class Halved(library.Base):
    def __call__(self, x):
        return super().__call__(x).sin()


# what changes, of a model in a library of models
CHANGES = {
    "an entry of the configuration": lambda patch, model: setattr(model.config, "attention", "linear"),
    "an entry that is read by getattr": lambda patch, model: setattr(model.config, "gated", True),
    "an entry of the registry": lambda patch, model: patch.setitem(
        library.ATTENTIONS, "scaled", library.linear_attention
    ),
    "a function of the registry": lambda patch, model: patch.setattr(
        library.scaled_attention, "__code__", library.linear_attention.__code__
    ),
    "an attribute of a class": lambda patch, model: patch.setattr(Attention, "scale", 3.0),
    "a flag in a dict of its module": lambda patch, model: patch.setitem(library.FLAGS, "bias", False),
    "a variable of the environment": lambda patch, model: patch.setenv("MODEL_LIBRARY_DOUBLE", "1"),
    "a method of the class": lambda patch, model: patch.setattr(Model, "activated", lambda self, x: x.cos()),
    "a method of the object": lambda patch, model: setattr(model, "activated", torch.cos),
    "a method of its base": lambda patch, model: patch.setattr(library.Base, "activated", lambda self, x: x.cos()),
    "a module": lambda patch, model: setattr(model, "layers", model.layers[1:]),
    "a class of a module": lambda patch, model: setattr(model.layers[0], "__class__", Gated),
    "training": lambda patch, model: model.train(),
    "a hook": lambda patch, model: model.layers[1].register_forward_hook(_doubled),
    "a parametrisation": lambda patch, model: nn.utils.parametrize.register_parametrization(
        model.layers[1].q, "weight", Doubled()
    ),
    "a parameter": lambda patch, model: setattr(model.layers[0].k, "weight", nn.Parameter(torch.eye(4, dtype=F64))),
    "a context variable": lambda patch, model: library.CAPTURING.set(3.0),
    "a builtin that the module shadows": lambda patch, model: patch.setattr(
        library, "getattr", lambda *args: True, raising=False
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_a_model_is_seen(change, jacobian_of, monkeypatch):
    f, model = _model()
    found = jacobian_of(f)
    token = library.CAPTURING.set(None)
    try:
        assert_change_is_seen(found, f, lambda: change(monkeypatch, model))
    finally:
        library.CAPTURING.reset(token)


def test_what_a_class_is_derived_from_is_seen(jacobian_of):
    f, _ = _model()
    before = Attention.__bases__
    try:
        assert_change_is_seen(jacobian_of(f), f, lambda: setattr(Attention, "__bases__", (Halved,)))
    finally:
        Attention.__bases__ = before


def test_a_global_hook_is_seen(jacobian_of):
    f, _ = _model()
    handles = []
    try:
        assert_change_is_seen(
            jacobian_of(f), f, lambda: handles.append(nn.modules.module.register_module_forward_hook(_doubled))
        )
    finally:
        handles[0].remove()


def test_a_model_of_a_library_is_recorded():
    f, model = _model()
    plan, x = plan_jacobian(f, randn(3)), randn(3)
    assert not plan.runtime.refusals()
    assert len(plan.factors) > 1
    guards = next(iter(plan.runtime._tracings.values())).guards
    assert_same(plan(x), judged(f, x))
    for change in (
        lambda: setattr(model, "born", 3.0),
        lambda: os.environ.update(MODEL_LIBRARY_OTHER="1"),
        lambda: setattr(Attention, "other", 1),
    ):
        change()  # what nothing reads may be looked at, too, and is recorded anew
        assert_same(plan(x), judged(f, x))
    del Attention.other, os.environ["MODEL_LIBRARY_OTHER"]
    assert guards is not None


def test_dropout_that_is_turned_on_is_seen():
    f, model = _model()
    x = randn(3)
    plan = plan_jacobian(f, x)
    before = plan(x)
    model.layers[0].dropout.p = 1.0
    model.layers[0].dropout.train()
    assert_same(plan(x), judged(f, x))
    assert not torch.allclose(plan(x), before)


def test_settings_of_pytorch_are_seen():
    def f(v):
        library.is_available("anything")
        return v * torch.tensor(1 / 3) * torch.ones(()).new_tensor(1 / 3).to(torch.get_default_dtype())

    x, plan = randn(3), plan_jacobian(f, randn(3))
    assert_same(plan(x), judged(f, x))
    torch.set_default_dtype(F64)
    try:
        assert torch.equal(plan(x), judged(f, x))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(plan(x), judged(f, x))

    model = nn.Linear(3, 3)

    def g(v):
        library.is_available("anything")
        return model(v).float()

    x, plan = torch.randn(3), plan_jacobian(g, torch.randn(3))
    outside = plan(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = plan(x)
        assert torch.equal(inside, judged(g, x))
    assert not torch.equal(inside, outside)
    assert torch.equal(plan(x), outside)


# ---- what is called in ways that the code does not show -------------------------------------------------------------


@dataclasses.dataclass
class Made:
    gain: float

    def __post_init__(self):
        self.gain *= GAIN


@functools.wraps(F.gelu)  # says that it belongs to PyTorch
def _wrapped(v):
    return v.sin() * GAIN


class Copied:
    gain = 1.0

    def __deepcopy__(self, memo):
        return types.SimpleNamespace(gain=GAIN)

    def __repr__(self):
        return repr(GAIN)

    def __class_getitem__(cls, name):
        return GAIN


class Lazy(types.ModuleType):
    def __getattr__(self, name):
        if name != "gain":
            raise AttributeError(name)
        return GAIN


@functools.lru_cache
def _cached(name):
    return [GAIN]


def _cleared():
    _cached.cache_clear()
    _cached("gain")


COPIED, LAZY, SETTINGS, string = Copied(), Lazy("lazy"), types.ModuleType("settings"), types.ModuleType("string")
string.gain = 2.0  # it goes by the name of a module of Python's


def _by_missing_attribute(v):
    try:
        gain = SETTINGS.gain
    except AttributeError:
        gain = 1.0
    return v.sin() * gain


CALLS = {
    "what follows making": lambda v: v.sin() * Made(1.0).gain,
    "what says that it is PyTorch's": lambda v: _wrapped(v),
    "what copying calls": lambda v: v.sin() * copy.deepcopy(COPIED).gain,
    "what a text is made of": lambda v: v.sin() * float(repr(COPIED)),
    "what an index of a class gives": lambda v: v.sin() * Copied["gain"],
    "what a module makes": lambda v: v.sin() * LAZY.gain,
}


@pytest.mark.parametrize("f", CALLS.values(), ids=CALLS)
def test_what_code_does_not_name_is_watched(f, jacobian_of, monkeypatch):
    assert not plan_jacobian(f, randn(3)).runtime.refusals()
    assert_change_is_seen(jacobian_of(f), f, lambda: monkeypatch.setitem(globals(), "GAIN", 7.0))


OTHERS = {
    "a builtin that is shadowed": (
        lambda v: v.sin() * max(1.0, 2.0),
        lambda patch: patch.setitem(globals(), "max", lambda *args: 9.0),
    ),
    "an attribute that a module lacked": (
        _by_missing_attribute, lambda patch: patch.setattr(SETTINGS, "gain", 5.0, raising=False)
    ),
    "an attribute that is asked for": (
        lambda v: v.sin() * (3.0 if hasattr(SETTINGS, "flag") else 1.0),
        lambda patch: patch.setattr(SETTINGS, "flag", 5.0, raising=False),
    ),
    "a module that goes by the name of Python's": (
        lambda v: v.sin() * string.gain, lambda patch: patch.setattr(string, "gain", 5.0)
    ),
    "a result that is kept": (
        lambda v: v.sin() * _cached("gain")[0], lambda patch: _cached("gain").__setitem__(0, 5.0)
    ),
    "a cache that is cleared": (
        lambda v: v.sin() * _cached("gain")[0],
        lambda patch: (patch.setitem(globals(), "GAIN", 7.0), _cleared()),
    ),
    "a frame": (
        lambda v: v.sin() * sys._getframe(0).f_globals["GAIN"], lambda patch: patch.setitem(globals(), "GAIN", 7.0)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("f", "change"), OTHERS.values(), ids=OTHERS)
def test_what_was_not_there_is_seen(f, change, jacobian_of, monkeypatch):
    _cleared()
    assert_change_is_seen(jacobian_of(f), f, lambda: change(monkeypatch))
    _cleared()


def test_what_another_thread_runs_is_not_watched():
    def gain():
        return GAIN

    def by_thread(v):
        found = []
        thread = threading.Thread(target=lambda: found.append(gain()))
        thread.start()
        thread.join()
        return v.sin() * found[0]

    with ThreadPoolExecutor(1) as pool:
        for f in (by_thread, lambda v: v.sin() * pool.submit(gain).result()):
            plan = plan_jacobian(f, randn(3))
            assert "another thread or process" in next(iter(plan.runtime.refusals().values()))


def test_variables_of_the_environment(jacobian_of, monkeypatch):
    def f(v):
        return v.sin() * float(os.environ["TEST_GAIN"]) if os.getenv("TEST_FLAG", "0") == "0" else v.cos()

    monkeypatch.setenv("TEST_GAIN", "2")
    assert not plan_jacobian(f, randn(3)).runtime.refusals()
    found = jacobian_of(f)
    assert_change_is_seen(found, f, lambda: monkeypatch.setenv("TEST_GAIN", "3"))
    assert_change_is_seen(found, f, lambda: monkeypatch.setenv("TEST_FLAG", "1"))


def test_what_else_there_is_of_the_system_is_not_watched():
    for f in (lambda v: v * os.getpid(), lambda v: v * float(os.path.exists(os.environ["HOME"]))):
        assert "what changes by itself: " in next(iter(plan_jacobian(f, randn(3)).runtime.refusals().values()))


def test_a_profiler_goes_on():
    calls = []

    def profiler(frame, event, arg):
        calls.append(event)

    sys.setprofile(profiler)
    try:
        plan_jacobian(lambda v: _wrapped(v), randn(3))
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    with cProfile.Profile() as profile:
        plan_jacobian(lambda v: _wrapped(v), randn(3))
        _wrapped(randn(3))
    assert any("_wrapped" in str(row.code) for row in profile.getstats())


def test_what_collects_garbage_is_no_part_of_a_function():
    def collecting(phase, info):
        calls.append(_dated(phase))

    def _dated(phase):
        return phase, time.time()

    class Ending:
        def __del__(self):
            calls.append(_dated("end"))

    calls, executed, endings = [], Executed(), [Ending()]
    gc.callbacks.append(collecting)
    try:
        executed.watching(lambda v: (endings.clear(), gc.collect(), v.sin())[-1])(randn(3))
    finally:
        gc.callbacks.remove(collecting)
    assert {phase for phase, _ in calls} == {"start", "stop", "end"}
    assert {code.co_name for code in executed.foreign} == {"<lambda>"}


def test_code_of_libraries_and_imports_is_told_from_a_users():
    executed = Executed()

    def f(v):
        import this_is_no_module  # noqa: F401 (it is raised before)

    with pytest.raises(ModuleNotFoundError):
        executed.watching(f)(1)
    executed.watching(lambda v: copy.copy(v))(COPIED)
    assert {code.co_name for code in executed.foreign} == {"f", "<lambda>"}
    assert copy.copy.__code__ in executed
