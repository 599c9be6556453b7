"""The benchmark of all ops: each op has a workload, on which the op is right; what is wrong is not called right."""

import sys
from pathlib import Path

import pytest
import torch

from torch_jvpvjp import ops

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import bench_ops  # noqa: E402
from _op_operations import OPERATIONS, directions  # noqa: E402
from _op_workloads import Workload, workloads  # noqa: E402

CPU = torch.device("cpu")


def rows_of(workload: Workload, mode: str, seconds: float = 0.0) -> list[bench_ops.Row]:
    at = directions(workload.functions(CPU)["ours"], workload.draw(torch.float32, CPU))
    return bench_ops.measure(workload, OPERATIONS[mode], CPU, at, seconds, compiles=False)


def test_every_op_has_a_workload() -> None:
    assert {w.op for w in workloads(1 << 12)} == set(ops.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("op", ops.__all__)
def test_the_op_is_right_on_its_workload(op: str) -> None:
    for workload in workloads(1 << 12, [op]):
        for mode in ("forward", "vjp of jvp"):
            ours = rows_of(workload, mode)[0]
            assert ours["note"] == "" and ours["median_ms"] > 0


def test_what_is_wrong_is_said_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "tanh", lambda x: x.tanh() * 1.001)
    (workload,) = workloads(1 << 12, ["tanh"])
    ours, native = rows_of(workload, "jvp")
    assert ours["note"].startswith("wrong: error is") and "median_ms" not in ours
    assert native["median_ms"] > 0
    assert bench_ops.key_figures([ours, native], CPU)["our rows that are wrong or raise (target 0)"] == 1


def test_a_derivative_that_is_zero_is_right() -> None:
    (workload,) = workloads(1 << 12, ["relu"])
    assert [row["error_over_budget"] for row in rows_of(workload, "hvp")] == [0.0, 0.0]


def test_bytes_are_those_of_operands_and_results() -> None:
    (workload,) = workloads(1 << 12, ["tanh"])
    at = directions(workload.functions(CPU)["ours"], workload.draw(torch.float32, CPU))
    size = 4 * at.primals[0].numel()
    assert [o.bytes_moved(at, ()) // size for o in OPERATIONS.values()] == [2, 4, 5, 10, 4]


def test_an_unknown_op_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no workload of nothing; there are rms_norm"):
        list(workloads(1 << 12, ["nothing"]))
