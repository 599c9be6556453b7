"""The command `plan` on files of chains."""

import argparse
import json
import subprocess
import sys

import pytest

from torch_jvpvjp.accumulation import Chain
from torch_jvpvjp.accumulation.cli import add_plan_arguments, run_plan

NETWORK = {
    "dims": [4, 4, 2, 4],
    "factors": [{"kind": "diag", "m": 4, "n": 4}, {"kind": "pool", "m": 2, "n": 4}, {"kind": "dense", "m": 4, "n": 2}],
}
TAPED = {"dims": [4, 2, 4], "edges": [100, 100]}


@pytest.fixture
def run(tmp_path, capsys):
    def run(content, *words):
        path = tmp_path / "chains.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        parser = argparse.ArgumentParser()
        add_plan_arguments(parser)
        code = run_plan(parser.parse_args([str(path), *words]))
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_one_chain_gives_one_object(run):
    code, out, _ = run(NETWORK, "--json")
    data = json.loads(out)
    # pool · diagonal: 4; dense (4, 2) · pool (2, 4): 4 · 4 = 16
    assert code == 0 and data["cost"] == 4 + 16 and data["bracketing"] == "(F3 (F2 F1))"
    assert set(data) == {"cost", "peak_entries", "bracketing", "steps"}
    assert [step["structure"] for step in data["steps"]] == ["diagonal", "pool", "pool", "dense", "dense"]


def test_a_list_gives_a_list_and_what_fails_an_error(run):
    code, out, err = run([TAPED, {"dims": [3, 2], "factors": [{"kind": "diag", "m": 3, "n": 3}]}, NETWORK], "--json")
    first, second, third = json.loads(out)
    assert code == 1
    assert first["cost"] == 432 and third["cost"] == 20
    assert second == {
        "error": "Chain.from_sizes: the structure of factor F1 must be of shape (2, 3) as dims say, got diagonal of "
        "shape (3, 3)."
    }
    assert err.startswith("plan: error: chain 2: ")


def test_without_json_every_plan_is_printed(run):
    code, out, _ = run([TAPED, NETWORK])
    assert code == 0
    assert str(Chain.from_sizes([4, 2, 4], edges=[100, 100]).plan()) in out and "chain 2: Jacobian plan" in out


def test_integers_are_exact(run):
    size = 10**25 + 1
    _, out, _ = run({"dims": [size, 3, size]}, "--json")
    assert json.loads(out)["cost"] == 3 * size**2 and str(3 * size**2) in out


OPTIONS = {
    "objective": (["--objective", "memory"], {"objective": "memory"}),
    "budget": (["--peak-entries", "24"], {"peak_entries": 24}),
    "tape": (["--tape-limit", "99"], {"tape_limit": 99}),
    "strategy": (["--strategy", "reverse"], {"strategy": "reverse"}),
    "no elimination": (["--no-matrix-free"], {"matrix_free": False}),
}


@pytest.mark.parametrize(("words", "options"), OPTIONS.values(), ids=OPTIONS)
def test_options_reach_the_planner(words, options, run):
    data = json.loads(run(TAPED, "--json", *words)[1])
    plan = Chain.from_sizes([4, 2, 4], edges=[100, 100]).plan(**options)
    assert (data["cost"], data["peak_entries"], data["bracketing"]) == (plan.cost, plan.peak_entries, plan.bracketing())


def test_each_cost_can_be_said_by_itself(run):
    costs = {"jvp_cost": [50, 60], "vjp_cost": [20, 90], "tape": [5, 6]}
    data = json.loads(run({"dims": [4, 2, 4], **costs}, "--json")[1])
    chain = Chain.from_sizes([4, 2, 4], jvp_cost=[50, 60], vjp_cost=[20, 90], tape=[5, 6])
    assert data["cost"] == chain.plan().cost


def test_threads_add_makespan_and_timetable(run):
    data = json.loads(run(TAPED, "--json", "--threads", "2")[1])
    assert data["makespan"] == 232
    assert data["timetable"][2] == {"worker": data["timetable"][2]["worker"], "start": 200, "end": 232}
    assert "makespan     232 fma on 2 workers" in run(TAPED, "--threads", "2")[1]


def test_an_infeasible_budget_is_an_error_that_names_the_smallest(run):
    code, out, _ = run(TAPED, "--json", "--peak-entries", "23")
    assert code == 1 and "smallest feasible budget is 24" in json.loads(out)["error"]


WRONG_CHAINS = {
    "unknown key": ({"dims": [2, 3], "sizes": []}, "got the unknown key 'sizes'"),
    "no dims": ({"edges": [2, 3]}, "got no dims"),
    "no object": (
        [7],
        "a chain must be an object with the keys dims, edges, jvp_cost, vjp_cost, tape, factors, got int",
    ),
    "dims": ({"dims": "2,3"}, "dims of a chain must be a list, got str"),
    "fraction": ({"dims": [2, 2.5]}, "dims must be a sequence of integers, got [2, 2.5]"),
    "edges": ({"dims": [2, 3], "edges": [1, 2]}, "edges must hold one number for each of the 1 factors, got 2"),
    "kind": ({"dims": [2, 3], "factors": [{"kind": "magic"}]}, "kind must be one of"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_CHAINS.values(), ids=WRONG_CHAINS)
def test_wrong_chains_say_what_is_wrong(content, message, run):
    code, out, err = run(content)
    assert code == 1 and message in err and not out


def test_what_is_no_json_ends_with_code_2(run):
    code, out, err = run('{"dims": [1,\n oops', "--json")
    assert code == 2 and "must hold JSON, got an error at line 2" in err
    assert "must hold JSON" in json.loads(out)["error"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 10**5], ids=["no text", "nested too deep"])
def test_what_cannot_be_read_ends_with_code_2(content, tmp_path, capsys):
    (tmp_path / "chains.json").write_bytes(content)
    parser = argparse.ArgumentParser()
    add_plan_arguments(parser)
    assert run_plan(parser.parse_args([str(tmp_path / "chains.json")])) == 2
    assert "chains.json must hold JSON, got what is none: " in capsys.readouterr().err


def test_a_file_and_sizes_exclude_one_another(run):
    code, _, err = run(TAPED, "--edges", "1,2")
    assert code == 2 and "FILE must not be joined by --edges" in err


def test_neither_file_nor_sizes_is_an_error(capsys):
    parser = argparse.ArgumentParser()
    add_plan_arguments(parser)
    assert run_plan(parser.parse_args([])) == 2
    assert "give a FILE with chains, or --dims" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_plans_a_file(tmp_path):
    path = tmp_path / "chain.json"
    path.write_text(json.dumps(TAPED), encoding="utf-8")
    command = [sys.executable, "-m", "torch_jvpvjp", "plan", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["cost"] == 432
