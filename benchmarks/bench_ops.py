"""Every op and its derivatives against the native function it replaces, eager and compiled.

python benchmarks/bench_ops.py [--device cuda|cpu] [--ops gelu,softmax] [--seconds 2] [--compile-modes jvp]

On a CPU the kernels are PyTorch's own, and what counts is the ratio to native code; on a GPU the share of a copy.
"""

import argparse
import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _environment import pick_device
from _op_operations import FIRST_ORDER, JVP, OPERATIONS, Directions, Operation, directions
from _op_workloads import TensorFunction, Workload, workloads
from _report import RESULTS, Column, Report, Row, number, problem
from _timing import Timing, copy_bandwidth, time_interleaved
from torch import Tensor

from torch_jvpvjp.testing.budget import NEIGHBOURS

# Elements of the largest tensor: in bfloat16 a pointwise forward then moves 268 MB; on a CPU, 1 MB of float32.
ELEMENTS = {"cuda": 1 << 26, "cpu": 1 << 18}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
OURS, NATIVE, COMPILED = "ours", "native", "compiled native"
RATIO_TARGET = 1.1  # ours to native on a CPU and to compiled native code on a GPU, first order
SHARE_TARGET = 85.0  # percent of a copy's bandwidth, first order on a GPU
COMPUTE_BOUND = ("linear", "linear_cross_entropy", "scaled_dot_product_attention", "attention_jvp", "varlen_attention")
FEW = 64  # numbers of a result that are too few for their error to be typical
COMPILE_SHARE = 0.8  # of the time that an op may take: nothing more is compiled after it


def measure(
    workload: Workload, operation: Operation, device: torch.device, elements: Directions, seconds: float, compiles: bool
) -> list[Row]:
    """Check the contenders of one operation, then time those that are right, interleaved.

    Args:
        workload: The op and its arguments.
        operation: The operation.
        device: Where.
        elements: The point and directions.
        seconds: For the timing of all contenders.
        compiles: Whether the native function is compiled too.

    Returns:
        One row per contender, also for those that are wrong or raise.
    """
    functions = workload.functions(device)
    eager = lambda f: f  # noqa: E731
    contenders: dict[str, tuple[TensorFunction, Callable[..., Any]]] = {
        OURS: (functions["ours"], eager),
        NATIVE: (functions["native"], eager),
    }
    if compiles:
        contenders[COMPILED] = (functions["native"], _compiler)
    exact = [t.detach() for t in operation.prepare(functions["reference"], elements.double(), eager)()]
    budgets = _budgets(operation, functions, elements, exact)
    runs: dict[str, Callable[[], object]] = {}
    rows: list[Row] = []
    for name, (function, compiler) in contenders.items():
        row: Row = {
            "op": workload.op,
            "mode": operation.name,
            "shapes": [list(s) for s in workload.shapes],
            "dtype": str(elements.primals[0].dtype).removeprefix("torch."),
            "contender": name,
            "native": workload.native_name,
            "note": "",
        }
        rows.append(row)
        try:
            run = operation.prepare(function, elements, compiler)
            row["error_over_budget"] = error = _error(run(), exact, budgets)
            if error > 1:
                row["note"] = f"wrong: error is {number(error)} times the budget"
                del row["error_over_budget"]
            if error <= 1 or name != OURS:  # a wrong contender is timed all the same, and the note says so
                runs[name] = run
        except Exception as failure:
            row["note"] = f"raises: {problem(failure)}"
    del exact
    size = operation.bytes_moved(elements, workload.constants(device))
    # On a CPU one thread works, and its own time is not disturbed by what else the machine does.
    _fill(rows, time_interleaved(runs, device, seconds, clock=time.thread_time), size)
    torch.compiler.reset()
    return rows


def _compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def _budgets(
    operation: Operation, functions: dict[str, TensorFunction], at: Directions, exact: Sequence[Tensor]
) -> list[float]:
    """2 · (err + eps · max|y₆₄|), err that of native code or the reference in that dtype, whichever is greater."""
    own = [0.0 for _ in exact]
    few = any(0 < t.numel() <= FEW for t in exact)  # such as a sum over all, which may be right by luck: look around
    for factor in NEIGHBOURS if few else NEIGHBOURS[:1]:
        near = at if factor == 1.0 else at.scaled(factor)
        judge = exact if factor == 1.0 else operation.prepare(functions["reference"], near.double(), lambda f: f)()
        for name in ("native", "reference"):
            try:
                low = operation.prepare(functions[name], near, lambda f: f)()
                errors = [_distance(a, b) for a, b in zip(low, judge, strict=True)]
            except Exception:  # its own row says so
                continue
            own = [max(e, o) if math.isfinite(e) else o for e, o in zip(errors, own, strict=True)]
    eps = torch.finfo(at.primals[0].dtype).eps
    largest = [float(t.abs().max()) if t.numel() else 0.0 for t in exact]
    return [2 * (error + eps * scale) for error, scale in zip(own, largest, strict=True)]


