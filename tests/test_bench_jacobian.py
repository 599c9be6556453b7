import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from _jacobian_case import Case, leaves  # noqa: E402
from _jacobian_chains import narrowest  # noqa: E402
from _jacobian_jax import load_jax  # noqa: E402
from _jacobian_judge import JacobianJudge, entries  # noqa: E402
from _jacobian_measure import FIRST_CALL, Settings, count_ops, measure  # noqa: E402
from _jacobian_memory import Task, run  # noqa: E402
from _jacobian_ours import COMPILED, OURS, REUSED, make_plan  # noqa: E402
from _jacobian_peers import peers  # noqa: E402
from _jacobian_processes import measured  # noqa: E402
from _jacobian_strategies import CONTENDERS, PICK, strategy_row  # noqa: E402
from _jacobian_summary import failing, failures, fastest, key_figures  # noqa: E402
from _jacobian_timing import Contender, time_in_turn, timed_row  # noqa: E402
from _jacobian_workloads import CASES, QUICK, select  # noqa: E402

CPU = torch.device("cpu")
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)


@every_case
def test_every_peer_gives_the_jacobian_in_one_chunk_and_in_several(case: Case) -> None:
    problem, judge = case.make(small=True), JacobianJudge(case, small=True)
    for peer in peers(problem, entries(problem)[0]):
        for chunk in (None, 2) if peer.sweeps > 2 else (None,):
            assert judge(peer.build(chunk)(problem.x)) <= 1, (peer.name, chunk)


@pytest.mark.parametrize("case", [c for c in CASES if c.make(small=True).floor], ids=lambda case: case.id)
def test_every_floor_gives_the_jacobian(case: Case) -> None:
    problem = case.make(small=True)
    assert problem.floor is not None
    assert JacobianJudge(case, small=True)(problem.floor(problem.x)) <= 1


@every_case
def test_our_plan_gives_the_jacobian(case: Case) -> None:
    problem = case.make(small=True)
    plan = make_plan(problem)
    assert plan.peak_bytes is not None, "what it holds is not told"
    assert JacobianJudge(case, small=True)(plan(problem.x)) <= 1


@every_case
def test_the_twin_in_jax_has_the_value_of_the_function(case: Case) -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is not installed")
    jax = load_jax()
    problem = case.make(small=True, dtype=torch.float64)
    assert problem.twin is not None
    twin, weights = problem.twin, _as_jax(jax, problem.weights)
    x = jax.numpy.asarray(problem.x.numpy())
    with torch.no_grad():
        y = problem.f(problem.x)
    if problem.batched or problem.of_parameters:
        x, y = x[0], y[0]
    found = jax.jit(lambda weights, x: twin(jax, weights, x))(weights, x)
    torch.testing.assert_close(leaves(found)[0], y)


def _as_jax(jax: object, tree: object) -> object:
    if isinstance(tree, Tensor):
        return jax.numpy.asarray(tree.numpy())  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(tree, dict):
        return {name: _as_jax(jax, value) for name, value in tree.items()}
    assert isinstance(tree, (tuple, list))
    return [_as_jax(jax, value) for value in tree]


@every_case
def test_a_workload_is_made_with_the_same_numbers_in_every_dtype_and_with_a_new_function_each_time(case: Case) -> None:
    first, second = case.make(small=True), case.make(small=True, dtype=torch.float64)
    assert first.f is not second.f
    assert first.x.dtype is case.dtype
    torch.testing.assert_close(first.x.double(), second.x, rtol=0, atol=1e-7 * float(second.x.abs().max()))
    for one, other in zip(leaves(first.weights), leaves(second.weights), strict=True):
        if one.is_floating_point():
            torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", [c for c in CASES if "widths" in c.full and c.plain_chain], ids=lambda case: case.id)
def test_the_floor_of_a_chain_brackets_in_the_optimal_order(case: Case) -> None:
    widths = case.full["widths"]
    assert _floor_fma(widths) == _least_fma(widths)


def _floor_fma(widths: tuple[int, ...]) -> int:
    split = narrowest(widths)
    inner = sum(widths[split] * widths[k] * widths[k - 1] for k in range(split - 1, 0, -1))
    inner += sum(widths[split] * widths[k] * widths[k + 1] for k in range(split + 1, len(widths) - 1))
    ends = 0 < split < len(widths) - 1
    return inner + ends * widths[0] * widths[split] * widths[-1]


