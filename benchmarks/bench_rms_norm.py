"""RMS norm and its derivatives against PyTorch's own, compiled or not, and against hand-written kernels.

python benchmarks/bench_rms_norm.py [--device cuda|cpu] [--quick] [--sizes 1024,4096] [--budget-seconds 240]
"""

import argparse
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _derivatives import Operation, operations
from _environment import pick_device
from _judge import Judge
from _report import RESULTS, Column, Report, Row, number, problem
from _rms_norms import OURS, Contender, contenders, formula
from _timing import Timing, copy_bandwidth, time_interleaved
from torch import Tensor

SIZES = (4096, 2048, 8192, 16384, 1024, 32768, 65536, 512, 256)  # n, in the order in which they are measured
SMALL = ((4, 256), (128, 1024))  # (m, n) where the host decides
FIRST_ORDER = ("forward", "jvp", "vjp")
# x has this many elements whatever n is: in bfloat16 a forward then moves 268 MB.
ELEMENTS = {"cuda": 1 << 26, "cpu": 1 << 16}
COMPILE_SHARE = 0.6  # of the time budget; compiling costs seconds a row, timing costs one
PERCENT_TARGET, RATIO_TARGET, LARGE_BYTES, LARGE_N = 85.0, 2.1, 256e6, 2048


@dataclass(frozen=True)
class Case:
    """One operation on one shape and dtype.

    Attributes:
        operation: The operation.
        m: Rows.
        n: Columns.
        dtype: Of x and w.
        compiles: Whether compiled contenders take part.
    """

    operation: Operation
    m: int
    n: int
    dtype: torch.dtype
    compiles: bool

    def __str__(self) -> str:
        return f"{self.operation.name} ({self.m}, {self.n}) {_short(self.dtype)}"


