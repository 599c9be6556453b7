"""How often `jacobian` records a function that looks at data: as often as it pays, by a clock that the tests set."""

import pytest
import torch
from branching_functions import WEIGHT, N
from jacobian_checks import F64, assert_same, judged, quiet_judge, randn

from torch_jvpvjp.accumulation import branches as ways
from torch_jvpvjp.accumulation import jacobian, making, one_shot, plain, runtime, tracings

CALL, RECORDING = 1e-3, 20e-3  # seconds


class Clock:
    """Seconds as the tests have them, with counts of calls without a plan and of recordings."""

    def __init__(self):
        self.now, self.calls, self.recordings = 0.0, 0, 0

    def __call__(self):
        return self.now

    def spent(self):
        return self.calls * CALL + self.recordings * RECORDING


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (ways, making, one_shot, plain, runtime, tracings):
        monkeypatch.setattr(module, "perf_counter", clock)
    blocks, recorded = one_shot._blocks, tracings._traced_and_watched

    def called(*args, **options):
        clock.now, clock.calls = clock.now + CALL, clock.calls + 1
        return blocks(*args, **options)

    def recording(*args):
        clock.now, clock.recordings = clock.now + RECORDING, clock.recordings + 1
        return recorded(*args)

    monkeypatch.setattr(one_shot, "_blocks", called)
    monkeypatch.setattr(tracings, "_traced_and_watched", recording)
    return clock


def _steps(v, count):
    for _ in range(count):
        v = torch.tanh(WEIGHT @ v) + v
    return v


def _adaptive(v):
    return _steps(v, int(100 * v.norm()) % 60 + 1)


def _never_the_same(v):
    return v * int(1e6 * v.norm())


def _few(v):
    return _steps(v, int(3 * v.norm()) % 4 + 1)


@quiet_judge
@pytest.mark.parametrize("f", [_adaptive, _never_the_same], ids=lambda f: f.__name__)
def test_a_function_that_goes_another_way_each_time_is_given_up(f, clock):
    def function(v):
        return f(v)

    calls = 600
    for place in range(calls):
        x = randn(N) * (1 + place / calls)
        found = jacobian(function, x)
        if place % 20 == 0:
            assert_same(found, judged(f, x))
        assert clock.spent() < 2.5 * (place + 1) * CALL
    assert clock.recordings < 8


@quiet_judge
def test_a_function_that_goes_a_few_ways_is_recorded_on_each_of_them(clock):
    def function(v):
        return _few(v)

    points = [scale * torch.ones(N, dtype=F64) / N**0.5 for scale in (0.1, 0.4, 0.8, 1.1)]
    assert len({int(3 * x.norm()) % 4 for x in points}) == 4
    for place in range(300):
        for x in points:
            jacobian(function, x)
        assert clock.spent() < 2.5 * 4 * (place + 1) * CALL
    assert clock.recordings == 4
    before = clock.calls
    for x in points:
        assert_same(jacobian(function, x), judged(_few, x))
    assert clock.calls == before


def test_a_way_that_is_gone_rarely_is_not_recorded(clock):
    def function(v):
        return _few(v)

    often, rarely = (scale * torch.ones(N, dtype=F64) / N**0.5 for scale in (0.1, 1.1))
    for place in range(400):
        jacobian(function, often)
        if place % 20 == 0:
            assert_same(jacobian(function, rarely), judged(_few, rarely))
    assert clock.recordings == 1


def test_a_way_that_cannot_be_recorded_is_tried_ever_less(clock):
    def function(v):
        return _few(v) if v.sum() > 0 else v * float(v.detach().max())

    x = torch.ones(N, dtype=F64)
    for place in range(1000):
        jacobian(function, x)
        if place % 5 == 0:
            assert_same(jacobian(function, -x), -torch.eye(N, dtype=F64))
    assert clock.recordings < 6
