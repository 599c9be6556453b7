"""The command `plan`."""

import argparse
import json

import pytest

from torch_jvpvjp.accumulation import Chain
from torch_jvpvjp.accumulation.cli import add_plan_arguments, run_plan


def _run(*words):
    parser = argparse.ArgumentParser()
    add_plan_arguments(parser)
    return run_plan(parser.parse_args(words))


def test_it_prints_the_plan(capsys):
    assert _run("--dims", "784,512,32,512,784") == 0
    assert capsys.readouterr().out.rstrip("\n") == str(Chain.from_sizes([784, 512, 32, 512, 784]).plan())


def test_json_holds_cost_peak_bracketing_and_steps(capsys):
    assert _run("--dims", "3,3,1,2", "--edges", "29,14,7", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data) == {"cost", "peak_entries", "bracketing", "steps"}
    assert data["cost"] == 56 and data["bracketing"] == "(F3 (F2 F1))"
    assert data["steps"][-1] == {
        "action": "multiply",
        "mode": None,
        "bracket": [3, 2, 1],
        "shape": [2, 3],
        "fma": 6,
        "structure": "dense",
    }


OPTIONS = {
    "strategy": (["--strategy", "forward"], {"strategy": "forward"}),
    "tape limit": (["--tape-limit", "0"], {"tape_limit": 0}),
    "no elimination": (["--no-matrix-free"], {"matrix_free": False}),
}


@pytest.mark.parametrize(("words", "options"), OPTIONS.values(), ids=OPTIONS)
def test_options_reach_the_planner(words, options, capsys):
    chain = Chain.from_sizes([8, 4, 2, 9], jvp_cost=[50, 60, 70], vjp_cost=[20, 90, 10], tape=[5, 6, 7])
    costs = ["--jvp-cost", "50,60,70", "--vjp-cost", "20,90,10", "--tape", "5,6,7"]
    assert _run("--dims", "8,4,2,9", *costs, *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["cost"] == chain.plan(**options).cost != chain.plan().cost


def test_it_draws(tmp_path, capsys):
    assert _run("--dims", "4,2,4", "--plot", str(tmp_path / "plan.png")) == 0
    assert (tmp_path / "plan.png").stat().st_size > 1000


def test_it_draws_the_chain_of_a_file(tmp_path, capsys):
    file, picture = tmp_path / "chain.json", tmp_path / "plan.png"
    file.write_text(json.dumps([{"dims": [4, 2, 4]}]))
    assert _run(str(file), "--plot", str(picture)) == 0
    assert picture.stat().st_size > 1000
    file.write_text(json.dumps([{"dims": [4, 2, 4]}, {"dims": [2, 2]}]))
    assert _run(str(file), "--plot", str(picture)) == 2
    assert "--plot draws one chain, got 2" in capsys.readouterr().err


WRONG = {
    "one size": (["--dims", "4"], "dims must hold at least two sizes, got [4]"),
    "zero size": (["--dims", "4,0"], "dims must be at least 1 each, got 0"),
    "edges": (["--dims", "4,2,4", "--edges", "1"], "edges must hold one number for each of the 2 factors, got 1"),
    "objective": (
        ["--dims", "4,2", "--objective", "luck"],
        "objective must be one of 'fma', 'memory', 'time', got 'luck'",
    ),
    "strategy": (["--dims", "4,2", "--strategy", "luck"], "got 'luck'"),
    "limit": (["--dims", "4,2", "--edges", "3", "--tape-limit", "-1"], "tape_limit must be at least 0, got -1"),
    "folder": (["--dims", "4,2", "--plot", "/nowhere/plan.png"], "/nowhere/plan.png"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_bad_arguments_end_with_code_2_and_a_message(words, message, capsys):
    assert _run(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("plan: error: ") and not captured.out


def test_what_is_no_number_is_refused_by_the_parser(capsys):
    with pytest.raises(SystemExit) as ended:
        _run("--dims", "4,two")
    assert ended.value.code == 2
    assert "got '4,two'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--threads", "0"], "threads must be at least 1, got 0"), (["--objective", "luck"], "got 'luck'")],
    ids=["threads", "objective"],
)
def test_arguments_that_are_wrong_for_every_chain_of_a_file_end_with_code_2(words, message, tmp_path, capsys):
    file = tmp_path / "chain.json"
    file.write_text(json.dumps([{"dims": [3, 4, 5]}, {"dims": [2, 2]}]))
    assert _run(str(file), *words) == 2
    captured = capsys.readouterr()
    assert captured.err.count(message) == 1 and not captured.out
