"""Peak memory of a Jacobian, predicted and measured, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _report import Column, Report, Row, number

WORKER = Path(__file__).resolve().parent / "_jacobian_memory_worker.py"
ADDRESS_SPACE = 20 << 30  # no process may ask for more, so that none takes the machine down
SPARE = 2 << 30  # what a process must leave of the memory that is free
PREDICTION = 1.25  # measured over predicted, at most
EXCEEDED, ALLOWED = 8 << 30, 2 << 30  # bytes that jacrev exceeds where we stay within the second
SECONDS = 900.0
MEMORY_LIMIT = "memory_limit"


@dataclass(frozen=True)
class Task:
    """One process.

    Attributes:
        workload: A key of the worker's table.
        contender: "plan", or a peer.
        options: Of `tj.plan_jacobian`.
    """

    workload: str
    contender: str = "plan"
    options: tuple[tuple[str, Any], ...] = ()


CLAIM = "image-autoencoder"
PREDICTED: tuple[Task, ...] = (
    Task("wide-autoencoder"),
    Task("wide-funnel"),
    Task("deep-hourglass"),
    Task("batch-of-networks"),
    Task(CLAIM),
    Task(CLAIM, options=((MEMORY_LIMIT, 1 << 30),)),
    Task("wide-autoencoder", options=((MEMORY_LIMIT, 256 << 20),)),
)
CLAIMED: tuple[Task, ...] = (Task(CLAIM, "jacrev"), Task(CLAIM, "jacfwd"))


def memory_section(report: Report, quick: bool) -> None:
    """Measure peaks, print a table and add it to the report.

    Args:
        report: It gains the entry "memory" and key figures.
        quick: Whether to leave out the case that needs several gigabytes.
    """
    if report.device.type != "cpu":
        report.notes.append("memory: measured on the CPU only")
        return
    tasks = [t for t in (*PREDICTED, *CLAIMED) if not quick or t.workload != CLAIM]
    rows = []
    for task in tasks:
        rows.append(run(task))
        print(f"memory: {task.workload}, {task.contender}", flush=True)
    section = Report("memory", report.device, rows, key_figures(rows))
    section.notes = [f"{r['workload']}, {r['contender']}: {r['note']}" for r in rows if r.get("note")]
    section.show(_COLUMNS)
    report.extra["memory"] = rows
    report.key_figures |= section.key_figures
    report.notes += section.notes


def run(task: Task, *, small: bool = False) -> Row:
    """One task in a process of its own, under a limit of its address space.

    Args:
        task: The task.
        small: Whether at a size that a test can afford.

    Returns:
        Its row: predicted and measured bytes, or a note.
    """
    row: Row = {"workload": task.workload, "contender": task.contender, "options": dict(task.options)}
    limit = min(ADDRESS_SPACE, max(_available() - SPARE, 1 << 30))
    request = row | {"address_space": limit, "small": small}
    root = str(WORKER.parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    # One arena, and large blocks given back at once: what is measured is what the plan holds.
    environment = os.environ | {"PYTHONPATH": path, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    try:
        done = subprocess.run(
            [sys.executable, str(WORKER), json.dumps(request)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return row | {"note": f"not measured: longer than {SECONDS:g} s"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return row | {"limit_bytes": limit, "note": f"raises within {_gigabytes(limit)} GB: {last[:160]}"}
    return row | json.loads(done.stdout.strip().splitlines()[-1])


def key_figures(rows: Sequence[Row]) -> Row:
    """The two targets.

    Args:
        rows: Of the section.

    Returns:
        Figures by the sentence that states the target.
    """
    return {
        f"measured peak of a first call / predicted, worst (target <= {PREDICTION:g})": _worst(rows, "first_bytes"),
        f"measured peak of a later call / predicted, worst (target <= {PREDICTION:g})": _worst(rows, "later_bytes"),
        "a Jacobian that takes jacrev over 8 GB, ours within 2 GB": _claim(rows),
    }


def draw_memory(rows: Sequence[Row], plt: Any) -> Any:
    """Predicted and measured peaks, by workload, on a logarithmic axis.

    Args:
        rows: Of the section.
        plt: ``matplotlib.pyplot``.

    Returns:
        The figure.
    """
    marks = {
        "predicted_bytes": ("|", "predicted"),
        "first_bytes": ("o", "first call"),
        "later_bytes": ("v", "later call"),
    }
    figure, axis = plt.subplots(figsize=(10, 1.8 + 0.32 * len(rows)))
    for key, (mark, label) in marks.items():
        points = [(row[key] / (1 << 20), place) for place, row in enumerate(rows) if row.get(key)]
        if points:
            axis.plot(*zip(*points, strict=True), mark, label=label, markersize=9, alpha=0.8)
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [f"{row['workload']}, {row['contender']}{_options(row)}" for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel("most memory held beyond what was there before, MiB")
    axis.grid(axis="x", alpha=0.3)
    axis.legend()
    figure.tight_layout()
    return figure


def _worst(rows: Sequence[Row], which: str) -> str:
    plans = [r for r in rows if r["contender"] == "plan"]
    ratios = {f"{r['workload']}{_options(r)}": r[which] / r["predicted_bytes"] for r in plans if which in r}
    if not ratios:
        return "not measured"
    over = [f"{w} {number(v)}" for w, v in ratios.items() if v > PREDICTION]
    worst = max(ratios, key=lambda w: ratios[w])
    verdict = f"FAIL: {', '.join(over)}" if over else "pass" if len(ratios) == len(plans) else "incomplete"
    return f"{number(ratios[worst])} on {worst}: {verdict}"


def _claim(rows: Sequence[Row]) -> str:
    peer = next((r for r in rows if r["workload"] == CLAIM and r["contender"] == "jacrev"), None)
    plan = next((r for r in rows if r["workload"] == CLAIM and r["contender"] == "plan" and not r["options"]), None)
    if peer is None or plan is None or "measured_bytes" not in plan:
        return "not measured"
    # A process that was refused memory had asked for more than its limit.
    theirs = peer.get("measured_bytes", peer.get("limit_bytes", 0))
    passed = theirs > EXCEEDED and plan["measured_bytes"] <= ALLOWED
    more = "" if "measured_bytes" in peer else "more than "
    return (
        f"{CLAIM}: jacrev {more}{_gigabytes(theirs)} GB, ours {_gigabytes(plan['measured_bytes'])} GB: "
        f"{'pass' if passed else 'FAIL'}"
    )


def _available() -> int:
    """Bytes of memory that are free on this machine, as Linux tells."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])
    return ADDRESS_SPACE + SPARE


def _gigabytes(size: int) -> str:
    return f"{size / (1 << 30):.2f}"


def _megabytes(size: int | None) -> str:
    return "-" if size is None else f"{size / (1 << 20):.0f}"


def _options(row: Row) -> str:
    return "".join(f", {name}={_megabytes(value)} MB" for name, value in row["options"].items())


_COLUMNS: tuple[Column, ...] = (
    ("workload", lambda r: r["workload"]),
    ("contender", lambda r: r["contender"] + _options(r)),
    ("Jacobian MB", lambda r: _megabytes(r.get("jacobian_bytes"))),
    ("predicted MB", lambda r: _megabytes(r.get("predicted_bytes"))),
    ("first call MB", lambda r: _megabytes(r.get("first_bytes"))),
    ("later call MB", lambda r: _megabytes(r.get("later_bytes"))),
    ("measured / predicted", lambda r: number(r.get("ratio"))),
    ("s", lambda r: number(r.get("seconds"))),
)
