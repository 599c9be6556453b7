"""Chains that repeat themselves are multiplied by levels where that takes fewer launches."""

import math

import pytest

from torch_jvpvjp.accumulation.bracket import Action, Mode
from torch_jvpvjp.accumulation.chain import Chain
from torch_jvpvjp.accumulation.factor import Factor
from torch_jvpvjp.accumulation.levels import prices_by_level
from torch_jvpvjp.accumulation.planners import repeats as module
from torch_jvpvjp.accumulation.planners.dynamic_programming import optimal_brackets
from torch_jvpvjp.accumulation.planners.repeats import Run, repeats
from torch_jvpvjp.accumulation.planning import plan_factors
from torch_jvpvjp.accumulation.problem import Problem
from torch_jvpvjp.accumulation.structure import Dense, Diagonal
from torch_jvpvjp.accumulation.timing import Time
from torch_jvpvjp.accumulation.timing.curve import Curve
from torch_jvpvjp.accumulation.timing.model import DeviceModel

RATE = Curve.constant(1e9)
TIME = Time(DeviceModel("none", "float32", 4, "2", 1, "stated", 1e-6, 1e-6, *[RATE] * 5, Curve.constant(1e9), 1e9))


def weight(n, m=None):
    """Return a Linear layer."""
    return Factor(n, m or n, n * (m or n), n * (m or n), m or n, Dense(m or n, n))


def slope(n):
    """Return an activation."""
    return Factor(n, n, n, n, n, Diagonal(n))


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ([weight(3)] * 9, [Run(1, 1, 9)]),
        ([weight(3), slope(3)] * 8, [Run(1, 2, 8)]),
        ([weight(5, 3), *[weight(3), slope(3)] * 9, weight(3, 2)], [Run(2, 2, 9)]),
        ([*[weight(3)] * 8, weight(3, 4), *[slope(4), weight(4)] * 10], [Run(1, 1, 8), Run(10, 2, 10)]),
        ([weight(3)] * 7, []),
        ([weight(3, 4), weight(4, 3)] * 8, [Run(1, 2, 8)]),
        ([weight(n, n + 1) for n in range(1, 20)], []),
    ],
    ids=["one", "pairs", "inside", "two runs", "too short", "rectangles", "none"],
)
def test_runs_are_found(factors, expected):
    assert repeats(factors) == expected


def test_labels_make_no_difference():
    factors = [Factor(3, 3, 9, 9, 3, Dense(3, 3), label=f"layer {index}") for index in range(12)]
    assert repeats(factors) == [Run(1, 1, 12)]


@pytest.mark.parametrize("count", [8, 13, 64, 100, 101, 230])
@pytest.mark.parametrize("link", [[weight(8)], [weight(8), slope(8)]], ids=["weights", "weights and slopes"])
def test_a_long_run_takes_a_level_a_launch(link, count):
    plan = plan_factors(link * count, objective=TIME)
    products = [step.decision for step in plan.steps if step.decision.action is Action.MULTIPLY]
    assert len(products) == count - 1
    # At 1e9 bytes/s a product moves 3 · 64 entries and a slope 64 + 8 + 64; a launch for each level, of two kinds: one
    # product may be left over in each.
    work = (count - 1) * 192 + (len(link) - 1) * count * 136
    assert plan.cost < 4e-9 * work + (2 * math.ceil(math.log2(count)) + 1) * 1e-6
    row = plan_factors(link * count, objective=TIME, strategy="forward")
    assert plan.cost < row.cost


def test_a_narrow_end_is_swept_to_through_a_long_run():
    factors = [*[weight(64), slope(64)] * 100, weight(64, 1)]
    plan = plan_factors(factors, objective=TIME)
    assert [step.decision.mode for step in plan.steps] == [Mode.GIVEN, Mode.ADJOINT]
    assert plan.steps[-1].decision.raw_factors == range(1, 201)


@pytest.mark.parametrize("ends", [(3, 64), (64, 3), (64, 64), (2, 2)], ids=str)
def test_a_run_cut_short_gives_the_plan_of_the_whole(ends, monkeypatch):
    n, m = ends
    factors = (weight(n, 32), *[weight(32), slope(32)] * 55, weight(32, m))
    problem = Problem(factors, TIME)
    asked = []

    def noting(problem):
        asked.append(problem.length)
        return optimal_brackets(problem)

    brackets = module.with_repeats(problem, noting)
    monkeypatch.setattr(module, "SOLVED_WHOLE", 1000)
    whole = module.with_repeats(problem, optimal_brackets)
    found, expected = (sum(prices_by_level(problem, module._in_order(plan))) for plan in (brackets, whole))
    assert found == pytest.approx(expected, rel=1e-9)
    if min(ends) < 32:  # swept through, and so never solved whole
        assert max(asked) < 20


def test_fma_counts_each_product_and_plans_as_ever():
    chain = Chain.from_sizes([4] * 20)
    assert chain.plan(objective="fma").cost == 18 * 64


def test_a_batch_multiplies_what_is_at_once():
    factors = [weight(8), slope(8)] * 16
    one, many = (plan_factors(factors, objective=TIME, batch=batch) for batch in (1, 10))
    assert one.cost < many.cost < 10 * one.cost
