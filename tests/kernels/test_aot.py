"""Every kernel variant of every family compiles, without a GPU, spills little and fits shared memory, for four GPUs."""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Iterable, Sequence
from types import ModuleType, SimpleNamespace

import pytest
import torch
from rich.console import Console

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET", "0") != "0":
    pytest.skip("TRITON_INTERPRET is set: interpreted kernels cannot be compiled", allow_module_level=True)

from torch_jvpvjp import triton_kernels
from torch_jvpvjp.testing.aot import SHARED_LIMIT, TARGETS, AotResult, aot_table, compile_ahead, targets_of
from torch_jvpvjp.triton_kernels import attention, axis_norm, norms
from torch_jvpvjp.triton_kernels._variants import Variant, variants_of
from torch_jvpvjp.triton_kernels.attention import config

# What a thread may spill: bytes (NVIDIA), registers (AMD). The 16 bytes are two addresses (24 are three) that ptxas
# keeps in local memory to stay at 32, 40, 48, 64, 72 or 128 registers and so fit one more program; no tile is ever
# spilled.
SPILL_BUDGET = {"sm_80": 16, "sm_90": 16, "sm_100": 24, "gfx942": 0}
# Attention's large tiles keep sums of whole heads in all registers that there are. Ceilings of what their kernels
# spill, so that a change that spills more is seen. On sm_90 value and tangents of 16 bits, heads of 64 and 128, spill
# nothing, but for tangents of heads of 128: on an H200 their tile is 5 % faster than the largest that spills nothing.
SPILLS_OF_ATTENTION = {"forward": 880, "rows": 1792, "columns": 3840, "bias": 96}
SPILLS_OF_TANGENTS_OF_128 = 200
LARGE_TILES = ("sm_90", "sm_100")
# Compiling a variant takes half a second for each target.
MOST_VARIANTS = 64
# So CI compiles every variant for one GPU of each vendor. NVIDIA's others share all but the last steps with sm_90: for
# these it compiles, of each kernel, so many variants, which need the most registers; `make test-all` compiles all.
EVERYWHERE = ("sm_90", "gfx942")
OTHERS = ("sm_80", "sm_100")
HARDEST = 4


def _families() -> dict[str, ModuleType]:
    """The modules and packages of kernels, by name."""
    names = sorted(m.name for m in pkgutil.iter_modules(triton_kernels.__path__) if not m.name.startswith("_"))
    return {name: importlib.import_module(f"{triton_kernels.__name__}.{name}") for name in names}


FAMILIES = _families()


@pytest.fixture(scope="module")
def variants(request: pytest.FixtureRequest) -> dict[str, list[Variant]]:
    """The variants of every family that is tested."""
    tested = {item.callspec.params["family"] for item in request.session.items if "[family-" in item.name}
    return {family: FAMILIES[family].aot_variants() for family in sorted(tested)}


@pytest.fixture(scope="module")
def everywhere(variants: dict[str, list[Variant]]) -> dict[str, list[list[AotResult]]]:
    """What the compilers made of every variant for one GPU of each vendor."""
    return _compiled(variants, EVERYWHERE)


@pytest.fixture(scope="module")
def hardest(
    variants: dict[str, list[Variant]], everywhere: dict[str, list[list[AotResult]]]
) -> dict[str, list[list[AotResult]]]:
    """What they made of the hardest variants for the other GPUs."""
    return _compiled({family: _hardest(found, everywhere[family]) for family, found in variants.items()}, OTHERS)


@pytest.fixture(scope="module")
def others(variants: dict[str, list[Variant]]) -> dict[str, list[list[AotResult]]]:
    """What they made of every variant for the other GPUs."""
    return _compiled(variants, OTHERS)


def _compiled(variants: dict[str, list[Variant]], targets: Sequence[str]) -> dict[str, list[list[AotResult]]]:
    """Results for each variant of each family; two processes share the work of all."""
    every = [variant for found in variants.values() for variant in found]
    results = iter(compile_ahead(every, targets, workers=2))
    return {
        family: [[next(results) for _ in targets_of(variant, targets)] for variant in found]
        for family, found in variants.items()
    }


def _hardest(variants: list[Variant], results: list[list[AotResult]]) -> list[Variant]:
    """Of each kernel, and set of targets, the variants that need the most registers: those that spill first."""

    def need(number: int) -> tuple[int, int]:
        return max(((result.spills, result.registers) for result in results[number]), default=(0, 0))

    groups: dict[tuple[str, ...], list[int]] = {}
    for number, variant in enumerate(variants):
        groups.setdefault((variant.name, *variant.targets), []).append(number)
    return [variants[i] for group in groups.values() for i in sorted(group, key=need, reverse=True)[:HARDEST]]


FAMILY = pytest.mark.parametrize("family", [pytest.param(name, id=f"family-{name}") for name in FAMILIES])