def _least_fma(widths: tuple[int, ...]) -> int:
    q = len(widths) - 1
    cost = {(i, i + 1): 0 for i in range(q)}
    for length in range(2, q + 1):
        for i in range(q - length + 1):
            j = i + length
            cost[i, j] = min(cost[i, k] + cost[k, j] + widths[i] * widths[k] * widths[j] for k in range(i + 1, j))
    return cost[0, q]


def test_the_judge_refuses_what_is_wrong() -> None:
    (case,) = select(["robot-arm"])
    judge, problem = JacobianJudge(case), case.make()
    right = torch.func.jacfwd(problem.f)(problem.x)
    assert judge(right) <= 1
    assert judge(right + 1e-9) > 1
    assert judge(right.T) == math.inf
    assert judge(right.index_fill(0, torch.tensor([3]), math.nan)) == math.inf


def test_workloads_are_selected_by_id() -> None:
    assert [case.id for case in select(["rnn-200", "autoencoder"])] == ["autoencoder", "rnn-200"]
    assert select(None) == list(CASES)
    assert {case.id for case in select(None, quick=True)} == set(QUICK)
    with pytest.raises(ValueError, match=r"--only must name workloads of autoencoder, .*; got autoncoder"):
        select(["autoncoder"])


def test_ids_are_unique() -> None:
    assert len({case.id for case in CASES}) == len(CASES)


def test_slow_contenders_are_called_in_fewer_rounds_and_fresh_arguments_are_made_for_every_call() -> None:
    calls: dict[str, list[int]] = {"quick": [], "slow": []}
    made: list[int] = []

    def prepare() -> int:
        made.append(len(made))
        return made[-1]

    contenders = {
        "quick": Contender(lambda k: calls["quick"].append(k), prepare, seconds=0.01),
        "slow": Contender(lambda: calls["slow"].append(0), seconds=0.1),
    }
    times = time_in_turn(contenders, CPU, seconds=2.0)
    assert calls["quick"] == list(range(100))
    slow, quick = timed_row(times["slow"]), timed_row(times["quick"])
    assert len(calls["slow"]) == slow["repeats"] == 10
    assert quick["q1_ms"] <= quick["median_ms"] <= quick["q3_ms"]


def test_a_contender_that_fails_in_a_later_call_is_noted_and_the_others_are_timed() -> None:
    left = [None] * 3
    contenders = {"failing": Contender(left.pop, seconds=0.1), "lasting": Contender(lambda: None, seconds=0.1)}
    times = {name: timed_row(t) for name, t in time_in_turn(contenders, CPU, seconds=2.0).items()}
    assert times["failing"] == {"note": "raises in a later call: IndexError: pop from empty list"}
    assert times["lasting"]["repeats"] == 10


def test_a_workload_is_measured_and_nobody_is_dropped() -> None:
    (case,) = select(["funnel-4"])
    row = measure(case, Settings(CPU, seconds=0.0, compiled=False, small=True), None)
    contenders = row["contenders"]
    peer_names = {"jacrev", "jacfwd", "autograd reverse", "autograd forward"}
    assert contenders.keys() == peer_names | {FIRST_CALL, "floor", *OURS} - {COMPILED}
    assert contenders[FIRST_CALL]["of"] in peer_names
    assert all("median_ms" in c or c["note"] for c in contenders.values())
    assert fastest(row, ["peer"]) is not None
    assert "median_ms" in contenders[REUSED], contenders[REUSED]["note"]


def test_what_raises_is_noted_in_its_row() -> None:
    def build(source: object) -> object:
        raise ArithmeticError("no such function")

    row = measure(Case("broken", build), Settings(CPU), None)  # pyright: ignore[reportArgumentType]
    assert row["note"] == "not measured: ArithmeticError: no such function"
    assert failures([row]) == ["broken: not measured: ArithmeticError: no such function"]


_FOLLOWED = """
import json, os, sys, time
request = json.loads(sys.argv[1])
print(json.dumps({"doing": "the start", "contender": None, "limit": None}), flush=True)
contenders = {}
for name in ("quick", "hangs", "dies"):
    if name in request["left_out"]:
        contenders[name] = {"kind": "peer", "note": "not measured: " + request["left_out"][name]}
        continue
    print(json.dumps({"doing": name, "contender": name, "limit": 0.5 if name == "hangs" else None}), flush=True)
    if name == "hangs":
        time.sleep(60)
    if name == "dies":
        os.abort()
    contenders[name] = {"kind": "peer", "note": "", "median_ms": 1.0}
print(json.dumps({"row": {"workload": request["workload"], "contenders": contenders}}), flush=True)
"""


