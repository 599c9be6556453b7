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

HEADINGS = ("op", "primal", "JVP", "VJP", "second order", "vmap", "dtypes")
LEGEND = (
    "cuda and cpu: devices with a kernel of their own. Everywhere else, and at every higher order, a formula in plain "
    "PyTorch is differentiated. Every op compiles into one graph (`fullgraph=True`)."
)
_SECOND = ("jvp.vjp", "vjp.jvp", "vjp.vjp")
_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "fp64": torch.float64}


def capability_rows() -> list[tuple[str, ...]]:
    """What every public op has at every point of its tower, read off the op.

    Returns:
        One row for all ops that have the same, in the order of ``HEADINGS``; the first cell names them.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, case in sorted(CASES.items()):
        points = case.op.points()
        capabilities = (
            *(_accelerated(points.get(path)) for path in ("", "jvp", "vjp")),
            _together([_accelerated(points.get(path)) for path in _SECOND]),
            _vmap(points),
            ", ".join(_dtypes(case)),
        )
        alike.setdefault(capabilities, []).append(name)
    return [(", ".join(names), *capabilities) for capabilities, names in alike.items()]


def _accelerated(op: DifferentiableOp | None) -> str:
    """The devices on which a point has a kernel."""
    devices = [] if op is None else sorted(op.kernel_devices(), key=lambda device: device == "cpu")
    return ", ".join(devices) or "formula"


def _together(cells: list[str]) -> str:
    """What several points have, said once if it is the same."""
    if len(set(cells)) == 1:
        return cells[0]
    return "; ".join(f"{path}: {cell}" for path, cell in zip(_SECOND, cells, strict=True))


def _vmap(points: dict[str, DifferentiableOp]) -> str:
    ruled = sum(op.vmap_rule is not None for op in points.values())
    if ruled == len(points):
        return "rule"
    return f"rule at {ruled} of {len(points)} points" if ruled else "formula"


def _dtypes(case: OpCase) -> list[str]:
    """The dtypes in which value and tangent of the first sample can be computed."""
    found = []
    for name, dtype in _DTYPES.items():
        args = [_cast(a, dtype) for a in case.samples[0].args]
        kwargs = {key: _cast(value, dtype) for key, value in case.samples[0].kwargs.items()}
        f = lambda x, rest=args[1:], options=kwargs: case.function(x, *rest, **options)  # noqa: E731
        try:
            torch.func.jvp(f, (args[0],), (args[0],))
        except TypeError:
            continue
        found.append(name)
    return found


def _cast(value: object, dtype: torch.dtype) -> object:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def capability_markdown() -> str:
    """The capability table as it stands in the README.

    Returns:
        A Markdown table under its legend.
    """
    lines = [LEGEND, "", "| " + " | ".join(HEADINGS) + " |", "|" + " --- |" * len(HEADINGS)]
    for names, *cells in capability_rows():
        quoted = ", ".join(f"`{name}`" for name in names.split(", "))
        lines.append("| " + " | ".join((quoted, *cells)) + " |")
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
    table = Table(title="capabilities", title_justify="left", caption=LEGEND, caption_justify="left", show_lines=True)
    for heading in HEADINGS:
        table.add_column(heading)
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
