"""Jacobians by our plans against torch.func, torch.autograd, torch.compile, JAX and products written by hand.

python benchmarks/bench_jacobian.py [--only ID ...] [--quick] [--no-jax] [--no-compile] [--memory] [--strategies]

Every workload has a process of its own. Its contenders are checked against float64 first; those that are right are
timed in turn. A row holds all contenders of one workload in the JSON, which is written after every workload; the table
shows the best PyTorch peer, with its best chunk size.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import time
from pathlib import Path

import torch
from _environment import pick_device
from _jacobian_measure import Settings
from _jacobian_memory import draw_memory, memory_section
from _jacobian_processes import measured
from _jacobian_strategies import strategies_section
from _jacobian_summary import COLUMNS, draw, failing, failures, key_figures
from _jacobian_workloads import select
from _report import RESULTS, Report, Row


def main() -> int:
    """Measure, print, save.

    Returns:
        1 if a row of ours is wrong or raises, else 0.
    """
    args = _arguments()
    device = pick_device(args.device)
    if device is None:
        return 0
    torch.set_num_threads(args.threads)
    # JAX on the CPU is no peer of ours on a GPU.
    jax = not args.no_jax and device.type == "cpu" and importlib.util.find_spec("jax") is not None
    # Sections alone are no measurement of the workloads, and must not stand in the place of one.
    report = Report("jacobian-sections" if args.sections_only else "jacobian", device)
    report.environment["jax"] = importlib.metadata.version("jax") if jax else None
    report.notes.append(_conditions(args, jax))
    start = time.monotonic()
    if args.strategies:
        strategies_section(report, select(args.only, args.quick), args.seconds)
    if not args.sections_only:
        _workloads(args, report, jax, start)
        report.show(COLUMNS)
        report.save(args.results)  # whatever becomes of what follows
    if args.memory:
        memory_section(report, args.quick)
    report.extra["seconds"] = time.monotonic() - start
    path = report.save(args.results)
    if report.rows:
        report.plot(path, lambda plt: draw(report.rows, plt))
    elif "memory" in report.extra:
        report.plot(path, lambda plt: draw_memory(report.extra["memory"], plt))
    return int(failing(report.rows))


def _workloads(args: argparse.Namespace, report: Report, jax: bool, start: float) -> None:
    """Measure the workloads until the time is used up, and save after each."""
    settings = Settings(
        report.device,
        args.seconds,
        compile_seconds=args.compile_seconds,
        plan_seconds=args.plan_seconds,
        compile_ops=args.compile_ops,
        compiled=not args.no_compile,
        compiled_peers=not args.no_compiled_peers,
        everything=args.all,
    )
    cases = select(args.only, args.quick)
    rows = _rows_before(report, args.results) if args.more else {}
    if not args.only:
        cases = [case for case in cases if case.id not in rows]
    notes, figures = list(report.notes), dict(report.key_figures)
    for done, case in enumerate(cases):
        spent = time.monotonic() - start
        if spent >= args.budget_seconds:
            notes.append(
                f"time budget of {args.budget_seconds:g} s used up: {len(cases) - done} of {len(cases)} workloads not "
                f"measured, from {case.id} on"
            )
            break
        print(f"[{spent:5.0f} s] {case.id}", flush=True)
        rows[case.id] = measured(case.id, settings, jax=jax, threads=args.threads)
        report.rows = [rows[case.id] for case in select(None) if case.id in rows]
        report.key_figures = figures | key_figures(report.rows)
        report.notes = notes + failures(report.rows)
        report.extra["seconds"] = time.monotonic() - start
        report.save(args.results, quietly=True)
    report.notes = notes + failures(report.rows)


def _rows_before(report: Report, folder: Path) -> dict[str, Row]:
    """The rows that the results file holds, if it is of the same code and machine.

    Args:
        report: What is measured now.
        folder: Where the file is.

    Returns:
        The rows by workload.

    Raises:
        SystemExit: If the file is of other code, or of another machine.
    """
    path = report.path(folder)
    if not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))
    there, here = ({k: v for k, v in e.items() if k != "date"} for e in (before["environment"], report.environment))
    if there != here:
        raise SystemExit(f"--more adds to results of the same code and machine, got {there} in {path}")
    return {row["workload"]: row for row in before["rows"]}


def _conditions(args: argparse.Namespace, jax: bool) -> str:
    absent = "JAX left out" if args.no_jax or args.device == "cuda" else "JAX is not installed"
    return f"{torch.get_num_threads()} thread(s); {'JAX on the CPU under the same limit' if jax else absent}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU, else cpu")
    parser.add_argument("--only", nargs="+", metavar="ID", help="these workloads")
    parser.add_argument("--quick", action="store_true", help="few workloads, nothing compiled by the peers")
    parser.add_argument("--no-jax", action="store_true", help="leave JAX out")
    parser.add_argument("--no-compile", action="store_true", help="compile nothing, our plans neither")
    parser.add_argument("--no-compiled-peers", action="store_true", help="compile our plans only")
    parser.add_argument("--all", action="store_true", help="compile peers that are known to be long or hopeless too")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; JAX is kept to one where this is 1")
    parser.add_argument("--seconds", type=float, help="timing of one workload; default 10, 3 with --quick")
    parser.add_argument("--compile-seconds", type=float, default=120.0, help="for one compilation")
    parser.add_argument("--plan-seconds", type=float, default=60.0, help="for a plan of ours and its first calls")
    parser.add_argument("--compile-ops", type=int, default=400, help="peers compile no function of more ops")
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="add no workload after this time")
    parser.add_argument(
        "--more",
        action="store_true",
        help="add to an earlier run of the same code: what is not in its results, or --only",
    )
    parser.add_argument("--strategies", action="store_true", help="also: every strategy's plan timed over the chains")
    parser.add_argument("--memory", action="store_true", help="also: predicted and measured peaks, in subprocesses")
    parser.add_argument("--sections-only", action="store_true", help="only what --strategies and --memory add")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file and the plot")
    args = parser.parse_args()
    if args.device is None:
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.seconds is None:
        args.seconds = 3.0 if args.quick else 10.0
    args.no_compile |= args.quick
    try:
        select(args.only)
    except ValueError as error:
        parser.error(str(error))
    return args


if __name__ == "__main__":
    raise SystemExit(main())
