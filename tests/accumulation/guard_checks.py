"""What the tests of guards share: functions that can change, and the check that a change is seen."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jacobian_checks import F64, assert_same, judged, randn
from torch import Tensor, nn


class Scaled(nn.Module):
    slope = 2.0

    def __init__(self):
        super().__init__()
        self.gain, self.table, self.acts = 2.0, {"power": 2}, [nn.Tanh()]
        self.linear = nn.Linear(3, 3, dtype=F64)
        self.register_buffer("shift", torch.ones(3, dtype=F64))

    def forward(self, v):
        y = self.acts[0](self.linear(v) + self.shift) * self.gain * self.slope
        return y ** self.table["power"] if self.training else y


class Scaler:
    def __init__(self):
        self.gain = 2.0

    def __call__(self, v):
        return self.bound(v) * self.doubled

    def bound(self, v):
        return v.sin() * self.gain

    @property
    def doubled(self):
        return 2 * self.gain


@dataclasses.dataclass(slots=True)
class Slotted:
    gain: float = 2.0


class Below(Slotted):
    """With a slot of its base, and a `__dict__`."""


class Pair(NamedTuple):
    gain: float
    table: dict


def by_object(settings, look=lambda settings: settings.gain):
    def function(v):
        return v.sin() * look(settings)

    function.settings = settings
    return function


def assert_change_is_seen(found: Callable[[Tensor], Any], f: Callable[..., Any], change: Callable[[], Any]) -> None:
    """Check the Jacobian of f, of three entries, before and after a change that makes a difference to it."""
    x = randn(3)
    before = judged(f, x)
    for _ in range(3):
        assert_same(found(x), before)
    change()
    expected = judged(f, x)
    assert not torch.allclose(expected, before)
    for _ in range(3):
        assert_same(found(x), expected)
