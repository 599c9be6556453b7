"""Which names an op may have, and when a name may be declared again."""

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from example_ops import fresh_name
from torch import Tensor

from torch_jvpvjp import DifferentiableOp, differentiable_op
from torch_jvpvjp.registration import find_op


def square(x: Tensor) -> Tensor:
    return x * x


def test_a_second_op_of_the_same_name_is_refused() -> None:
    name = fresh_name("twice")
    differentiable_op(name)(square)
    with pytest.raises(
        ValueError, match=rf"{name}' is registered already \(by square of test_names\); choose another name"
    ):
        differentiable_op(name)(square)


def test_find_op_names_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no differentiable op 'tests::nothing' is registered; import.*There are \["):
        find_op("tests::nothing")


CELL = """
@differentiable_op("tests::cell")
def cell(x: Tensor) -> Tensor:
    return x.sin() * SCALE

cell.jvp(lambda p, t: (p.x.sin() * SCALE, p.x.cos() * t.x * SCALE))
cell.kernel("cpu")(lambda x: x.detach().sin() * SCALE)
"""


def run_cell(surroundings: dict[str, Any], scale: str) -> DifferentiableOp:
    exec(CELL.replace("SCALE", scale), surroundings)
    return surroundings["cell"]


def test_a_cell_that_runs_again_declares_its_op_anew() -> None:
    notebook: dict[str, Any] = {"differentiable_op": differentiable_op, "Tensor": Tensor, "__name__": "notebook"}
    x = torch.randn(3, requires_grad=True)
    old = run_cell(notebook, "1")
    y = old(x)
    new = run_cell(notebook, "2")
    torch.testing.assert_close(new(x), 2 * x.sin())
    torch.testing.assert_close(torch.func.jvp(new, (x.detach(),), (x.detach(),))[1], (2 * x.cos() * x).detach())
    torch.testing.assert_close(
        torch.func.grad(lambda t: torch.ops.tests.cell(t).sum())(x.detach()), 2 * x.detach().cos()
    )
    torch.testing.assert_close(torch.autograd.grad(y.sum(), x)[0], x.detach().cos())  # what was recorded stays
    with pytest.raises(RuntimeError, match=r"this op was declared again"):
        old(x)
    with pytest.raises(ValueError, match=r"'tests::cell' is registered already \(by cell of notebook\)"):
        differentiable_op("tests::cell")(square)


def test_a_module_that_is_reloaded_declares_its_op_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "from torch import Tensor\nfrom torch_jvpvjp import differentiable_op\n"
    source = tmp_path / "reloaded_ops.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source.write_text((head + CELL).replace("SCALE", "1").replace("tests::cell", "tests::reloaded"))
    module = importlib.import_module("reloaded_ops")
    source.write_text((head + CELL).replace("SCALE", "3").replace("tests::cell", "tests::reloaded"))
    x = torch.randn(3)
    torch.testing.assert_close(importlib.reload(module).cell(x), 3 * x.sin())
    assert pickle.loads(pickle.dumps(module.cell)) is module.cell
    assert module.cell.__reduce__()[1] == ("tests::reloaded", "reloaded_ops")  # imported where it is not there
    source.write_text((head + 2 * CELL).replace("SCALE", "3").replace("tests::cell", "tests::reloaded"))
    with pytest.raises(ValueError, match=r"'tests::reloaded' is registered already \(by cell of reloaded_ops\)"):
        importlib.reload(module)


def test_names_that_pytorch_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"PyTorch has an op 'aten::square' already"):
        differentiable_op("aten::square")(square)
