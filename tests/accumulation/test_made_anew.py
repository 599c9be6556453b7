"""A plan whose function has become another chain is made anew, as it was made; one that never was for it is refused."""

import copy
import pickle

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, randn
from torch import nn

from torch_jvpvjp.accumulation import Chain, jacobian, plan_jacobian

WEIGHT = torch.linspace(-1, 1, 25, dtype=F64).reshape(5, 5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.gain, self.depth = nn.Linear(5, 4), nn.Linear(4, 4), 2.0, 1

    def forward(self, x):
        x = self.inner(x) * self.gain
        for _ in range(self.depth):
            x = self.outer(x).tanh()
        return x


CHANGES = {
    "a factor of one": {"gain": 1.0},
    "a factor of none": {"gain": 0.0},
    "more layers": {"depth": 4},
    "none": {"depth": 0},
}
OPTIONS = [{}, {"objective": "fma", "strategy": "reverse"}, {"memory_limit": 10_000}, {"compile": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_plan_is_that_of_the_function_as_it_is(change, options):
    net, x = Net().to(F64), randn(5)
    plan = plan_jacobian(net, x, **options)
    before = {name: getattr(net, name) for name in change}
    for values in (before, change, before, change):
        for name, value in values.items():
            setattr(net, name, value)
        for _ in range(2):
            assert_same(plan(x), judged(net, x))
        assert_same(jacobian(net, x, **options), judged(net, x))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("sides", [("left",), ("right",), ("left", "right")], ids=" ".join)
def test_a_plan_with_seeds_sees_what_its_stages_refer_to(change, sides):
    net, x = Net().to(F64), randn(5)
    seeds = {side: seed for side, seed in (("left", randn(2, 4)), ("right", randn(5, 3))) if side in sides}
    plan = Chain([net]).plan(x, **seeds)
    for name, value in change.items():
        setattr(net, name, value)
    for _ in range(2):
        expected = judged(net, x)
        expected = seeds["left"] @ expected if "left" in seeds else expected
        assert_same(plan(x), expected @ seeds["right"] if "right" in seeds else expected)


def test_options_and_limits_stay():
    net, x = Net().to(F64), randn(5)
    plan = plan_jacobian(net, x, objective="fma", strategy="reverse", memory_limit=10_000)
    net.depth = 3
    plan(x)
    (tracing,) = plan.runtime._tracings.values()
    made = tracing.fitted[1]
    assert (made.objective, made.strategy, len(made.factors)) == ("fma", "reverse", 8)
    assert made.peak_bytes <= 10_000
    assert len(plan.verify(x).rows) == len(made.verify(x).rows)


def test_copies_are_made_anew_too():
    net, x = Net().to(F64), randn(5)
    plan = pickle.loads(pickle.dumps(plan_jacobian(net, x, objective="fma")))
    (copied,) = plan.runtime.stages
    copied.depth = 2
    assert_same(plan(x), judged(copied, x))
    twin = copy.deepcopy(plan)
    twin.runtime.stages[0].depth = 3
    assert_same(twin(x), judged(twin.runtime.stages[0], x))


def test_a_plan_for_other_shapes_or_for_another_function_is_refused():
    weights = [randn(4, 5)]
    plan = plan_jacobian(lambda v: weights[0] @ v.tanh(), randn(5))
    weights[0] = randn(4, 6)
    with pytest.raises(ValueError, match="make .* new one by plan_jacobian|make the plan for this function"):
        plan(randn(6))
    sized = Chain.from_sizes([5, 4, 4]).plan()
    with pytest.raises(ValueError, match="plan must be for a chain of 4 stages, got one for 2"):
        jacobian(Net().to(F64), randn(5), plan=sized)
