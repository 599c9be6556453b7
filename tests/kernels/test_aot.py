"""Every kernel variant compiles for every target, without a GPU, spills nothing and fits the shared memory."""

from __future__ import annotations

import os

import pytest
import torch
from rich.console import Console

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("TRITON_INTERPRET is set: interpreted kernels cannot be compiled", allow_module_level=True)

from torch_jvpvjp.testing.aot import SHARED_LIMIT, AotResult, aot_table, compile_ahead
from torch_jvpvjp.triton_kernels import rms_norm
from torch_jvpvjp.triton_kernels._variants import variants_of

# What a thread may spill: bytes (NVIDIA), registers (AMD). The 16 bytes are two addresses that ptxas keeps in local
# memory to stay at 32, 40, 48, 64 or 128 registers and so fit one more program; no tile is ever spilled.
SPILL_BUDGET = {"sm_80": 16, "sm_90": 16, "sm_100": 16, "gfx942": 0}


@pytest.mark.slow
def test_every_variant_compiles_within_budget(capsys: pytest.CaptureFixture[str]) -> None:
    results = compile_ahead(rms_norm.aot_variants(), workers=2)
    console = Console(width=200)
    console.print(aot_table(results))
    with capsys.disabled():
        Console(width=120).print(aot_table(_worst(results)))
    failures = [result for result in results if _fails(result)]
    assert not failures, "\n".join(map(str, failures))


def test_variant_is_specialised_as_triton_would() -> None:
    x, w = torch.empty(1, 64, 1000, dtype=torch.float16, device="meta"), torch.empty(1, 1000, device="meta")
    (variant,) = variants_of([lambda: rms_norm.rms_norm_forward(x, w, 1e-6)])
    signature, constexprs = dict(variant.signature), dict(variant.constexprs)
    assert variant.name == "forward"
    assert (signature["x_ptr"], signature["w_ptr"], signature["n"], signature["eps"]) == (
        "*fp16",
        "*fp32",
        "i32",
        "fp64",
    )
    assert constexprs["BLOCK_N"] == 1024
    assert {"x_ptr", "w_ptr", "y_ptr"} <= set(variant.divisible) and "n" not in variant.divisible


def test_rows_and_groups_never_make_a_new_variant() -> None:
    def call(groups: int, rows: int) -> None:
        x, w = torch.empty(groups, rows, 512, device="meta"), torch.empty(1, 512, device="meta")
        rms_norm.rms_norm_vjp(x, x, w, 1e-6, True, True)

    few = variants_of([lambda: call(1, 3 * 132)])
    assert variants_of([lambda: call(1, 100_003), lambda: call(1, 7 * 132), lambda: call(6, 4096)]) == few


def _fails(result: AotResult) -> bool:
    over = result.spills > SPILL_BUDGET[result.target] or result.shared > SHARED_LIMIT[result.target]
    return over or bool(result.error)


def _worst(results: list[AotResult]) -> list[AotResult]:
    """The largest of each number by kernel and target."""
    groups: dict[tuple[str, str], list[AotResult]] = {}
    for result in results:
        groups.setdefault((result.kernel, result.target), []).append(result)
    return [
        AotResult(
            kernel,
            f"worst of {len(group)}",
            target,
            max(result.registers for result in group),
            max(result.spills for result in group),
            max(result.shared for result in group),
            next((result.error for result in group if result.error), ""),
        )
        for (kernel, target), group in groups.items()
    ]
