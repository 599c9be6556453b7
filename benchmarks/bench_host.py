"""What a call of ops.rms_norm on a small tensor costs the host, against F.rms_norm in the same run.

python benchmarks/bench_host.py [--device cuda|cpu] [--shape 4,64] [--samples 300]
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _derivatives import RowOp
from _environment import pick_device
from _judge import Judge
from _report import RESULTS, Column, Report, Row, number, problem
from _rms_norms import OURS, formula, ours, torch_rms_norm
from _timing import time_host
from torch import Tensor
from torch.func import grad, jvp

Operation = Callable[..., tuple[Tensor, ...]]

CONTENDERS: dict[str, RowOp] = {OURS: ours, "F.rms_norm": torch_rms_norm, "formula": formula}
TARGETS = {"forward, no grad": 1.5, "forward + backward": 1.5}  # of the time of F.rms_norm
BATCH = 20  # calls timed together


def forward(f: RowOp) -> Operation:
    """The value."""  # noqa: DOC201
    return lambda x, w, _direction: (f(x, w),)


def forward_without_grad(f: RowOp) -> Operation:
    """The value under ``torch.no_grad``."""  # noqa: DOC201

    def run(x: Tensor, w: Tensor, _direction: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (f(x, w),)

    return run


def forward_and_backward(f: RowOp) -> Operation:
    """Both gradients, through autograd."""  # noqa: DOC201
    return lambda x, w, direction: torch.autograd.grad(f(x, w), (x, w), direction)


def func_jvp(f: RowOp) -> Operation:
    """Value and tangent along a direction in x."""  # noqa: DOC201
    return lambda x, w, direction: jvp(lambda x: f(x, w), (x,), (direction,))


def func_grad(f: RowOp) -> Operation:
    """Gradients of a scalar with respect to both."""  # noqa: DOC201
    return lambda x, w, direction: grad(lambda x, w: (f(x, w) * direction).sum(), argnums=(0, 1))(x, w)


# The operation, whether x and w require grad, and the axis of rows of each result.
OPERATIONS: dict[str, tuple[Callable[[RowOp], Operation], bool, tuple[int | None, ...]]] = {
    "forward, no grad": (forward_without_grad, False, (0,)),
    "forward, requires grad": (forward, True, (0,)),
    "forward + backward": (forward_and_backward, True, (0, None)),
    "func.jvp": (func_jvp, False, (0, 0)),
    "func.grad": (func_grad, False, (0, None)),
}


def measure(name: str, device: torch.device, shape: Sequence[int], samples: int) -> list[Row]:
    """Check and time all contenders in one operation.

    Args:
        name: Name of the operation.
        device: Where.
        shape: Of x.
        samples: Batches timed.

    Returns:
        One row per contender.
    """
    operation, requires_grad, result_rows = OPERATIONS[name]
    generator = torch.Generator(device).manual_seed(0)
    x, w, direction = (torch.randn(s, generator=generator, device=device) for s in (shape, shape[-1:], shape))
    leaves = tuple(t.clone().requires_grad_() for t in (x, w)) if requires_grad else (x, w)
    # The judge works on fresh blocks, which autograd must be told to record.
    plain = {"forward + backward": func_pull}.get(name, operation)(formula)
    judge = Judge(plain, (x, w, direction), (0, None, 0), result_rows)
    rows: list[Row] = []
    runs: dict[str, Callable[[], object]] = {}
    for contender, f in CONTENDERS.items():
        run = partial(operation(f), *leaves, direction)
        row: Row = {"op": "rms_norm", "mode": name, "shape": list(shape), "dtype": "float32", "contender": contender}
        rows.append(row | {"note": ""})
        try:
            error = judge(run())
        except Exception as failure:
            rows[-1]["note"] = f"raises: {problem(failure)}"
            continue
        if math.isfinite(error):
            rows[-1]["error_over_budget"] = error
        if error > 1:
            rows[-1]["note"] = f"wrong: error is {number(error)} times the budget"
            continue
        runs[contender] = run
    timings = time_host(runs, device, samples=samples, calls=BATCH)
    for row in rows:
        timing = timings.get(row["contender"])
        if timing is None:
            continue
        row |= {"host_us": timing.host_us, "p20_us": 1e3 * timing.p20_ms, "p80_us": 1e3 * timing.p80_ms}
        row["samples"] = timing.repeats
        if "F.rms_norm" in timings:
            row["ratio"] = timing.median_ms / timings["F.rms_norm"].median_ms
        if row["contender"] == OURS and name in TARGETS:
            row["target"] = TARGETS[name]
    return rows


def func_pull(f: RowOp) -> Operation:
    """``forward_and_backward`` on tensors that do not require grad."""  # noqa: DOC201
    return lambda x, w, direction: torch.func.vjp(f, x, w)[1](direction)


COLUMNS: tuple[Column, ...] = (
    ("operation", lambda r: r["mode"]),
    ("shape", lambda r: "x".join(map(str, r["shape"]))),
    ("dtype", lambda r: r["dtype"]),
    ("contender", lambda r: r["contender"]),
    ("median µs", lambda r: number(r.get("host_us"))),
    ("p20-p80 µs", lambda r: f"{number(r['p20_us'])}-{number(r['p80_us'])}" if "p20_us" in r else ""),
    ("x F.rms_norm", lambda r: number(r.get("ratio"))),
    ("target", lambda r: f"<= {r['target']:g}" if "target" in r else ""),
    ("error / budget", lambda r: number(r.get("error_over_budget"))),
    ("note", lambda r: r["note"]),
)


def key_figures(rows: Sequence[Row]) -> Row:
    """The ratios that have a target.

    Args:
        rows: All rows.

    Returns:
        Our time over that of F.rms_norm, by operation; "not measured" where there is none.
    """
    found = {r["mode"]: round(r["ratio"], 2) for r in rows if r["contender"] == OURS and "ratio" in r}
    return {
        f"host time of {name} / F.rms_norm (target <= {target:g})": found.get(name, "not measured")
        for name, target in TARGETS.items()
    }


def draw(rows: Sequence[Row], plt: Any) -> Any:
    """Host time by operation and contender.

    Args:
        rows: All rows.
        plt: ``matplotlib.pyplot``.

    Returns:
        The figure.
    """
    figure, axis = plt.subplots(figsize=(9, 4))
    names = list(CONTENDERS)
    for number_of, contender in enumerate(names):
        heights = [
            next((r.get("host_us", 0) for r in rows if (r["mode"], r["contender"]) == (mode, contender)), 0)
            for mode in OPERATIONS
        ]
        places = [i + (number_of - (len(names) - 1) / 2) * 0.27 for i in range(len(OPERATIONS))]
        axis.bar(places, heights, width=0.25, label=contender)
    axis.set_xticks(range(len(OPERATIONS)), list(OPERATIONS), fontsize=8)
    axis.set(ylabel="host µs per call", title="rms_norm on a small tensor")
    axis.legend()
    return figure


def main() -> int:
    """Measure, print, save.

    Returns:
        1 if a row of ours is wrong or raises, else 0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU, else cpu")
    parser.add_argument("--shape", type=lambda s: tuple(int(p) for p in s.split(",")), default=(4, 64))
    parser.add_argument("--samples", type=int, default=300, help=f"batches of {BATCH} calls")
    parser.add_argument("--quick", action="store_true", help="30 batches")
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="add no operation after this time")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file and the plot")
    args = parser.parse_args()
    device = pick_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device is None:
        return 0
    torch.set_num_threads(1)
    report = Report("host", device)
    start = time.monotonic()
    for name in OPERATIONS:
        if time.monotonic() - start >= args.budget_seconds:
            report.notes.append(f"time budget of {args.budget_seconds:g} s used up: nothing measured from {name} on")
            break
        report.rows += measure(name, device, args.shape, 30 if args.quick else args.samples)
    report.key_figures = key_figures(report.rows)
    report.show(COLUMNS, sections=lambda r: r["mode"])
    path = report.save(args.results)
    report.plot(path, lambda plt: draw(report.rows, plt))
    return int(any(r["contender"] == OURS and "host_us" not in r for r in report.rows))


if __name__ == "__main__":
    raise SystemExit(main())
