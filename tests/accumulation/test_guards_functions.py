"""A plan, and what `jacobian` keeps, see changes of code, defaults, cells and attributes of functions."""

import math
import sys

import pytest
import torch
from guard_checks import assert_change_is_seen

from torch_jvpvjp.accumulation import entries
from torch_jvpvjp.accumulation.entries import Attributes, Cells, Functions
from torch_jvpvjp.accumulation.places import GONE


def _as_well_as_it_can(helper):
    def function(v):
        try:
            return helper(v).sin()
        except TypeError:
            return v.sin()

    function.helper = helper
    return function


def _with_empty_cell():
    def function(v):
        try:
            return v.sin() * gain
        except NameError:
            return v.sin()

    def change(value):
        nonlocal gain
        gain = value

    gain = 2.0
    del gain
    function.change = change
    return function


def _with_late_attribute():
    def function(v):
        return v.sin() * function.__dict__.get("late", 2.0)

    return function


CHANGES = {
    "a default where there was none": (
        lambda: _as_well_as_it_can(lambda v, gain: v * gain), lambda f: setattr(f.helper, "__defaults__", (5.0,)),
    ),
    "a keyword default where there was none": (
        lambda: _as_well_as_it_can(lambda v, *, gain: v * gain),
        lambda f: setattr(f.helper, "__kwdefaults__", {"gain": 5.0}),
    ),
    "a default that is gone": (
        lambda: _as_well_as_it_can(lambda v, gain=2.0: v * gain), lambda f: setattr(f.helper, "__defaults__", None),
    ),
    "a default that compares equal": (
        lambda: lambda v, zero=0.0: v.sin() * math.copysign(1.0, zero), lambda f: setattr(f, "__defaults__", (-0.0,)),
    ),
    "code that differs by a constant": (
        lambda: _as_well_as_it_can(lambda v: v * 2.0),
        lambda f: setattr(f.helper, "__code__", (lambda v: v * 5.0).__code__),
    ),
    "what a cell did not hold": (_with_empty_cell, lambda f: f.change(5.0)),
    "an attribute that the function did not have": (_with_late_attribute, lambda f: setattr(f, "late", 5.0)),
}  # fmt: skip


@pytest.mark.parametrize(("make", "change"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("versions", ["as they are", "not to be had"])
def test_a_change_of_a_function_is_seen(make, change, versions, jacobian_of, monkeypatch):
    if versions != "as they are":
        monkeypatch.setattr(entries, "dict_versions", lambda dicts: None)  # as from Python 3.12 on
    f = make()
    assert_change_is_seen(jacobian_of(f), f, lambda: change(f))


def test_code_that_is_equal_does_the_same():
    def function(v, gain=2.0):
        return v * gain

    functions = Functions()
    functions.add(function)
    function.__code__ = function.__code__.replace(co_filename=sys.executable)
    assert functions.hold()
    function.__code__ = function.__code__.replace(co_consts=(None, 1.0))
    assert not functions.hold()


def test_defaults_are_not_asked_whether_they_are_equal():
    def function(v, shift=torch.zeros(2)):  # noqa: B008 (a comparison of these raises)
        return v + shift

    functions = Functions()
    functions.add(function)
    assert functions.hold()
    function.__defaults__ = (torch.zeros(2),)
    assert not functions.hold()


def test_cells_are_put_back():
    first, second = (lambda: held).__closure__ + (lambda: empty).__closure__
    held = 1.0
    if False:
        empty = 2.0
    cells = Cells()
    assert [cells.add(cell) for cell in (first, second)] == [1.0, GONE]
    assert cells.hold()
    second.cell_contents = 3.0
    assert not cells.hold()
    first.cell_contents = 4.0
    cells.restore()
    assert cells.hold()
    assert held == 1.0


def test_attributes_are_put_back_but_for_those_that_pass():
    attributes = {"gain": 2.0, "passing": 1}
    watched = Attributes()
    assert watched.add(attributes, frozenset({"passing", "another"})) == [2.0]
    attributes |= {"passing": 3, "another": 4}
    assert watched.hold()
    attributes["late"] = attributes.pop("gain")
    assert not watched.hold()
    watched.restore()
    assert watched.hold()
    assert attributes == {"gain": 2.0, "passing": 3, "another": 4}
