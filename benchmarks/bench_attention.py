"""Attention and its derivatives against PyTorch's fused and composite attentions and a package with a fused JVP.

python benchmarks/bench_attention.py [--device cuda|cpu] [--quick] [--modes jvp,vjp] [--budget-seconds 240]

On a CPU what counts is the ratio to MATH, the only attention of PyTorch's with a JVP.
"""

import argparse
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from _attention_contenders import COMPILED, FUSED, MATH, OURS, Contender, Hiding, contenders, missing
from _attention_figures import draw, key_figures, markdown
from _attention_judge import AttentionJudge
from _attention_modes import FORWARD, MODES, TANGENTS, Mode, Point
from _environment import pick_device
from _memory import peak_bytes
from _report import RESULTS, Column, Report, Row, number, problem
from _timing import Timing, time_host, time_interleaved

Shape = tuple[int, int, int, int]  # B, H, N, d
# The most important first: a time budget cuts the end.
SHAPES: dict[str, tuple[Shape, ...]] = {
    "cuda": (
        *((2, 24, 4096, 128), (4, 16, 4096, 64), (2, 12, 2048, 64)),
        *((128, 8, 256, 64), (1, 24, 1670, 128), (1, 24, 16384, 128)),
    ),
    "cpu": ((1, 8, 512, 64), (1, 8, 1024, 64), (1, 8, 2048, 64)),
}
HIDINGS: dict[str, tuple[str, ...]] = {"cuda": ("none", "causal"), "cpu": ("none", "causal", "mask")}
DTYPES = {"cuda": torch.bfloat16, "cpu": torch.float32}
COMPILED_SHAPES: dict[str, int] = {"cuda": 2, "cpu": 0}  # how many, of the first
COMPILE_SHARE = 0.6  # of the time budget: nothing is compiled after it
SECONDS = {"cuda": 0.4, "cpu": 1.0}  # of timing for each case
LEAST_REPEATS = {"cuda": 10, "cpu": 3}
HOST_BATCHES, HOST_CALLS = 20, 10  # what a call costs the host when calls follow each other
ROOM = 0.7  # of the memory that is free, for matrices of queries by keys


@dataclass(frozen=True)
class Case:
    """One mode on one shape.

    Attributes:
        mode: The derivative.
        shape: (B, H, N, d).
        hiding: What hides keys.
        compiles: Whether compiled contenders take part.
    """

    mode: Mode
    shape: Shape
    hiding: str
    compiles: bool

    def __str__(self) -> str:
        return f"{self.mode.name} {self.shape} {self.hiding}"

    def flops(self, share: float) -> float:
        """Those of the products, 2·B·H·N²·d each, half of them where rows see half of the keys."""  # noqa: DOC201
        b, h, n, d = self.shape
        return share * self.mode.products * 2.0 * b * h * n * n * d


def cases(device: torch.device, args: argparse.Namespace) -> Iterator[Case]:
    """What is measured.

    Args:
        device: Where.
        args: The command line.

    Yields:
        The cases, the most important first.
    """
    shapes = args.shapes or SHAPES[device.type][: 1 if args.quick else None]
    for place, shape in enumerate(shapes):
        for hiding in HIDINGS[device.type]:
            compiles = not (args.quick or args.no_compile) and place < COMPILED_SHAPES[device.type]
            for name in args.modes or MODES:
                takes_part = compiles and hiding == "none" and name in (args.compile_modes or MODES)
                yield Case(MODES[name], shape, hiding, takes_part)


def measure(case: Case, device: torch.device, dtype: torch.dtype, seconds: float) -> list[Row]:
    """Check every contender of a case, then time those that are right, interleaved.

    Args:
        case: The case.
        device: Where.
        dtype: Of all tensors.
        seconds: For the timing of all contenders.

    Returns:
        One row for each contender that has the mode, also for those that are wrong, raise, or do not fit.
    """
    _clear(device)
    hiding = Hiding.of(case.hiding, case.shape[2], device)
    at = Point.draw(case.shape, dtype, device, TANGENTS)
    judge = AttentionJudge(case.mode, at, hiding)
    runs: dict[str, Callable[[], object]] = {}
    rows: list[Row] = []
    for contender in contenders(device, compiles=case.compiles):
        if case.mode.name not in contender.modes:
            continue
        row: Row = {
            "op": "attention",
            "mode": case.mode.name,
            "shape": list(case.shape),
            "hiding": case.hiding,
            "dtype": str(dtype).removeprefix("torch."),
            "contender": contender.name,
            "note": _excess(contender, case, device, dtype),
        }
        rows.append(row)
        run = None if row["note"] else _checked(contender, case, at, hiding, judge, row)
        if run is not None:
            runs[contender.name] = run
    timings = time_interleaved(runs, device, seconds, least=LEAST_REPEATS[device.type])
    if case.mode.name == FORWARD and device.type == "cuda":
        host = time_host({name: runs[name] for name in (OURS, FUSED) if name in runs}, device, HOST_BATCHES, HOST_CALLS)
        timings |= {name: replace(timings[name], host_us=timing.host_us) for name, timing in host.items()}
    _fill(rows, timings, case.flops(hiding.share))
    torch.compiler.reset()
    return rows


def _excess(contender: Contender, case: Case, device: torch.device, dtype: torch.dtype) -> str:
    """Why a contender that holds matrices of queries by keys is left out, if there is no room for them."""
    if not contender.is_quadratic or device.type != "cuda":
        return ""
    b, h, n, _ = case.shape
    wanted = case.mode.matrices * b * h * n * n * dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return "" if wanted <= ROOM * free else f"not measured: holds about {wanted / 1e9:.0f} GB"


