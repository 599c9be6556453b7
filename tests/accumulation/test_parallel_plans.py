"""Plans for several workers: makespans by hand, and schedules that keep the rules."""

import random
from dataclasses import replace

import pytest

from torch_jvpvjp.accumulation import Chain, Factor, Fma, Plan
from torch_jvpvjp.accumulation.planners.parallel import shortest_of
from torch_jvpvjp.accumulation.planning import plan_factors
from torch_jvpvjp.accumulation.problem import Problem
from torch_jvpvjp.accumulation.structure import BlockDiagonal
from torch_jvpvjp.accumulation.timetable import Tasks, makespan


def check_timetable(plan):
    """No worker does two things at once, and nothing starts before its operands are there."""
    slots = dict(zip((step.decision.span for step in plan.steps), plan.timetable, strict=True))
    assert plan.makespan == max(slot.end for slot in slots.values())
    for step in plan.steps:
        slot = slots[step.decision.span]
        assert slot.end - slot.start == step.fma and 0 <= slot.worker < plan.threads
        assert all(slots[operand].end <= slot.start for operand in step.decision.operands)
    busy = sorted((slot.worker, slot.start, slot.end) for slot in slots.values() if slot.end > slot.start)
    for (worker, _, end), (other, start, _) in zip(busy, busy[1:], strict=False):
        assert worker != other or end <= start


def test_two_workers_form_two_factors_at_once_by_hand():
    # 4 -> 2 -> 4, 100 edges: each Jacobian takes 200 on its own worker, the product 32 more; alone 432.
    chain = Chain.from_sizes([4, 2, 4], edges=[100, 100])
    plan = chain.plan(threads=2)
    assert (plan.makespan, plan.cost) == (232, 432)
    assert [(slot.start, slot.end) for slot in plan.timetable] == [(0, 200), (0, 200), (200, 232)]
    assert {slot.worker for slot in plan.timetable[:2]} == {0, 1}
    check_timetable(plan)


def test_more_work_in_less_time_by_hand():
    # 8 -> 8 -> 8: alone, one sweep of 8 vectors through both takes 1600; beside one another each takes 800, then 8³.
    chain = Chain.from_sizes([8, 8, 8], edges=[100, 100])
    assert chain.plan().cost == 1600
    plan = chain.plan(threads=2)
    assert (plan.makespan, plan.cost) == (800 + 512, 1600 + 512)
    check_timetable(plan)


def test_one_worker_takes_as_long_as_the_sum():
    chain = Chain.from_sizes([7, 3, 9, 4, 5], edges=[11, 13, 17, 19])
    plan = chain.plan(threads=1)
    assert plan.makespan == plan.cost == chain.plan().cost


@pytest.mark.parametrize("seed", range(24))
def test_the_search_reaches_the_shortest_of_all_plans(seed):
    # The judge schedules every plan, with sweeps factor by factor and joined.
    rng = random.Random(seed)
    length = rng.randint(2, 4)
    chain = Chain.from_sizes(
        [rng.randint(1, 12) for _ in range(length + 1)], edges=[rng.randint(1, 60) for _ in range(length)]
    )
    threads = rng.randint(2, 4)
    plan = chain.plan(threads=threads)
    judge = chain.plan(threads=threads, strategy="exhaustive")
    assert plan.makespan == judge.makespan
    for found in (plan, judge):
        check_timetable(found)


@pytest.mark.parametrize("seed", range(6))
def test_more_workers_never_take_longer_and_never_less_than_the_longest_path(seed):
    rng = random.Random(seed)
    chain = Chain.from_sizes([rng.randint(1, 30) for _ in range(8)], edges=[rng.randint(10, 900) for _ in range(7)])
    plans = [chain.plan(threads=threads) for threads in range(1, 8)]
    spans = [plan.makespan for plan in plans]
    assert spans == sorted(spans, reverse=True) and spans[0] == chain.plan().cost
    for plan in plans:
        check_timetable(plan)
        assert plan.makespan * plan.threads >= plan.cost >= chain.plan().cost


@pytest.mark.parametrize("strategy", ["forward", "reverse", "greedy"])
def test_every_strategy_is_scheduled(strategy):
    chain = Chain.from_sizes([6, 2, 7, 3, 8], edges=[50, 60, 70, 80])
    plan = chain.plan(strategy=strategy, threads=3)
    check_timetable(plan)
    assert plan.makespan >= chain.plan(threads=3).makespan


def test_long_chains_are_scheduled_too():
    rng = random.Random(1)
    chain = Chain.from_sizes([rng.randint(1, 30) for _ in range(31)], edges=[rng.randint(10, 900) for _ in range(30)])
    plan = chain.plan(threads=4)
    check_timetable(plan)
    assert plan.makespan < chain.plan().cost


def test_compressed_sweeps_are_scheduled():
    # Two colours instead of 8 columns. Pushed on: 16 + 16. Formed at once and multiplied: 16 + 4 · 2³ = 48.
    factors = [Factor(8, 8, 8, 8, 8, structure=BlockDiagonal(4, 8, 8), given=False) for _ in range(2)]
    plan = plan_factors(factors, threads=2)
    assert plan.makespan == 32
    check_timetable(plan)


def test_branch_and_bound_beats_the_list_where_the_list_is_wrong():
    rng = random.Random(5)
    improved = 0
    for _ in range(60):
        chain = Chain.from_sizes([rng.randint(1, 9) for _ in range(6)], edges=[rng.randint(1, 90) for _ in range(5)])
        plan = chain.plan(strategy="greedy", matrix_free=False)
        tasks = Tasks([step.decision for step in plan.steps], [step.fma for step in plan.steps], 2)
        listed, best = makespan(tasks.listed()), makespan(tasks.schedule())
        assert tasks.bound() <= best <= listed
        improved += best < listed
    assert improved > 0


def test_a_timetable_is_shown_and_stored():
    plan = Chain.from_sizes([4, 2, 4], edges=[100, 100]).plan(threads=2)
    assert "makespan     232 fma on 2 workers" in str(plan)
    assert "200 – 232" in str(plan) and "200 – 232" in plan._repr_html_()
    assert Plan.from_json(plan.to_json()) == plan
    assert replace(plan, timetable=None).makespan is None


def test_the_shortest_of_equal_plans_is_the_cheapest():
    chain = Chain.from_sizes([4, 2, 4], edges=[100, 100])
    problem = Problem(chain.factors, Fma(), threads=2)
    plans = [[step.decision for step in chain.plan(strategy=name).steps] for name in ("forward", "reverse", "greedy")]
    assert shortest_of(problem, plans) == plans[2]


@pytest.mark.parametrize(("threads", "error"), [(0, ValueError), (1.5, TypeError)])
def test_threads_are_a_number_of_workers(threads, error):
    with pytest.raises(error, match=r"plan: threads must be (at least 1|an integer), got"):
        Chain.from_sizes([4, 2, 4]).plan(threads=threads)
