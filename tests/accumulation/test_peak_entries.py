"""Limits on held entries: exact under every budget, and the least peak there is."""

import random

import pytest

from torch_jvpvjp.accumulation import Action, Chain, Factor, Fma
from torch_jvpvjp.accumulation.infeasible import InfeasiblePlanError
from torch_jvpvjp.accumulation.planners.fronts import Fronts
from torch_jvpvjp.accumulation.planners.orders import least_of_all_orders
from torch_jvpvjp.accumulation.planning import plan_factors
from torch_jvpvjp.accumulation.problem import Problem
from torch_jvpvjp.accumulation.profiles import least_peak_order
from torch_jvpvjp.accumulation.structure import BlockDiagonal, Dense, Diagonal, IdentityPlus, LowRank

# 4 -> 2 -> 4, 100 edges each. Forming both and multiplying takes 432 and holds 8 + 8 + 16 = 32 entries; forming the
# 2 x 4 block and carrying it through the other factor takes 800, by tangents or adjoints, and holds 8 + 16 = 24.
HOURGLASS = Chain.from_sizes([4, 2, 4], edges=[100, 100])


@pytest.mark.parametrize("strategy", ["dynamic_programming", "exhaustive"])
@pytest.mark.parametrize(("budget", "cost", "peak"), [(32, 432, 32), (31, 600, 24), (24, 600, 24)])
def test_a_tighter_budget_costs_more_by_hand(strategy, budget, cost, peak):
    # 600: the Jacobian of F1 by adjoints, 2 x 100, and its 4 columns through F2, 4 x 100
    plan = HOURGLASS.plan(strategy=strategy, peak_entries=budget)
    assert (plan.cost, plan.peak_entries, plan.peak_limit) == (cost, peak, budget)


@pytest.mark.parametrize("strategy", ["dynamic_programming", "exhaustive"])
def test_without_a_plan_the_smallest_feasible_budget_is_named(strategy):
    with pytest.raises(InfeasiblePlanError, match="peak_entries=23 .*smallest feasible budget is 24") as raised:
        HOURGLASS.plan(strategy=strategy, peak_entries=23)
    assert raised.value.smallest == 24
    assert HOURGLASS.plan(strategy=strategy, peak_entries=24).peak_entries == 24


@pytest.mark.parametrize("strategy", ["dynamic_programming", "exhaustive"])
def test_memory_is_the_least_peak_then_the_least_fma(strategy):
    plan = HOURGLASS.plan(objective="memory", strategy=strategy)
    assert (plan.peak_entries, plan.cost, plan.unit) == (24, 600, "fma")


def test_jacobians_that_are_given_are_not_counted():
    # The result of 2 x 3 is all that is ever held; formed in closed form or by tangents, the factors count too.
    assert Chain.from_sizes([3, 4, 2]).plan(peak_entries=6).cost == 24
    formed = [Factor(3, 4, forming_cost=0), Factor(4, 2, forming_cost=0)]
    assert plan_factors(formed).peak_entries == 12 + 8 + 6


def test_what_is_held_for_each_sample_of_a_batch_is_held_so_often():
    factors = [Factor(3, 4, 5, 5, 1, shared=True), Factor(4, 2, 5, 5, 1)]
    plan = plan_factors(factors, batch=10, matrix_free=False)
    assert plan.peak_entries == 12 + 10 * 8 + 10 * 6


def test_other_strategies_keep_to_the_budget_or_say_what_they_need():
    chain = Chain.from_sizes([4, 2, 32], edges=[100, 100])
    forward = chain.plan(strategy="forward")
    assert chain.plan(strategy="forward", peak_entries=forward.peak_entries).steps == forward.steps
    with pytest.raises(InfeasiblePlanError, match=r"'forward' holds 136 entries.*budget for this strategy is 136"):
        chain.plan(strategy="forward", peak_entries=135)


def random_factors(rng, length):
    """Dense, sparse and factored Jacobians, given, formed or raw, some of them shared."""
    size, factors = rng.randint(1, 6), []
    for _ in range(length):
        kind = rng.choice(["dense", "dense", "diagonal", "blocks", "low rank", "residual"])
        structure = None
        if kind == "diagonal":
            structure = Diagonal(size)
        elif kind == "blocks" and size % 2 == 0:
            structure = BlockDiagonal(2, 2 * rng.randint(1, 3), size)
        elif kind == "low rank":
            structure = LowRank(rng.randint(1, 6), size, 1)
        elif kind == "residual":
            structure = IdentityPlus(LowRank(size, size, 1))
        rows = rng.randint(1, 6) if structure is None else structure.m
        given = structure is not None and rng.random() < 0.5
        costs = [rng.randint(1, 30) for _ in range(3)] if not given or rng.random() < 0.5 else []
        factors.append(Factor(size, rows, *costs, structure=structure, given=given, shared=rng.random() < 0.3))
        size = rows
    return factors


def outcome(factors, **options):
    try:
        plan = plan_factors(factors, **options)
    except InfeasiblePlanError as error:
        return "smallest", error.smallest
    assert plan.peak_entries <= options["peak_entries"]
    return plan.cost, len(plan.steps)


