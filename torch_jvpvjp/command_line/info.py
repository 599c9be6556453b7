"""The command ``info``: versions, devices, and the capabilities that the ops themselves declare."""

import argparse
import importlib.metadata
import platform

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .._version import __version__
from ..registration import DifferentiableOp
from ..testing.cases import CASES, OpCase

HEADINGS = ("op", "primal", "JVP", "VJP", "second order", "higher orders", "vmap", "compile", "dtypes")
_SECOND = ("jvp.vjp", "vjp.jvp", "vjp.vjp")


def capability_rows() -> list[tuple[str, ...]]:
    """What every public op has at every point of its tower, read off the op.

    Returns:
        One row per op, in the order of ``HEADINGS``.
    """
    rows = []
    for name, case in sorted(CASES.items()):
        points = case.op.points()
        second = [_accelerated(points.get(path)) for path in _SECOND]
        rows.append((
            name,
            _accelerated(case.op),
            _accelerated(points.get("jvp")),
            _accelerated(points.get("vjp")),
            second[0] if len(set(second)) == 1 else "; ".join(second),
            "formula",
            _vmap(points),
            "fullgraph",
            ", ".join(_dtypes(case)),
        ))
    return rows


def _accelerated(op: DifferentiableOp | None) -> str:
    """How a point is computed: by a kernel on some devices and a formula elsewhere, or by the formula alone."""
    if op is None:
        return "formula"
    devices = sorted(op.kernel_devices(), key=lambda device: device == "cpu")
    return f"kernel ({', '.join(devices)}), formula" if devices else "formula"


def _vmap(points: dict[str, DifferentiableOp]) -> str:
    ruled = sum(op.vmap_rule is not None for op in points.values())
    return f"rule at {ruled} of {len(points)} points" if ruled else "formula"


def _dtypes(case: OpCase) -> list[str]:
    """The dtypes in which value and tangent of the first sample can be computed."""
    found = []
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        args = [a.to(dtype) if isinstance(a, torch.Tensor) else a for a in case.samples[0].args]
        try:
            torch.func.jvp(lambda x, rest=args[1:]: case.function(x, *rest), (args[0],), (args[0],))
        except TypeError:
            continue
        found.append({"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}[str(dtype)[6:]])
    return found


def capability_markdown() -> str:
    """The capability table as it stands in the README.

    Returns:
        A Markdown table.
    """
    lines = ["| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    lines += ["| " + " | ".join((f"`{row[0]}`", *row[1:])) + " |" for row in capability_rows()]
    return "\n".join(lines)


def run_info(args: argparse.Namespace) -> int:
    """Run the command ``info``.

    Args:
        args: ``markdown`` prints the capability table alone.

    Returns:
        0.
    """
    if args.markdown:
        print(capability_markdown())
        return 0
    console = Console(width=None if Console().is_terminal else 150)
    versions = Table(title="versions and devices", title_justify="left", show_header=False)
    for name, value in _versions():
        versions.add_row(name, escape(value))
    console.print(versions)
    table = Table(title="capabilities (a formula is plain PyTorch: right on every device)", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in capability_rows():
        table.add_row(*map(escape, row))
    console.print(table)
    return 0


def _versions() -> list[tuple[str, str]]:
    rows = [("torch_jvpvjp", __version__), ("Python", platform.python_version()), ("PyTorch", torch.__version__)]
    try:
        rows.append(("Triton", importlib.metadata.version("triton")))
    except importlib.metadata.PackageNotFoundError:
        rows.append(("Triton", "not installed: every op runs its formula"))
    rows.append(("CPU", f"{platform.machine()}, {torch.get_num_threads()} thread(s)"))
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows.append((f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    if not torch.cuda.is_available():
        rows.append(("GPU", "none: CPU tensors take the formulas and CPU kernels"))
    return rows
