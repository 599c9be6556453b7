"""The README's examples print what the README says, and the example files pass their own checks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.compiled
def test_the_first_example_prints_what_stands_below_it() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code, printed = re.findall(r"```(?:python|text)\n(.*?)```", text, re.DOTALL)[:2]
    assert len(code.strip().splitlines()) < 15
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == printed


@pytest.mark.slow
def test_the_example_of_the_ops_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "from torch_jvpvjp import ops" in block)
    shapes = "print(tuple(y_dot.shape), tuple(q.shape))"
    assert _python("-c", f"import torch\n{code}\n{shapes}") == "(2, 16, 64) (2, 8, 16, 64)\n"


@pytest.mark.slow
def test_the_example_of_a_model_that_is_there_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "tj.nn.patched()" in block)
    kinds = "print(tuple(y_dot.shape), type(model[1]) is tj.nn.LayerNorm)"
    assert _python("-c", f"import torch\nimport torch_jvpvjp as tj\n{code}\n{kinds}") == "(2, 16, 32) True\n"


@pytest.mark.slow
def test_the_examples_on_jacobians_run_and_print_what_stands_below_them() -> None:
    first, second = _section("Jacobians in the best order", "python")
    printed, _ = _section("Jacobians in the best order", "text")
    assert _python("-c", first) == printed
    assert "predicted and measured time" in _python("-c", first + second)


@pytest.mark.slow
def test_the_command_for_chains_prints_what_stands_below_it(tmp_path: Path) -> None:
    (shell,) = _section("Jacobians in the best order", "sh")
    _, printed = _section("Jacobians in the best order", "text")
    command, _, expected = printed.partition("\n")
    (tmp_path / "chain.json").write_text(shell.removeprefix("$ cat chain.json\n"), encoding="utf-8")
    words = command.removeprefix("$ python ").replace("chain.json", str(tmp_path / "chain.json")).split()
    assert _python(*words) == expected


# PyTorch's forward mode loads decompositions that it scripts itself.
_SCRIPTED = [word for kind in ("Deprecation", "Future") for word in ("-W", f"ignore:`torch.jit:{kind}Warning")]


@pytest.mark.slow
def test_the_tour_of_jacobians_agrees_with_torch_func() -> None:
    assert "598 of 40,000 entries" in _python("-W", "error", *_SCRIPTED, "examples/jacobians.py")


def _section(title: str, language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def _python(*words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    run = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        env=environment,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
@pytest.mark.compiled
def test_the_example_op_passes_its_own_check() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "examples/own_op.py"], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    assert ", 0 failed," in run.stdout