@pytest.mark.slow
@FAMILY
def test_every_variant_compiles_within_budget(
    family: str,
    everywhere: dict[str, list[list[AotResult]]],
    hardest: dict[str, list[list[AotResult]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    _judge(family, [*everywhere[family], *hardest[family]], capsys)


@pytest.mark.exhaustive
@FAMILY
def test_every_variant_compiles_for_the_other_targets_within_budget(
    family: str, others: dict[str, list[list[AotResult]]], capsys: pytest.CaptureFixture[str]
) -> None:
    _judge(family, others[family], capsys)


def _judge(family: str, by_variant: Iterable[list[AotResult]], capsys: pytest.CaptureFixture[str]) -> None:
    results = [result for found in by_variant for result in found]
    Console(width=200).print(aot_table(results))
    with capsys.disabled():
        Console(width=120).print(aot_table(_worst(results)))
    failures = [result for result in results if _fails(family, result)]
    assert not failures, f"{family}:\n" + "\n".join(map(str, failures))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_some_variants_but_not_too_many(family: str) -> None:
    variants = FAMILIES[family].aot_variants()
    for target in TARGETS:
        assert 0 < sum(bool(targets_of(variant, [target])) for variant in variants) <= MOST_VARIANTS


def test_no_target_is_forgotten() -> None:
    assert sorted((*EVERYWHERE, *OTHERS)) == sorted(TARGETS)


def test_variant_is_specialised_as_triton_would() -> None:
    x, w = torch.empty(1, 64, 1000, dtype=torch.float16, device="meta"), torch.empty(1, 1000, device="meta")
    (variant,) = variants_of([lambda: norms.norm_forward(x, w, None, norms.Norm(1e-6))])
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


def test_vectors_side_by_side_are_known_to_be_aligned() -> None:
    """An axis of one element has any stride; taken as it is, 1 hid that rows of 128 start at multiples of 16 bytes."""
    x = torch.empty(1, 512, 128, 1, dtype=torch.bfloat16, device="meta")
    (variant,) = variants_of([lambda: axis_norm.axis_norm(x, x, 1e-8, True, wants_y=True)])
    strides = {f"{name}_{axis}" for name in ("x", "v", "out") for axis in "kab"}
    assert strides <= set(variant.divisible)
    assert {name: dict(variant.constexprs).get(name) for name in ("x_n", "v_n", "out_n")} == dict.fromkeys(
        ("x_n", "v_n", "out_n"), 1
    )


@pytest.mark.parametrize(("n", "full"), [(1024, True), (1040, False), (1 << 17, False)])
def test_rows_that_fill_their_tile_are_compiled_without_masks(n: int, full: bool) -> None:  # noqa: FBT001
    x = torch.empty(1, 64, n, device="meta")
    (variant,) = variants_of([lambda: norms.norm_forward(x, None, None, norms.Norm(1e-6))])
    assert dict(variant.constexprs)["FULL"] is full


@pytest.mark.slow
def test_the_second_order_in_float32_of_large_heads_takes_the_shared_memory_that_devices_are_asked_for() -> None:
    heads, numbers = torch.empty(1, 2, 4, 256, 256, device="meta"), torch.empty(1, 2, 4, 256, device="meta")
    at, needs = attention.Operands(heads, heads, heads, None), attention.Operands(True, True, True, False)  # noqa: FBT003
    outputs = (heads, numbers, heads, numbers, heads, None, heads, None)
    calls = [lambda: attention.attention_second_order(at, at, *outputs, attention.Scores(1.0), needs, needs)]
    taken = {result.kernel: result.shared for result in compile_ahead(variants_of(calls), ["sm_80"])}
    assert max(taken.values()) == config.SHARED_OF_WIDE_SECOND_ORDER > SHARED_LIMIT["sm_80"]


@pytest.mark.parametrize(
    ("head", "dtype", "kib", "fits"),
    [
        (256, torch.float32, 99, False),
        (129, torch.float32, 99, False),
        (128, torch.float32, 99, True),
        (256, torch.bfloat16, 99, True),
        (256, torch.float32, 163, True),
    ],
)
def test_devices_are_asked_for_the_shared_memory_of_the_second_order(
    head: int,
    dtype: torch.dtype,
    kib: int,
    fits: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "_shared_memory", lambda device: kib << 10)
    assert config.second_order_fits(head, SimpleNamespace(dtype=dtype, is_cuda=True, device="cuda:0")) is fits  # type: ignore[arg-type]


def test_rows_and_groups_never_make_a_new_variant() -> None:
    def call(groups: int, rows: int) -> None:
        x, w = torch.empty(groups, rows, 512, device="meta"), torch.empty(1, 512, device="meta")
        norms.norm_vjp(x, x, w, None, norms.Norm(1e-6), (True, True, False))

    few = variants_of([lambda: call(1, 3 * 132)])
    assert variants_of([lambda: call(1, 100_003), lambda: call(1, 7 * 132), lambda: call(6, 4096)]) == few


def _fails(family: str, result: AotResult) -> bool:
    over = result.spills > _spill_budget(family, result) or result.shared > SHARED_LIMIT[result.target]
    return over or bool(result.error)


def _spill_budget(family: str, result: AotResult) -> int:
    if family != "attention" or result.target not in LARGE_TILES or result.kernel not in SPILLS_OF_ATTENTION:
        return SPILL_BUDGET[result.target]
    facts = ("HAS_BIAS=False", "PLAIN=True", "WIDE=False", "q:bf16")
    usual = result.kernel == "forward" and all(fact in result.variant for fact in facts)
    if result.target == "sm_90" and usual and any(f"DK={size}, " in result.variant for size in (64, 128)):
        has_faster_tile = "DK=128, " in result.variant and "TANGENTS=0" not in result.variant
        return SPILLS_OF_TANGENTS_OF_128 if has_faster_tile else 0
    return SPILLS_OF_ATTENTION[result.kernel]


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
