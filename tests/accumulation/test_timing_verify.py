"""Predicted against measured time, step by step."""

import math
from dataclasses import replace

import pytest

from torch_jvpvjp.accumulation.chain import Chain
from torch_jvpvjp.accumulation.timing import VerifiedStep, verification_table, verify_plan

PLAN = Chain.from_sizes([4, 2, 4], edges=[100, 100]).plan()
PREDICTED = [1e-6 * (place + 1) for place in range(len(PLAN.steps))]


def test_each_step_has_both_its_times() -> None:
    runs = [(step, 2e-6 * (place + 1)) for place, step in enumerate(PLAN.steps)]
    verification = verify_plan(PLAN.steps, PREDICTED, reversed(runs))
    assert [row.predicted for row in verification.rows] == PREDICTED
    assert [row.ratio for row in verification.rows] == pytest.approx([2.0] * len(PLAN.steps))
    assert verification.predicted == pytest.approx(sum(PREDICTED))
    assert verification.measured == pytest.approx(2 * sum(PREDICTED)) and verification.ratio == pytest.approx(2.0)


def test_several_runs_count_with_their_median() -> None:
    runs = [(step, seconds) for seconds in (5e-6, 9e-6, 1.0) for step in PLAN.steps]
    assert {row.measured for row in verify_plan(PLAN.steps, PREDICTED, runs).rows} == {9e-6}


def test_the_table_shows_every_step_and_the_total() -> None:
    text = verification_table(PLAN.steps, PREDICTED, [2e-6] * len(PREDICTED))
    for step in PLAN.steps:
        assert f"{step.action} {step.mode or ''}".strip() in text
    assert "predicted" in text and "measured / predicted" in text and "2.0 µs" in text and "2.00" in text
    assert text.splitlines()[-2].split()[1] == "total"


def test_a_whole_call_is_shown_below_the_total() -> None:
    verification = verify_plan(PLAN.steps, PREDICTED, [(step, 2e-6) for step in PLAN.steps])
    whole = replace(verification, call=VerifiedStep("a call", (4, 4), 8e-6, 4e-6))
    assert str(whole).splitlines()[-2].split()[1:] == [
        "a",
        "call",
        "│",
        "│",
        "8.0",
        "µs",
        "│",
        "4.0",
        "µs",
        "│",
        "0.50",
        "│",
    ]
    assert "a call" not in str(verification)


def test_what_was_not_predicted_has_no_ratio_in_the_table() -> None:
    text = verification_table(PLAN.steps, [0.0] * len(PREDICTED), [2e-6] * len(PREDICTED))
    assert "inf" not in text and text.count("–") == len(PREDICTED) + 1


def test_a_step_of_no_predicted_time_has_a_ratio() -> None:
    assert VerifiedStep("given", (2, 2), 0.0, 0.0).ratio == 1.0
    assert VerifiedStep("given", (2, 2), 0.0, 1e-6).ratio == math.inf


def test_what_does_not_fit_the_plan_is_refused() -> None:
    with pytest.raises(ValueError, match=f"one time for each of {len(PLAN.steps)} steps, got 1"):
        verify_plan(PLAN.steps, [1.0], [])
    with pytest.raises(ValueError, match="every step of the plan, got none for"):
        verify_plan(PLAN.steps, PREDICTED, [(PLAN.steps[0], 1.0)])
