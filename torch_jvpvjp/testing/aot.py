"""Compile kernel variants for GPUs that are not there, and read their registers, spills and shared memory."""

from __future__ import annotations

import importlib
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton
from rich.table import Table
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

if TYPE_CHECKING:
    from torch_jvpvjp.triton_kernels._variants import Variant

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Bytes of shared memory that one program may have; sm_80 has 163 KiB, but 8.6, 8.9 and 12.0 are given what it is given.
SHARED_LIMIT = {"sm_80": 99 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}


TENSOR_MEMORY = 512  # columns of 128 lanes, on sm_100
_TABLE = r"\.local[^;]*__local_depot\d+\[(\d+)\]"  # its declaration and its bytes, which ptxas rounds up to whole units
_LOCAL_UNIT = 8


@dataclass(frozen=True)
class AotResult:
    """What a compiler made of one variant for one target.

    Attributes:
        kernel: The kernel's name.
        variant: Dtypes and tiling.
        target: A key of `TARGETS`.
        registers: 32-bit registers of a thread.
        spills: Bytes of local memory of a thread without declared tables (NVIDIA), or spilled vector registers (AMD).
        shared: Bytes of shared memory of a program.
        error: What the compiler said, empty if it succeeded.
    """

    kernel: str
    variant: str
    target: str
    registers: int = 0
    spills: int = 0
    shared: int = 0
    error: str = ""


def compile_ahead(
    variants: Iterable[Variant], targets: Sequence[str] = tuple(TARGETS), workers: int = 1
) -> list[AotResult]:
    """Compile every variant for every target. Needs neither GPU nor driver, but a process without TRITON_INTERPRET.

    Args:
        variants: What to compile.
        targets: Keys of `TARGETS`.
        workers: Processes to compile in; above one they are spawned, so a script needs its `__main__` guard.

    Returns:
        One result per variant and target that it is for, variants outermost; a failure is a result with its `error`.
    """
    jobs = [(_portable(variant), target) for variant in variants for target in targets_of(variant, targets)]
    if workers == 1:
        return [_compile(*job) for job in jobs]
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_compile, *zip(*jobs, strict=True), chunksize=8))


def targets_of(variant: Variant, targets: Sequence[str] = tuple(TARGETS)) -> list[str]:
    """Those targets that a variant is for.

    Args:
        variant: The variant.
        targets: Keys of `TARGETS`.

    Returns:
        All of them, unless it names some.
    """
    return [target for target in targets if not variant.targets or target in variant.targets]


def aot_table(results: Iterable[AotResult]) -> Table:
    """Lay out results as a table for `rich.print`.

    Args:
        results: What `compile_ahead` returned.

    Returns:
        One row per variant, one column per target with registers / spills / shared memory.
    """
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for result in results:
        cell = "error" if result.error else f"{result.registers} / {result.spills} / {result.shared}"
        rows.setdefault((result.kernel, result.variant), {})[result.target] = cell
    targets = list(dict.fromkeys(target for row in rows.values() for target in row))
    table = Table("kernel", "variant", *targets, title="registers / spills / shared bytes")
    for (kernel, variant), row in rows.items():
        table.add_row(kernel, variant, *(row.get(target, "") for target in targets))
    return table


def _portable(variant: Variant) -> Variant:
    """Return the variant with its kernel named instead of held, so that it can travel to another process."""
    return replace(variant, kernel=(variant.kernel.fn.__module__, variant.kernel.fn.__name__, variant.name))


def _compile(variant: Variant, target: str) -> AotResult:
    module, attribute, name = variant.kernel
    kernel = getattr(importlib.import_module(module), attribute)
    result = AotResult(name, variant.label, target)
    position = {parameter: (i,) for i, (parameter, _) in enumerate(variant.signature)}
    source = ASTSource(
        fn=kernel,
        signature=dict(variant.signature),
        constexprs={position[parameter]: value for parameter, value in variant.constexprs},
        attrs={position[parameter]: [["tt.divisibility", 16]] for parameter in variant.divisible},
    )
    try:
        compiled: Any = triton.compile(source, target=TARGETS[target], options=dict(variant.options))
    except Exception as error:  # whatever the compiler raises is the result
        return replace(result, error=f"{type(error).__name__}: {error}")
    registers, spills = _amd_usage(compiled) if "amdgcn" in compiled.asm else _nvidia_usage(compiled)
    # Triton compiles what needs more tensor memory to an empty kernel, which it refuses to load.
    columns = getattr(compiled.metadata, "tmem_size", None) or 0
    error = f"needs {columns} columns of tensor memory, {TENSOR_MEMORY} are there" if columns > TENSOR_MEMORY else ""
    return replace(result, registers=registers, spills=spills, shared=compiled.metadata.shared, error=error)


def _nvidia_usage(compiled: Any) -> tuple[int, int]:
    """Return registers and bytes of local memory that were spilled, from the cubin.

    A function of CUDA's library may declare a table there, as the sine of large numbers does, which some compilers
    keep in registers: that is no spill.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    tables = sum(-(-int(size) // _LOCAL_UNIT) * _LOCAL_UNIT for size in re.findall(_TABLE, compiled.asm["ptx"]))
    return usage["REG"], max(0, usage["STACK"] + usage["LOCAL"] - tables)


def _amd_usage(compiled: Any) -> tuple[int, int]:
    """Return vector registers and those spilled, from the metadata at the end of the assembly."""
    text = compiled.asm["amdgcn"]
    return tuple(int(re.findall(rf"\.{key}:\s+(\d+)", text)[-1]) for key in ("vgpr_count", "vgpr_spill_count"))  # pyright: ignore[reportReturnType]