def cases(device: torch.device, sizes: Sequence[int], elements: int, quick: bool, compiles: bool) -> Iterator[Case]:
    """What is measured, the most important first: a time budget cuts the end.

    Args:
        device: Where.
        sizes: The n to measure.
        elements: Elements of x, whatever n is.
        quick: Whether to leave out most.
        compiles: Whether compiled contenders take part.

    Yields:
        The cases.
    """
    every = operations((1, 4) if quick else (1, 4, 16))
    low = torch.bfloat16 if device.type == "cuda" else torch.float32
    first = [every[name] for name in FIRST_ORDER]
    rest = [operation for name, operation in every.items() if name not in FIRST_ORDER]
    main, others = sizes[0], sizes[1:]
    rows = {n: max(1, elements // n) for n in sizes}
    yield from (Case(o, rows[main], main, low, compiles) for o in (*first, *rest))
    yield from (Case(o, m, n, low, compiles) for m, n in SMALL[: 1 if quick else None] for o in first)
    yield from (Case(o, rows[n], n, low, compiles) for n in others for o in first)
    if low != torch.float32:
        yield from (Case(o, rows[n], n, torch.float32, compiles) for n in sizes[: 1 if quick else 3] for o in first)
    if not quick:  # compiled contenders have shown what they do on these at the first size
        yield from (Case(o, rows[n], n, low, False) for n in others for o in rest)


def measure(case: Case, device: torch.device, copy_rate: float, compiles: bool) -> list[Row]:
    """Check every contender of a case, then time those that are right, interleaved.

    Args:
        case: The case.
        device: Where.
        copy_rate: Bytes per second that are 100 %.
        compiles: Whether compiled contenders still take part.

    Returns:
        One row per contender that has the operation, also for those that are wrong or raise.
    """
    operation = case.operation
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    operands = operation.draw(case.m, case.n, case.dtype, device)
    judge = Judge(operation.transform(formula), operands, operation.operand_rows, operation.result_rows)
    runs: dict[str, Callable[[], object]] = {}
    rows: list[Row] = []
    for contender in contenders():
        absent = contender.f is None or (operation.needs_forward_mode and not contender.forward_mode)
        if absent or (contender.compiled and not case.compiles):
            continue
        row: Row = {
            "op": "rms_norm",
            "mode": operation.name,
            "shape": [case.m, case.n],
            "dtype": _short(case.dtype),
            "contender": contender.name,
            "note": "",
        }
        rows.append(row)
        if contender.compiled and not compiles:
            row["note"] = "not compiled: time budget"
            continue
        run = _checked(case, contender, operands, judge, row)
        if run is not None:
            runs[contender.name] = run
    size = operation.bytes_moved(case.m, case.n, case.dtype.itemsize)
    _fill(rows, time_interleaved(runs, device), size, copy_rate)
    torch.compiler.reset()  # or the operations, which share code, would use up the limit of recompilations
    return rows


def _checked(
    case: Case, contender: Contender, operands: Sequence[Tensor], judge: Judge, row: Row
) -> Callable[[], object] | None:
    """What to time, if its results are right."""
    assert contender.f is not None
    try:
        run = case.operation.prepare(contender.f, operands, contender.compiled)
        judge.poison()
        error = judge(run())
    except Exception as failure:
        row["note"] = f"raises: {problem(failure)}"
        return None
    if math.isfinite(error):
        row["error_over_budget"] = error
    if error > 1:
        row["note"] = f"wrong: error is {number(error)} times the budget"
        return None
    return run


def _fill(rows: Sequence[Row], timings: dict[str, Timing], size: int, copy_rate: float) -> None:
    """Add times and what follows from them."""
    eager = [timings[name].median_ms for name in ("F.rms_norm", "formula") if name in timings]
    compiled = [timings[name].median_ms for name in timings if name.startswith("compile(")]
    for row in rows:
        timing = timings.get(row["contender"])
        if timing is None:
            continue
        rate = size / (1e-3 * timing.median_ms)
        row |= {
            "median_ms": timing.median_ms,
            "p20_ms": timing.p20_ms,
            "p80_ms": timing.p80_ms,
            "repeats": timing.repeats,
            "host_us": timing.host_us,
            "bytes": size,
            "gb_per_s": rate / 1e9,
            "percent_of_copy": 100 * rate / copy_rate,
            "speedup_over_eager": min(eager) / timing.median_ms if eager else None,
            "speedup_over_compiled": min(compiled) / timing.median_ms if compiled else None,
        }


COLUMNS: tuple[Column, ...] = (
    ("mode", lambda r: r["mode"]),
    ("shape", lambda r: "x".join(map(str, r["shape"]))),
    ("dtype", lambda r: r["dtype"]),
    ("contender", lambda r: r["contender"]),
    ("median ms", lambda r: number(r.get("median_ms"))),
    ("p20-p80 ms", lambda r: f"{number(r['p20_ms'])}-{number(r['p80_ms'])}" if "p20_ms" in r else ""),
    ("GB/s", lambda r: number(r.get("gb_per_s"))),
    ("% of copy", lambda r: number(r.get("percent_of_copy"))),
    ("error / budget", lambda r: number(r.get("error_over_budget"))),
    ("x eager", lambda r: number(r.get("speedup_over_eager"))),
    ("x compiled", lambda r: number(r.get("speedup_over_compiled"))),
    ("host µs", lambda r: number(r.get("host_us"))),
    ("note", lambda r: r["note"]),
)


def key_figures(rows: Sequence[Row]) -> Row:
    """The figures that have a target, from our own rows.

    Args:
        rows: All rows.

    Returns:
        For each of forward, JVP and VJP the least percentage of the copy at n >= 2048 and 256 MB or more, and the
        largest ratio of the JVP's time to the forward's; "not measured" where there is no such row.
    """
    mine = [r for r in rows if r["contender"] == OURS and "median_ms" in r]
    large = [r for r in mine if r["shape"][1] >= LARGE_N and r["bytes"] >= LARGE_BYTES]
    figures: Row = {}
    for mode in FIRST_ORDER:
        percents = [r["percent_of_copy"] for r in large if r["mode"] == mode]
        figures[f"{mode}: least % of copy, n >= {LARGE_N}, >= 256 MB (target >= {PERCENT_TARGET:g})"] = (
            round(min(percents), 1) if percents else "not measured"
        )
    times = {
        mode: {(*r["shape"], r["dtype"]): r["median_ms"] for r in large if r["mode"] == mode} for mode in FIRST_ORDER
    }
    ratios = [t / times["forward"][at] for at, t in times["jvp"].items() if at in times["forward"]]
    figures[f"jvp / forward: largest ratio of times, n >= {LARGE_N}, >= 256 MB (target <= {RATIO_TARGET:g})"] = (
        round(max(ratios), 2) if ratios else "not measured"
    )
    wrong = [r for r in rows if r["contender"] == OURS and "median_ms" not in r and not r["note"].startswith("not ")]
    figures["our rows that are wrong or raise (target 0)"] = len(wrong)
    return figures


def draw(rows: Sequence[Row], plt: Any) -> Any:
    """Percent of the copy against n, one panel per operation of first order.

    Args:
        rows: All rows.
        plt: ``matplotlib.pyplot``.

    Returns:
        The figure.
    """
    timed = [r for r in rows if "median_ms" in r and tuple(r["shape"]) not in SMALL]
    dtype = timed[0]["dtype"] if timed else ""
    figure, axes = plt.subplots(1, len(FIRST_ORDER), figsize=(15, 4.5), sharey=True, squeeze=False)
    for axis, mode in zip(axes[0], FIRST_ORDER, strict=True):
        for contender in dict.fromkeys(r["contender"] for r in timed):
            points = sorted(
                (r["shape"][1], r["percent_of_copy"])
                for r in timed
                if r["contender"] == contender and r["mode"] == mode and r["dtype"] == dtype
            )
            if points:
                axis.plot(*zip(*points, strict=True), marker="o", label=contender)
        axis.axhline(PERCENT_TARGET, color="gray", linestyle=":", linewidth=1)
        axis.set_xscale("log", base=2)
        axis.set(title=f"rms_norm {mode}, {dtype}", xlabel="columns n (m·n fixed)", ylim=(0, None))
    axes[0][0].set_ylabel("% of the measured copy")
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
    start = time.monotonic()
    spent = lambda: (time.monotonic() - start) / args.budget_seconds  # noqa: E731
    if device.type == "cpu":
        torch.set_num_threads(1)
    copy_rate = copy_bandwidth(device)
    report = Report("rms_norm", device)
    elements = args.elements or ELEMENTS[device.type]
    todo = list(cases(device, args.sizes, elements, args.quick, not (args.quick or args.no_compile)))
    for done, case in enumerate(todo):
        if spent() >= 1:
            report.notes.append(
                f"time budget of {args.budget_seconds:g} s used up: {len(todo) - done} of {len(todo)} cases not "
                f"measured, from {case} on"
            )
            break
        try:
            report.rows += measure(case, device, copy_rate, spent() < COMPILE_SHARE)
        except Exception as error:  # e.g. a small card has no room for the reference
            report.notes.append(f"{case} not measured: {problem(error)}")
        print(f"[{time.monotonic() - start:5.0f} s] {case}", flush=True)
        report.key_figures = key_figures(report.rows)
        report.save(args.results, quietly=True)  # whatever becomes of what follows
    report.extra = {
        "copy_gb_per_s": copy_rate / 1e9,
        "copy_gb_per_s_after": copy_bandwidth(device) / 1e9,
        "elements": elements,
        "seconds": time.monotonic() - start,
    }
    report.notes.append(
        f"100 % is a copy at {number(copy_rate / 1e9)} GB/s ({number(report.extra['copy_gb_per_s_after'])} GB/s after)"
    )
    report.notes += [
        f"{c.name}: not installed" if c.f is None else f"{c.name}: has no forward mode"
        for c in contenders()
        if c.f is None or not c.forward_mode
    ]
    report.rows.sort(key=_place)
    report.key_figures = key_figures(report.rows)
    report.show(COLUMNS, sections=lambda r: (r["mode"], r["shape"], r["dtype"]))
    path = report.save(args.results)
    report.plot(path, lambda plt: draw(report.rows, plt))
    return int(report.key_figures["our rows that are wrong or raise (target 0)"] > 0)


def _place(row: Row) -> tuple[int, str, int, int]:
    """Where a row stands in the table: by operation, dtype and shape."""
    m, n = row["shape"]
    return list(operations()).index(row["mode"]), row["dtype"], n, m


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda")
    parser.add_argument("--quick", action="store_true", help="few cases, nothing compiled")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled contenders out")
    parser.add_argument("--sizes", type=_sizes, help="columns n, separated by commas; the first gets every operation")
    parser.add_argument("--elements", type=int, help="elements of x, whatever n is")
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="add no row after this time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file and the plot")
    args = parser.parse_args()
    if args.sizes is None:
        args.sizes = (4096, 1024) if args.quick else SIZES
    return args


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    raise SystemExit(main())
