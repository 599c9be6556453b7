"""The command `calibrate`: measure the device that `objective="time"` plans for."""

import argparse
import sys

import torch
from rich.console import Console
from rich.table import Table

from ..accumulation.timing import DeviceModel, calibrate_device
from ..accumulation.timing.store import path_of

DTYPES = ("float32", "float64", "bfloat16", "float16")
_SIDES = (1, 4, 16, 64, 256)


def add_calibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command ``calibrate`` to a parser."""
    parser.add_argument("--device", help="what to measure (default: PyTorch's default device)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="in what dtype (default float32)")
    parser.add_argument("--refresh", action="store_true", help="measure anew even if there is a stored result")


def run_calibrate(args: argparse.Namespace) -> int:
    """Run the command ``calibrate``.

    Args:
        args: What a parser with ``add_calibrate_arguments`` parsed.

    Returns:
        0, or 2 after a message on stderr if the device is not there.
    """
    try:
        model = calibrate_device(args.device, getattr(torch, args.dtype), refresh=args.refresh)
    except (ValueError, RuntimeError, AssertionError) as error:  # AssertionError: PyTorch was built without CUDA
        print(f"calibrate: error: {error}", file=sys.stderr)
        return 2
    console = Console(width=None if Console().is_terminal else 110)
    console.print(_table(model))
    path = path_of(model.key)
    kept = f"kept in {path}" if path.exists() else f"not kept: {path.parent} cannot be written to"
    console.print(f"launch {model.launch * 1e6:.2f} µs; {kept}", soft_wrap=True, markup=False, highlight=False)
    return 0


def _table(model: DeviceModel) -> Table:
    title = f"{model.device}, {model.dtype}, {model.threads} thread(s), PyTorch {model.torch}: {model.source}"
    table = Table(title=title, title_justify="left")
    table.add_column("Gfma/s")
    for side in _SIDES:
        table.add_column(str(side), justify="right")
    for name, curve in (
        ("product of so many rows", model.gemm_rows),
        ("product over so many", model.gemm_inner),
        ("product of so many columns", model.gemm_columns),
        ("pushforward of so many tangents", model.push),
        ("pullback of so many cotangents", model.pull),
    ):
        table.add_row(name, *(f"{curve.at(side) / 1e9:,.1f}" for side in _SIDES))
    return table