@pytest.mark.parametrize("seed", range(80))
def test_no_plan_in_any_order_beats_the_pareto_fronts(seed):
    # The judge enumerates plans and all orders of their steps, depth-first or not.
    rng = random.Random(seed)
    factors = random_factors(rng, rng.randint(1, 4 if seed % 4 == 0 else 3))
    options = {"batch": rng.choice([1, 3]), "tape_limit": rng.choice([None, 20])}
    least = plan_factors(factors, objective="memory", **options)
    judge = plan_factors(factors, objective="memory", strategy="exhaustive", **options)
    assert (least.peak_entries, least.cost) == (judge.peak_entries, judge.cost)
    for budget in {max(0, least.peak_entries - 1), least.peak_entries, least.peak_entries * 3 // 2}:
        ours = outcome(factors, peak_entries=budget, **options)
        assert ours == outcome(factors, peak_entries=budget, strategy="exhaustive", **options)


def test_a_looser_budget_never_costs_more_and_a_wide_one_nothing():
    rng = random.Random(0)
    chain = Chain.from_sizes([rng.randint(1, 40) for _ in range(13)], edges=[rng.randint(200, 900) for _ in range(12)])
    free, least = chain.plan(), chain.plan(objective="memory")
    assert least.peak_entries < free.peak_entries
    budgets = range(least.peak_entries, free.peak_entries + 1, (free.peak_entries - least.peak_entries) // 4)
    costs = [chain.plan(peak_entries=budget).cost for budget in budgets]
    assert costs == sorted(costs, reverse=True) and costs[0] == least.cost > costs[-1]
    assert chain.plan(peak_entries=free.peak_entries).cost == free.cost


def test_the_order_that_holds_least_is_found_among_all_orders():
    plan = Chain.from_sizes([10, 10, 100, 1], edges=[1, 1, 1]).plan(matrix_free=False)
    brackets = [step.decision for step in plan.steps]
    held = [step.shape[0] * step.shape[1] for step in plan.steps]
    peak, order = least_of_all_orders(brackets, held)
    assert plan.bracketing() == "((F3 F2) F1)"
    assert peak == 1000 + 100 + 10  # J_3 and J_2 first, 1 x 100 and 100 x 10, then their product beside them
    assert order[-1].action is Action.MULTIPLY and sorted(order) == sorted(brackets)


def test_held_entries_and_threads_exclude_one_another():
    with pytest.raises(ValueError, match="threads=2 must be left out where held entries are limited, got peak_entries"):
        HOURGLASS.plan(threads=2, peak_entries=100)
    with pytest.raises(ValueError, match="threads=2 must be left out .* got objective='memory'"):
        HOURGLASS.plan(threads=2, objective="memory")


# 5 -> 3 -> 1 -> 10 -> 10 -> 1 -> 2; F1, F3 and F6 are formed, at no cost, and F2, F4 and F5 are given.
WAITING = [
    Factor(5, 3, forming_cost=0),
    Factor(3, 1, structure=Dense(1, 3)),
    Factor(1, 10, forming_cost=0),
    Factor(10, 10, structure=Dense(10, 10)),
    Factor(10, 1, structure=Dense(1, 10)),
    Factor(1, 2, forming_cost=0),
]


def test_operands_formed_side_by_side_may_hold_less_than_one_after_the_other():
    # ((F6 (F5 (F4 F3))) (F2 F1)) takes 100 + 10 + 15 + 2 + 10. Its left operand climbs to 20 for F4 F3 and its right to
    # 15 + 5 for F2 F1. F5 F4 F3 is one entry: there the left operand waits for the right, 1 + 15 + 5 = 21, and goes on
    # to 1 + 5 + 2 + 2. Formed to its end first, it would leave 2 entries beside the 20, and the right one 5.
    problem = Problem(tuple(WAITING), Fma(), peak_entries=21)
    one_after_the_other = Fronts(problem, 21, trade=True).best()
    plan, judge = (plan_factors(WAITING, peak_entries=21, strategy=s) for s in ("dynamic_programming", "exhaustive"))
    assert plan.cost == judge.cost == 137 < one_after_the_other.price == 140
    assert plan.peak_entries == judge.peak_entries == 21


@pytest.mark.parametrize("seed", range(40))
def test_hills_and_valleys_find_the_best_of_all_orders(seed):
    rng = random.Random(seed)
    chain = Chain.from_sizes([rng.choice([1, 1, 2, 5, 20]) for _ in range(rng.randint(2, 7))])
    plan = chain.plan(strategy=rng.choice(["greedy", "dynamic_programming", "forward"]))
    brackets = [step.decision for step in plan.steps]
    held = {bracket.span: rng.choice([0, 1, 3, 10, 30]) for bracket in brackets}
    peak, order = least_peak_order(brackets, held)
    assert peak == least_of_all_orders(brackets, [held[bracket.span] for bracket in brackets])[0]
    now = highest = 0
    done = set()
    for bracket in order:
        assert done.issuperset(bracket.operands)
        done.add(bracket.span)
        now += held[bracket.span]
        highest = max(highest, now)
        now -= sum(held[span] for span in bracket.operands)
    assert highest == peak and len(order) == len(brackets)
