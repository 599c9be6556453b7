"""The README's example prints what the README says, and the example file passes its own check."""

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
@pytest.mark.compiled
def test_the_example_op_passes_its_own_check() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "examples/own_op.py"], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr
    assert ", 0 failed," in run.stdout
