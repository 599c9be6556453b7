"""A plan, and what `jacobian` keeps, see every change of the Python that a function refers to."""

import collections
import functools
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from guard_checks import Below, Pair, Scaler, Slotted, assert_change_is_seen, by_object
from jacobian_checks import assert_same, randn

from torch_jvpvjp.accumulation import plan_jacobian

GAIN = 2.0
GAINS = [1.5, 2.0]


def _helper(v):
    return v * 3.0


def _other_helper(v):
    return v * 4.0


def _closed_over():
    gain = 2.0

    def function(v):
        return v.sin() * gain

    def change(value):
        nonlocal gain
        gain = value

    function.change = change
    return function


def _by_globals():
    return lambda v: _helper(v).sin() * GAIN * GAINS[0]


def _with_defaults():
    def function(v, gain=2.0, *, gains=(2.5, 3.0)):
        return v.sin() * gain * gains[0]

    return function


def _by_class():
    kind = type("Settings", (), {"gain": 2.0})

    def function(v):
        return v.sin() * kind.gain

    function.kind = kind
    return function


def _by_module():
    module = types.ModuleType("settings")
    module.gain = 2.0

    def function(v):
        return v.sin() * module.gain

    function.settings = module
    return function


def _by_module_within():
    module, inner = types.ModuleType("settings"), types.ModuleType("settings.inner")
    module.inner, inner.gain = inner, 2.0

    def function(v):
        return v.sin() * module.inner.gain

    function.settings = module
    return function


class Configured:
    """A callable that keeps a Python module as an attribute."""

    def __init__(self):
        self.settings = types.ModuleType("settings")
        self.settings.gain = 2.0

    def __call__(self, v):
        return v.sin() * self.settings.gain


def _by_import():
    module = sys.modules.setdefault("settings_of_a_test", types.ModuleType("settings_of_a_test"))
    module.gain = 2.0

    def function(v):
        import settings_of_a_test

        return v.sin() * settings_of_a_test.gain

    function.settings = module
    return function


class Table(dict):
    """A dict with an attribute."""

    gain = 1.0


class Row(list):
    """A list with an attribute."""

    gain = 1.0


def _by_container(kind):
    table = kind()
    table.gain = 2.0

    def function(v):
        return v.sin() * table.gain

    function.table = table
    return function


def _by_attribute():
    def function(v):
        return v.sin() * function.gain

    function.gain = 2.0
    return function


def _partial():
    return functools.partial(lambda table, v: v.sin() * table["gain"], {"gain": 2.0})


class Item:
    """An object whose members are made as they are asked for."""

    def __getitem__(self, name):
        return GAIN


class Attribute:
    def __getattr__(self, name):
        if name != "gain":
            raise AttributeError(name)
        return GAIN


class Scope:
    def __enter__(self):
        return GAIN

    def __exit__(self, *error):
        pass


class Descriptor:
    def __get__(self, owner, kind):
        return GAIN


class Described:
    gain = Descriptor()


class Kind(type):
    @property
    def gain(cls):
        return GAIN


class OfKind(metaclass=Kind):
    pass


class Made:
    def __new__(cls):
        made = super().__new__(cls)
        made.gain = GAIN
        return made


class Number(float):
    """A number with an attribute."""


def _by_one(one, look):
    return lambda v: v.sin() * look(one)


def _by_scope():
    scope = Scope()

    def function(v):
        with scope as gain:
            return v.sin() * gain

    return function


def _by_number():
    number = Number(1.0)
    number.gain = 2.0

    def function(v):
        return v.sin() * number.gain

    function.number = number
    return function


def _by_key():
    key = Configured()
    table = {key: 1.0}

    def function(v):
        return v.sin() * sum(one.settings.gain for one in table)

    function.key = key
    return function


def _by_weak_reference():
    owner = Configured()
    reference = weakref.ref(owner)

    def function(v):
        return v.sin() * reference().settings.gain

    function.owner = [owner]
    return function


def _by_string(look):
    module = types.ModuleType("settings")
    module.gain = 2.0

    def function(v):
        return v.sin() * look(module)

    function.settings = module
    return function


class Cached:
    def __init__(self):
        self.first = 2.0

    @functools.cached_property
    def gain(self):
        return self.first * 1.5

    def __call__(self, v):
        return v.sin() * self.gain


def _by_array(look):
    return by_object(np.array([2.0, 3.0, 4.0]), look)


def _scaled_array(patch, f):
    f.settings *= 2.5


def _reinterpreted_array(patch, f):
    f.settings[:] = f.settings[::-1].copy()


def _first_gain():
    GAINS[0] *= 3.0  # the tests compare with what it is, whatever that is


def _set_gain(patch, f):
    f.settings.gain = 5.0


def _set_global(**values):
    return lambda patch, f: [patch.setitem(globals(), name, value) for name, value in values.items()]