def _error(results: object, exact: Sequence[Tensor], budgets: Sequence[float]) -> float:
    """The worst error over its budget; infinite where there is NaN or another shape."""
    assert isinstance(results, tuple | list)
    errors = [_distance(a, b) for a, b in zip(results, exact, strict=True)]
    return max(e / b if b > 0 else (math.inf if e > 0 else 0.0) for e, b in zip(errors, budgets, strict=True))


def _distance(actual: Tensor, exact: Tensor) -> float:
    if actual.shape != exact.shape:
        return math.inf
    distance = (actual.detach().double() - exact).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return float(distance.max()) if distance.numel() else 0.0


def _fill(rows: Sequence[Row], timings: dict[str, Timing], size: int) -> None:
    """Add times and what follows from them."""
    for row in rows:
        timing = timings.get(row["contender"])
        if timing is None:
            continue
        row |= {
            "median_ms": timing.median_ms,
            "p20_ms": timing.p20_ms,
            "p80_ms": timing.p80_ms,
            "repeats": timing.repeats,
            "host_us": timing.host_us,
            "bytes": size,
            "gb_per_s": size / (1e-3 * timing.median_ms) / 1e9,
        }
        for other in (NATIVE, COMPILED):
            if other in timings and other != row["contender"]:
                row[f"time_over_{other.replace(' ', '_')}"] = timing.median_ms / timings[other].median_ms


COLUMNS: tuple[Column, ...] = (
    ("op", lambda r: r["op"]),
    ("mode", lambda r: r["mode"]),
    ("shapes", lambda r: " ".join("x".join(map(str, s)) for s in r["shapes"][:2])),
    ("contender", lambda r: r["native"] if r["contender"] == NATIVE else r["contender"]),
    ("median ms", lambda r: number(r.get("median_ms"))),
    ("p20-p80 ms", lambda r: f"{number(r['p20_ms'])}-{number(r['p80_ms'])}" if "p20_ms" in r else ""),
    ("GB/s", lambda r: number(r.get("gb_per_s"))),
    ("% of copy", lambda r: number(r.get("percent_of_copy"))),
    ("/ native", lambda r: number(r.get("time_over_native"))),
    ("/ compiled", lambda r: number(r.get("time_over_compiled_native"))),
    ("error / budget", lambda r: number(r.get("error_over_budget"))),
    ("note", lambda r: r["note"]),
)


def markdown(rows: Sequence[Row]) -> str:
    """One line per op: the time of native code over ours, eager and compiled, and our share of a copy.

    Args:
        rows: All rows.

    Returns:
        A Markdown table.
    """
    ours = {(r["op"], r["mode"]): r for r in rows if r["contender"] == OURS}
    lines = ["| op | " + " | ".join(OPERATIONS) + " |", "|" + " --- |" * (1 + len(OPERATIONS))]
    for op in dict.fromkeys(r["op"] for r in rows):
        cells = [_cell(ours.get((op, mode), {})) for mode in OPERATIONS]
        lines.append(f"| `{op}` | " + " | ".join(cells) + " |")
    return "\n".join([
        "How many times as fast as native code, and as compiled native code; share of a copy's bandwidth.",
        "",
        *lines,
        "",
    ])


def _cell(row: Row) -> str:
    if "median_ms" not in row:
        return "not measured" if not row else "wrong or raises"
    faster = [1 / row[k] for k in ("time_over_native", "time_over_compiled_native") if k in row]
    return "; ".join([*(f"{number(f)}x" for f in faster), f"{number(row.get('percent_of_copy'))} %"])


def key_figures(rows: Sequence[Row], device: torch.device) -> Row:
    """What has a target.

    Args:
        rows: All rows.
        device: Where they were measured.

    Returns:
        Wrong rows of ours; on a CPU the first-order rows slower than native code, on a GPU those slower than compiled
        or than a copy of as many bytes, and means over all ops.
    """
    ours = [r for r in rows if r["contender"] == OURS]
    other = "native" if device.type == "cpu" else "compiled_native"
    first = [r for r in ours if r["mode"] in FIRST_ORDER]
    slow = {
        _label(r): round(r[f"time_over_{other}"], 2) for r in first if r.get(f"time_over_{other}", 0) > RATIO_TARGET
    }
    figures: Row = {
        "our rows that are wrong or raise (target 0)": sum("median_ms" not in r for r in ours),
        f"our rows of first order over {RATIO_TARGET:g} times {other.replace('_', ' ')} (target none)": slow,
    }
    if device.type == "cpu":
        return figures
    streaming = [r for r in first if r["op"] not in COMPUTE_BOUND and "percent_of_copy" in r]
    below = {_label(r): round(r["percent_of_copy"]) for r in streaming if r["percent_of_copy"] < SHARE_TARGET}
    pushed = [1 / r["time_over_compiled_native"] for r in ours if r["mode"] == JVP and "time_over_compiled_native" in r]
    twice = [1 / r["time_over_native"] for r in ours if r["mode"] not in FIRST_ORDER and "time_over_native" in r]
    return figures | {
        f"our rows of first order below {SHARE_TARGET:g} % of a copy (target none)": below,
        "JVP: times as fast as compiled, geometric mean (target 1.3)": _geometric_mean(pushed),
        "JVP: times as fast as compiled, least (target 1)": round(min(pushed), 2) if pushed else None,
        "second order: times as fast as eager native code, geometric mean (target 3)": _geometric_mean(twice),
    }


