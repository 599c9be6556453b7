"""Entries of dicts that a plan watches: found to be the same by the version of the dict, or else one by one."""

import sys

from torch_jvpvjp.accumulation._torch import dict_versions
from torch_jvpvjp.accumulation.entries import DictEntries


def test_a_dict_is_what_it_was_once_it_holds_what_it_held():
    settings = {"gain": 2.0, "shift": 1.0}
    entries = DictEntries()
    entries.add(settings)
    gain = settings["gain"]
    assert entries.hold()
    settings["gain"] = 3.0
    assert not entries.hold()
    settings["gain"] = gain
    assert entries.hold()
    settings["shift"] = settings.pop("shift")  # the same entries, of which one was written anew
    assert entries.hold()
    settings["more"] = 0.0
    assert not entries.hold()
    del settings["more"], settings["gain"]
    settings["gain"] = gain  # in another order
    assert not entries.hold()
    entries.restore()
    assert entries.hold()
    assert list(settings) == ["gain", "shift"]


def test_versions_of_dicts_are_read_only_where_python_keeps_them():
    settings = {"gain": 2.0}
    before = dict_versions([settings])
    if sys.version_info >= (3, 12):
        assert before is None
        return
    assert before == dict_versions([settings])
    settings["gain"] = 3.0
    assert before != dict_versions([settings])