# name: (what makes the function, the change)
CHANGES = {
    "a closed-over number": (_closed_over, lambda patch, f: f.change(5.0)),
    "a closed-over number becomes a tensor": (_closed_over, lambda patch, f: f.change(torch.tensor(5.0))),
    "a global number": (_by_globals, _set_global(GAIN=7.0)),
    "a global list": (_by_globals, lambda patch, f: _first_gain()),
    "a global list replaced": (_by_globals, _set_global(GAINS=[4.0])),
    "a global function": (_by_globals, _set_global(_helper=_other_helper)),
    "a default": (_with_defaults, lambda patch, f: setattr(f, "__defaults__", (5.0,))),
    "a keyword default": (_with_defaults, lambda patch, f: f.__kwdefaults__.update(gains=(7.0,))),
    "keyword defaults": (_with_defaults, lambda patch, f: setattr(f, "__kwdefaults__", {"gains": (7.0,)})),
    "an attribute of a class": (_by_class, lambda patch, f: setattr(f.kind, "gain", 5.0)),
    "an attribute of a Python module": (_by_module, lambda patch, f: setattr(f.settings, "gain", 5.0)),
    "of a Python module in one": (_by_module_within, lambda patch, f: setattr(f.settings.inner, "gain", 5.0)),
    "of a Python module in an object": (Configured, lambda patch, f: setattr(f.settings, "gain", 5.0)),
    "of a Python module that it imports": (_by_import, lambda patch, f: setattr(f.settings, "gain", 5.0)),
    "an attribute of a dict": (lambda: _by_container(Table), lambda patch, f: setattr(f.table, "gain", 5.0)),
    "an attribute of a list": (lambda: _by_container(Row), lambda patch, f: setattr(f.table, "gain", 5.0)),
    "an attribute of the function": (_by_attribute, lambda patch, f: setattr(f, "gain", 5.0)),
    "what is bound": (_partial, lambda patch, f: f.args[0].update(gain=5.0)),
    "an attribute of an object": (Scaler, lambda patch, f: setattr(f, "gain", 5.0)),
    "an attribute behind a bound method": (lambda: Scaler().bound, lambda patch, f: setattr(f.__self__, "gain", 5.0)),
    "a method of a class": (Scaler, lambda patch, f: patch.setattr(Scaler, "bound", lambda self, v: v.cos() * 2.0)),
    "what an item is made of": (lambda: _by_one(Item(), lambda one: one["gain"]), _set_global(GAIN=7.0)),
    "what an attribute is made of": (lambda: _by_one(Attribute(), lambda one: one.gain), _set_global(GAIN=7.0)),
    "what a scope gives": (_by_scope, _set_global(GAIN=7.0)),
    "what a descriptor gives": (lambda: _by_one(Described(), lambda one: one.gain), _set_global(GAIN=7.0)),
    "what a metaclass gives": (lambda: lambda v: v.sin() * OfKind.gain, _set_global(GAIN=7.0)),
    "what makes an object": (lambda: lambda v: v.sin() * Made().gain, _set_global(GAIN=7.0)),
    "an attribute of a number": (_by_number, lambda patch, f: setattr(f.number, "gain", 5.0)),
    "an attribute of a key": (_by_key, lambda patch, f: setattr(f.key.settings, "gain", 5.0)),
    "what is referred to weakly": (_by_weak_reference, lambda patch, f: setattr(f.owner[0].settings, "gain", 5.0)),
    "a slot": (lambda: by_object(Slotted()), _set_gain),
    "a slot of a base": (lambda: by_object(Below()), _set_gain),
    "what a tuple with names holds": (
        lambda: by_object(Pair(1.0, {"gain": 2.0}), lambda pair: pair.table["gain"] * pair.gain),
        lambda patch, f: f.settings.table.update(gain=5.0),
    ),
    "a cached property": (Cached, lambda patch, f: vars(f).update(first=3.0) or vars(f).pop("gain")),
    "a member of a deque": (
        lambda: by_object(collections.deque([2.0, 3.0]), lambda settings: settings[0]),
        lambda patch, f: f.settings.rotate(1),
    ),
    "an entry behind a proxy": (
        lambda: by_object({"gain": 2.0}, lambda settings: types.MappingProxyType(settings)["gain"]),
        lambda patch, f: f.settings.update(gain=5.0),
    ),
    "entries of an array": (lambda: _by_array(lambda array: torch.from_numpy(array)), _scaled_array),
    "entries that an array is read by": (lambda: _by_array(lambda array: torch.tensor(array)), _scaled_array),
    "one entry of an array": (lambda: _by_array(lambda array: float(array[1])), _scaled_array),
    "the order of an array": (lambda: _by_array(lambda array: torch.tensor(array)), _reinterpreted_array),
    "an entry of an array that an object holds": (
        lambda: by_object(Slotted(np.array([2.0, 3.0, 4.0])), lambda settings: float(settings.gain[0])),
        lambda patch, f: f.settings.gain.fill(7.0),
    ),
    "what getattr finds": (lambda: _by_string(lambda m: getattr(m, "ga" + "in")), _set_gain),
    "what vars finds": (lambda: _by_string(lambda m: vars(m)["gain"]), _set_gain),
}  # fmt: skip


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_function_is_seen(make, change, jacobian_of, monkeypatch):
    f = make()
    assert_change_is_seen(jacobian_of(f), f, lambda: change(monkeypatch, f))


def test_an_argument_that_is_no_tensor_is_watched():
    x, settings = randn(3), types.SimpleNamespace(gain=2.0)

    def function(v, given):
        return v.sin() * given.gain

    plan = plan_jacobian(function, (x, settings), wrt=0)
    for gain in (2.0, 2.0, 5.0):
        settings.gain = gain
        assert_same(plan((x, settings)), torch.diag(gain * x.cos()))
