"""The benchmark of attention: its judge agrees with PyTorch in float64, what is wrong is not called right."""

import argparse
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_jvpvjp import ops

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import _attention_judge  # noqa: E402
import bench_attention  # noqa: E402
from _attention_contenders import COMPILED, FUSED, MATH, OURS, Hiding, contenders, math  # noqa: E402
from _attention_figures import draw, key_figures, markdown  # noqa: E402
from _attention_judge import AttentionJudge  # noqa: E402
from _attention_modes import JVP, MODES, TANGENTS, VJP, VJP_OF_JVP, Point  # noqa: E402
from _memory import peak_bytes  # noqa: E402

CPU = torch.device("cpu")
SHAPE = (2, 2, 64, 16)  # a smaller one may be rounded luckily by MATH, which is the measure


def rows_of(mode: str, hiding: str = "none") -> list[bench_attention.Row]:
    case = bench_attention.Case(MODES[mode], SHAPE, hiding, compiles=False)
    return bench_attention.measure(case, CPU, torch.float32, 0.0)


@pytest.mark.parametrize("hiding", ["none", "causal", "mask"])
@pytest.mark.parametrize("mode", MODES)
def test_the_judge_computes_by_rows_what_pytorch_computes_at_once(
    mode: str, hiding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_attention_judge, "ROWS", 7)
    monkeypatch.setattr(AttentionJudge._by_blocks, "__defaults__", (7,))
    at, hidden = Point.draw(SHAPE, torch.float64, CPU, TANGENTS), Hiding.of(hiding, SHAPE[2], CPU)
    judge = AttentionJudge(MODES[mode], at, hidden)
    whole = MODES[mode].prepare(math(hidden), at, lambda f: f)()
    for exact, result in zip(judge.exact, whole, strict=True):
        places = [result[..., 0, 0, :, :], result[..., -1, -1, :, :]]
        torch.testing.assert_close(exact.squeeze(-3), torch.stack(places, -3), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("hiding", ["none", "causal", "mask"])
@pytest.mark.parametrize("mode", MODES)
def test_every_contender_is_right_and_timed(mode: str, hiding: str) -> None:
    rows = rows_of(mode, hiding)
    assert [r["contender"] for r in rows][:1] == [OURS]
    for row in rows:
        assert row["note"] == "" and row["median_ms"] > 0 and row["error_over_budget"] <= 1, row
        assert row["peak_bytes"] > 0


def test_what_is_wrong_is_said_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.scaled_dot_product_attention
    monkeypatch.setattr(ops, "scaled_dot_product_attention", lambda *args, **options: 1.001 * right(*args, **options))
    ours, peer = rows_of(JVP)
    assert ours["note"].startswith("wrong: error is") and "median_ms" not in ours
    assert peer["contender"] == MATH and peer["median_ms"] > 0
    assert key_figures([ours, peer], CPU)["our rows that are wrong or raise (target 0)"] == 1


def test_nan_is_infinitely_wrong() -> None:
    at, mode = Point.draw(SHAPE, torch.float32, CPU, TANGENTS), MODES[VJP]
    judge = AttentionJudge(mode, at, Hiding("none"))
    results = [t.clone() for t in mode.prepare(math(Hiding("none")), at, lambda f: f)()]
    results[1][-1, -1, 3, 2] = torch.nan
    assert judge(results).over_budget == float("inf")


def test_flops_are_those_of_the_products() -> None:
    case = bench_attention.Case(MODES[VJP_OF_JVP], (2, 24, 4096, 128), "none", compiles=False)
    assert case.flops(1.0) == 15 * 2 * 2 * 24 * 4096**2 * 128
    assert case.flops(Hiding("causal").share) == case.flops(1.0) / 2
    assert [mode.products for mode in MODES.values()] == [2, 6, 18, 5, 15, 21]


def test_figures_come_from_the_rows_they_name() -> None:
    def row(contender: str, mode: str, ms: float, shape: tuple[int, ...] = (2, 24, 4096, 128)) -> bench_attention.Row:
        found = {"contender": contender, "mode": mode, "shape": list(shape), "hiding": "none", "dtype": "bfloat16"}
        return found | {"note": "", "median_ms": ms, "tflop_per_s": 600 / ms, "error_over_math": 1.5, "host_us": 40.0}

    rows = [row(OURS, "forward", 0.5), row(FUSED, "forward", 0.45), row(OURS, JVP, 1.5), row(COMPILED, JVP, 15.0)]
    rows += [row(OURS, VJP_OF_JVP, 2.0), row(MATH, VJP_OF_JVP, 10.0), row(OURS, VJP, 1.0), row(FUSED, VJP, 0.8)]
    figures = key_figures(rows, torch.device("cuda"))
    assert list(figures.values()) == [0, 1.5, 0.9, 0.8, 3.0, 400.0, "not measured", 10.0, 300.0, 5.0, 40.0]
    slow = [row(OURS, JVP, 3.0, (1, 8, 512, 64)), row(MATH, JVP, 2.0, (1, 8, 512, 64))]
    assert key_figures(slow, CPU)["our time over MATH's, largest, N >= 512 (target <= 1)"] == 1.5
    assert key_figures(slow, CPU)["rows over 1 (target none)"] == {"jvp N=512 none": 1.5}
    table = markdown(rows)
    assert "| 2, 24, 4096, 128 | none | jvp | 1.5 | 400 |" in table and table.count("\n") == 4 + 4


def test_the_plot_is_drawn() -> None:
    plt = pytest.importorskip("matplotlib.pyplot")
    figure = draw(rows_of("forward") + rows_of(JVP), plt)
    assert [axis.get_title() for axis in figure.axes] == list(MODES)
    plt.close(figure)


def test_the_important_shapes_come_first_and_compiled_ones_are_few() -> None:
    args = argparse.Namespace(shapes=(), quick=False, no_compile=False, modes=(), compile_modes=())
    todo = list(bench_attention.cases(torch.device("cuda"), args))
    assert len(todo) == 6 * 2 * len(MODES)
    assert {case.shape for case in todo if case.compiles} == {(2, 24, 4096, 128), (4, 16, 4096, 64)}
    assert [c.name for c in contenders(CPU, compiles=True)] == [OURS, FUSED, MATH, COMPILED]


def test_peak_memory_is_that_of_the_call() -> None:
    x = torch.ones(1000)

    def run() -> Tensor:
        return (x * 2) + (x * 3)

    assert peak_bytes(run, CPU) == 3 * 4000


def test_fused_attention_takes_no_matrix() -> None:
    q = torch.randn(1, 1, 256, 4)
    with sdpa_kernel(SDPBackend.MATH):
        assert peak_bytes(lambda: math(Hiding("none"))(q, q, q), CPU) >= 256 * 256 * 4
    assert peak_bytes(lambda: ops.scaled_dot_product_attention(q, q, q), CPU) < 256 * 256 * 4