def _checked(
    contender: Contender, case: Case, at: Point, hiding: Hiding, judge: AttentionJudge, row: Row
) -> Callable[[], object] | None:
    """What to time, if its results are right; a wrong peer is timed all the same, and the note says so."""
    try:
        run = case.mode.prepare(contender.make(hiding), at, _compiler if contender.compiled else _eager)
        verdict = judge(run())
        row["peak_bytes"] = peak_bytes(run, at.o_bar.device)
    except Exception as failure:
        row["note"] = f"raises: {problem(failure)}"
        return None
    if math.isfinite(verdict.over_budget):
        row |= {"error_over_budget": verdict.over_budget, "error_over_math": verdict.over_math}
    if verdict.over_budget > 1:
        row["note"] = f"wrong: error is {number(verdict.over_budget)} times the budget"
    return run if verdict.over_budget <= 1 or contender.name != OURS else None


def _eager(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    import torch._functorch.config as config

    config.donated_buffer = False  # a backward that is timed is called again and again
    return torch.compile(function, fullgraph=True, dynamic=False)


def _clear(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _fill(rows: Sequence[Row], timings: dict[str, Timing], flops: float) -> None:
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
            "flops": flops,
            "tflop_per_s": flops / (1e-3 * timing.median_ms) / 1e12,
        }
        for other in (MATH, COMPILED):
            if other in timings and other != row["contender"]:
                row[f"time_over_{other.replace(' ', '_')}"] = timing.median_ms / timings[other].median_ms


COLUMNS: tuple[Column, ...] = (
    ("mode", lambda r: r["mode"]),
    ("B, H, N, d", lambda r: ", ".join(map(str, r["shape"]))),
    ("hidden", lambda r: r["hiding"]),
    ("contender", lambda r: r["contender"]),
    ("median ms", lambda r: number(r.get("median_ms"))),
    ("p20-p80 ms", lambda r: f"{number(r['p20_ms'])}-{number(r['p80_ms'])}" if "p20_ms" in r else ""),
    ("TFLOP/s", lambda r: number(r.get("tflop_per_s"))),
    ("/ MATH", lambda r: number(r.get("time_over_MATH"))),
    ("/ compiled", lambda r: number(r.get("time_over_compiled_MATH"))),
    ("peak MB", lambda r: number(r["peak_bytes"] / 1e6) if r.get("peak_bytes") else ""),
    ("error / budget", lambda r: number(r.get("error_over_budget"))),
    ("error / MATH's", lambda r: number(r.get("error_over_math"))),
    ("host µs", lambda r: number(r.get("host_us"))),
    ("note", lambda r: r["note"]),
)


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
    dtype = getattr(torch, args.dtype) if args.dtype else DTYPES[device.type]
    report = Report("attention", device)
    todo = list(cases(device, args))
    for done, case in enumerate(todo):
        if spent() >= 1:
            report.notes.append(
                f"time budget of {args.budget_seconds:g} s used up: {len(todo) - done} of {len(todo)} cases not "
                f"measured, from {case} on"
            )
            break
        late = case.compiles and spent() >= COMPILE_SHARE
        try:
            now = Case(case.mode, case.shape, case.hiding, compiles=False) if late else case
            report.rows += measure(now, device, dtype, args.seconds or SECONDS[device.type])
        except Exception as error:  # e.g. a small card has no room for the judge
            report.notes.append(f"{case} not measured: {problem(error)}")
        if late:
            report.notes.append(f"{case}: nothing compiled: time budget")
        print(f"[{time.monotonic() - start:5.0f} s] {case}", flush=True)
        report.key_figures = key_figures(report.rows, device)
        report.save(args.results, quietly=True)  # whatever becomes of what follows
    report.notes += missing(device)
    report.extra = {"seconds": time.monotonic() - start}
    report.key_figures = key_figures(report.rows, device)
    report.show(COLUMNS, sections=lambda r: (r["mode"], r["shape"], r["hiding"]))
    path = report.save(args.results)
    path.with_suffix(".md").write_text(markdown(report.rows), encoding="utf-8")
    report.plot(path, lambda plt: draw(report.rows, plt))
    return int(report.key_figures["our rows that are wrong or raise (target 0)"] != 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda")
    parser.add_argument("--quick", action="store_true", help="one shape, nothing compiled")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled contender out")
    parser.add_argument("--compile-modes", type=_modes, default=(), help="where the compiled contender takes part")
    parser.add_argument("--modes", type=_modes, default=(), help=f"some of {', '.join(MODES)}, separated by commas")
    parser.add_argument("--shapes", type=_shapes, default=(), help="such as 2x12x2048x64,4x16x4096x64")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), help="default: bfloat16, on a CPU float32"
    )
    parser.add_argument("--seconds", type=float, help="of timing for each case; checks and compilers extra")
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="start no case after this time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file, table and plot")
    return parser.parse_args()


def _modes(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = [name for name in names if name not in MODES]
    if unknown:
        raise argparse.ArgumentTypeError(f"no mode {', '.join(unknown)}; there are {', '.join(MODES)}")
    return names


def _shapes(text: str) -> tuple[Shape, ...]:
    shapes = tuple(tuple(int(n) for n in part.split("x")) for part in text.split(","))
    if any(len(shape) != 4 for shape in shapes):
        raise argparse.ArgumentTypeError(f"shapes must be BxHxNxd, got {text}")
    return shapes  # pyright: ignore[reportReturnType]


if __name__ == "__main__":
    raise SystemExit(main())
