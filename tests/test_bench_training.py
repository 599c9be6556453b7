"""The benchmark of training steps: every contender is right on every workload; what is wrong is not timed."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import bench_training  # noqa: E402
from _training_workloads import WORKLOADS, Training  # noqa: E402

from torch_jvpvjp.accumulation import gradients  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.id)
def test_every_contender_is_right(workload: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_training, "FIRST_STEPS", 3)
    monkeypatch.setattr(gradients, "_SECONDS_OF_OP", 0.0)  # recorded before it is judged
    rows = bench_training.measure(workload, CPU, 0.0, compiles=False, small=True)
    assert [row["contender"] for row in rows if row["note"] or "median_ms" not in row] == []
    assert {row["contender"] for row in rows} >= set(bench_training.CONTENDERS) - {bench_training.ROWS}
    ratio = bench_training.key_figures(rows)[f"{workload.id}: step over the best eager peer's"]
    assert ratio > 0


def test_what_is_wrong_is_said_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_training, "FIRST_STEPS", 1)
    right = bench_training.ours
    monkeypatch.setitem(bench_training.CONTENDERS, bench_training.OURS, lambda net, x: 1.01 * right(net, x))
    rows = bench_training.measure(WORKLOADS[3], CPU, 0.0, compiles=False, small=True)
    assert rows[0]["note"].startswith("wrong") and "median_ms" not in rows[0]
    assert all("median_ms" in row for row in rows[1:])