def _label(row: Row) -> str:
    return f"{row['op']} {row['mode']}"


def _geometric_mean(values: Sequence[float]) -> float | None:
    return round(statistics.geometric_mean(values), 2) if values else None


def draw(rows: Sequence[Row], plt: Any) -> Any:
    """Our time over that of native code, one panel per operation.

    Args:
        rows: All rows.
        plt: ``matplotlib.pyplot``.

    Returns:
        The figure.
    """
    names = list(dict.fromkeys(r["op"] for r in rows))
    figure, axes = plt.subplots(1, len(OPERATIONS), figsize=(16, 1.5 + 0.28 * len(names)), sharey=True, squeeze=False)
    for axis, mode in zip(axes[0], OPERATIONS, strict=True):
        mine = {r["op"]: r for r in rows if r["mode"] == mode and r["contender"] == OURS}
        for key, label, marker in (("time_over_native", "native", "o"), ("time_over_compiled_native", "compiled", "x")):
            points = [(1 / r[key], names.index(op)) for op, r in mine.items() if key in r]
            if points:
                axis.plot(*zip(*points, strict=True), marker, label=f"against {label}")
        axis.axvline(1, color="gray", linestyle=":", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set(title=mode, xlabel="times as fast")
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].legend(fontsize=8)
    return figure


def main() -> int:
    """Measure, print, save.

    Returns:
        1 if a row of ours is wrong or raises, else 0.
    """
    args = _arguments()
    device = pick_device(args.device)
    if device is None:
        return 0
    if device.type == "cpu":
        torch.set_num_threads(1)
    start = time.monotonic()
    spent = lambda: time.monotonic() - start  # noqa: E731
    report, copy_rate = Report("ops", device), copy_bandwidth(device)
    todo = list(workloads(args.elements or ELEMENTS[device.type], args.ops))
    for done, workload in enumerate(todo):
        if spent() >= args.budget_seconds:
            report.notes.append(f"time budget used up: not measured {', '.join(w.op for w in todo[done:])}")
            break
        share = COMPILE_SHARE * (done + 1) / len(todo) * args.budget_seconds
        try:
            at = directions(workload.functions(device)["ours"], workload.draw(DTYPES[device.type], device))
        except Exception as error:
            report.rows.append(_unmeasured(workload, error))
            continue
        for operation in OPERATIONS.values():
            try:
                asked = operation.name in (args.compile_modes or OPERATIONS) and not (args.no_compile or args.quick)
                compiles = asked and (spent() < share or bool(args.compile_modes))
                if asked and not compiles:
                    report.notes.append(f"{workload.op} {operation.name}: nothing compiled: time budget")
                seconds = args.seconds / len(OPERATIONS)
                report.rows += measure(workload, operation, device, at, seconds, compiles)
            except Exception as error:  # e.g. a small card has no room for the reference
                report.notes.append(f"{workload.op} {operation.name} not measured: {problem(error)}")
            gc.collect()
        print(f"[{spent():5.0f} s] {workload.op}", flush=True)
        _relate(report, copy_rate)
        report.save(args.results, quietly=True)  # whatever becomes of what follows
    _relate(report, copy_rate)
    report.extra = {"copy_gb_per_s": copy_rate / 1e9, "seconds": spent()}
    report.notes.append(f"100 % is a copy at {number(copy_rate / 1e9)} GB/s")
    report.show(COLUMNS, sections=lambda r: (r["op"], r["mode"]))
    path = report.save(args.results)
    path.with_suffix(".md").write_text(markdown(report.rows), encoding="utf-8")
    report.plot(path, lambda plt: draw(report.rows, plt))
    return int(report.key_figures["our rows that are wrong or raise (target 0)"] > 0)


def _relate(report: Report, copy_rate: float) -> None:
    """Add to rows how much of a copy's bandwidth they have, and to the report what follows from its rows."""
    for row in report.rows:
        if "gb_per_s" in row:
            row["percent_of_copy"] = 1e11 * row["gb_per_s"] / copy_rate
    report.key_figures = key_figures(report.rows, report.device)


def _unmeasured(workload: Workload, error: Exception) -> Row:
    """The row of an op that does not even compute its value."""
    shapes = [list(s) for s in workload.shapes]
    row = {"op": workload.op, "mode": "forward", "shapes": shapes, "contender": OURS, "native": workload.native_name}
    return row | {"dtype": "", "note": f"raises: {problem(error)}"}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda")
    parser.add_argument("--ops", type=lambda text: text.split(","), default=(), help="names, separated by commas")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing for each op; checks and compilers extra")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled contenders out")
    parser.add_argument("--compile-modes", type=lambda text: text.split(","), default=(), help="where it takes part")
    parser.add_argument("--quick", action="store_true", help="nothing compiled")
    parser.add_argument("--elements", type=int, help="of the largest tensor")
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="start no op after this time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file, table and plot")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