def test_a_contender_that_hangs_or_dies_is_noted_and_the_others_are_measured() -> None:
    row = measured("any", Settings(CPU), worker=(sys.executable, "-c", _FOLLOWED))
    assert row["contenders"]["quick"]["median_ms"] == 1.0
    assert row["contenders"]["hangs"]["note"] == "not measured: not ready after 0.5 s in hangs"
    assert row["contenders"]["dies"]["note"] == "not measured: the process ended in dies: SIGABRT"
    assert row["seconds"] >= 0.5


def test_a_process_that_dies_by_itself_leaves_a_row_with_a_note() -> None:
    row = measured("any", Settings(CPU), worker=(sys.executable, "-c", "raise OSError('no memory')"))
    assert row["note"] == "not measured: the process ended in the start: exit code 1, OSError: no memory"
    assert failures([row]) == [f"any: {row['note']}"]


def test_settings_go_through_json() -> None:
    settings = Settings(CPU, seconds=0.5, compiled=False, small=True)
    assert Settings.from_json(json.loads(json.dumps(settings.as_json()))) == settings


@pytest.mark.slow
def test_a_process_of_its_own_measures_a_workload() -> None:
    row = measured("curve", Settings(CPU, seconds=0.0, compiled=False, small=True), jax=False)
    peer_names = {"jacrev", "jacfwd", "autograd reverse", "autograd forward"}
    assert row["contenders"].keys() == peer_names | {FIRST_CALL, *OURS} - {COMPILED}
    assert all("median_ms" in c for c in row["contenders"].values()), row


def test_targets_are_passed_failed_or_incomplete() -> None:
    def row(name: str, ours: float | None) -> dict[str, object]:
        reused = {"kind": "ours", "note": "raises: X: y"} if ours is None else _timed("ours", ours)
        contenders = {"jacrev": _timed("peer", 10.0), "floor": _timed("floor", 1.0), REUSED: reused}
        return {"workload": name, "bottleneck": True, "plain_chain": True, "contenders": contenders}

    target = "reused plan / best PyTorch peer, worst (target <= 1.1)"
    mean = "best PyTorch peer / reused plan, geometric mean over chains with a bottleneck (target >= 5)"
    quick, slow, missing = row("quick", 1.0), row("slow", 20.0), row("missing", None)
    assert key_figures([quick])[target] == "0.1 on quick, 1 workloads: pass"
    assert key_figures([quick, slow])[target] == "2 on slow, 2 workloads: FAIL, 1 over 1.1: slow 2"
    assert key_figures([quick, missing])[target].endswith("incomplete; without a time: missing")
    assert key_figures([quick])[mean] == "10 over 1 of 1 workloads: pass"
    assert key_figures([quick, slow])[mean] == "2.24 over 2 of 2 workloads: FAIL"
    assert key_figures([quick])["reused plan / JAX, worst of workloads over 10 ms (target <= 1)"] == "not measured"
    assert failing([quick, missing])
    assert not failing([quick, slow])


def _timed(kind: str, milliseconds: float) -> dict[str, object]:
    return {"kind": kind, "note": "", "median_ms": milliseconds}


def test_ops_of_one_call_are_counted() -> None:
    (case,) = select(["ode-200"])
    assert count_ops(case.make(small=True)) == 4 * 4  # a product, a tanh, a multiple and a sum in each of four steps


def test_every_strategy_is_checked_and_timed() -> None:
    (case,) = select(["autoencoder"])
    plans = strategy_row(case, CPU, 0.0, small=True)["plans"]
    assert plans.keys() == CONTENDERS.keys()
    assert all("median_ms" in plan for name, plan in plans.items() if name != PICK), plans
    best = plans["fma: dynamic_programming"]["fma"]
    assert all(best <= plan["fma"] for name, plan in plans.items() if name != PICK)


@pytest.mark.slow
def test_a_process_of_its_own_measures_the_peak_of_a_plan() -> None:
    row = run(Task("wide-autoencoder"), small=True)
    assert row["jacobian_bytes"] == 12 * 12 * 4, row
    assert row["measured_bytes"] >= 0
    assert row["predicted_bytes"] > 0


@pytest.mark.slow
def test_a_process_that_fails_says_why_in_its_row() -> None:
    row = run(Task("wide-autoencoder", options=(("memory_limit", -1),)), small=True)
    assert row["note"].startswith("raises within ")
