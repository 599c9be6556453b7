"""The command line: info, plan, check and demo."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_jvpvjp import __version__, ops
from torch_jvpvjp.__main__ import main
from torch_jvpvjp.command_line.info import capability_markdown

ROOT = Path(__file__).parent.parent

USER_MODULE = """
import torch
from torch import Tensor
from torch_jvpvjp import differentiable_op

@differentiable_op("{name}::soft_clip")
def soft_clip(x: Tensor, limit: float = 1.0) -> Tensor:
    return limit * torch.tanh(x / limit)

@soft_clip.jvp
def _(primals, tangents):
    y = torch.tanh(primals.x / primals.limit)
    return primals.limit * y, (1 - y * y) * tangents.x * {factor}

samples = [(torch.randn(3),), (torch.randn(2, 2), 0.5)]

@differentiable_op("{name}::power")
def power(x: Tensor, exponent: int) -> Tensor:
    return x ** exponent

def public(x: Tensor) -> Tensor:
    return soft_clip(x)

def plain(x: Tensor) -> Tensor:
    return torch.tanh(x)
"""


def test_info_names_versions_and_every_op(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert __version__ in printed and torch.__version__ in printed
    for name in ops.__all__:
        assert name in printed


def test_the_readme_has_the_generated_capability_table() -> None:
    assert capability_markdown() in (ROOT / "README.md").read_text(encoding="utf-8")


def test_plan_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--dims", "4,2,4", "--edges", "100,100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"] == 432


def test_plan_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--dims", "784,512,32,512,784"]) == 0
    assert "bracketing" in capsys.readouterr().out


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module of a user's in the current folder, whose JVP is `factor` times too large."""
    name = f"user_{request.param}_{abs(hash(request.node.name)) % 10**8}"
    text = USER_MODULE.format(name=name, factor={"right": "1", "wrong": "1.001"}[request.param])
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    return name


@pytest.mark.parametrize("module", ["right"], indirect=True)
def test_check_of_a_right_op(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{module}:soft_clip", "--backends", ""]) == 0
    assert "0 failed" in capsys.readouterr().out
    assert main(["check", f"{module}:soft_clip", "--samples", f"{module}:samples", "--backends", ""]) == 0
    assert main(["check", f"{module}:public", "--samples", f"{module}:samples", "--backends", ""]) == 2
    assert "reference is required" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["wrong"], indirect=True)
def test_check_of_a_wrong_op(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{module}:soft_clip", "--backends", ""]) == 1
    printed = capsys.readouterr().out
    assert "central difference" in printed and "func.jvp" in printed


@pytest.mark.parametrize("module", ["right"], indirect=True)
def test_check_says_what_it_needs(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    for spec, message in [
        (module, "name it as MODULE:NAME"),
        (f"{module}:nothing", "has no 'nothing'"),
        (f"{module}:power", "options without default ['exponent']; give --samples"),
        (f"{module}:public", "give --samples MODULE:NAME"),
        ("no_such_module:op", "No module named"),
    ]:
        assert main(["check", spec, "--backends", ""]) == 2
        assert message in capsys.readouterr().err


def test_unknown_command_is_refused() -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plot"])


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "torch_jvpvjp", "demo", "--quick", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "held-out digits right" in run.stdout and "by plan" in run.stdout and "jacfwd" in run.stdout
    for picture in ("plan.png", "directions.png"):
        assert (tmp_path / "out" / picture).stat().st_size > 10_000
