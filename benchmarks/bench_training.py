"""Training steps through Jacobians: a loss of J and its gradient in all parameters, beside PyTorch's ways to it.

python benchmarks/bench_training.py [--device cuda|cpu] [--seconds 3] [--no-compile]
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from _environment import pick_device
from _report import RESULTS, Column, Report, Row, number, problem
from _timing import time_interleaved
from _training_workloads import WORKLOADS, Training
from torch import Tensor, nn

import torch_jvpvjp as tj

OURS, COMPILED = "jacobian(create_graph=True)", "compiled "
Jacobians = Callable[[nn.Module, Tensor], Tensor]
FIRST_STEPS = 100
SLACK, ROUNDINGS = 4, 16


def ours(net: nn.Module, x: Tensor) -> Tensor:
    """Planned, recorded and replayed, once that pays."""
    return tj.jacobian(net, x, batch_dims=1, create_graph=True)


def ours_compiled(net: nn.Module, x: Tensor) -> Tensor:
    """The same, compiled."""
    return tj.jacobian(net, x, batch_dims=1, create_graph=True, compile=True)


def jacrev(net: nn.Module, x: Tensor) -> Tensor:
    """``torch.func.jacrev`` of each sample."""
    return torch.func.vmap(torch.func.jacrev(lambda sample: net(sample[None])[0]))(x)


def jacfwd(net: nn.Module, x: Tensor) -> Tensor:
    """``torch.func.jacfwd`` of each sample."""
    return torch.func.vmap(torch.func.jacfwd(lambda sample: net(sample[None])[0]))(x)


def row_by_row(net: nn.Module, x: Tensor) -> Tensor:
    """One pullback for each output, summed over the samples, which do not mix."""
    x = x.detach().requires_grad_()
    y = net(x)
    rows = [torch.autograd.grad(y[:, i].sum(), x, create_graph=True)[0] for i in range(y.shape[1])]
    return torch.stack(rows, 1)


ROWS = "grad, row by row"
CONTENDERS: dict[str, Jacobians] = {OURS: ours, "vmap(jacrev)": jacrev, "vmap(jacfwd)": jacfwd, ROWS: row_by_row}
MOST_ROWS = 64  # beyond which nobody goes row by row
MOST_SECONDS = 10  # of the first steps


class Step:
    """A loss of Jacobians and its gradient.

    Args:
        jacobians: How they are taken.
        workload: The loss.
        net: The network.
        x: The points.
        compiled: Whether the loss is compiled.
    """

    def __init__(self, jacobians: Jacobians, workload: Training, net: nn.Module, x: Tensor, *, compiled: bool) -> None:
        self._net, self._x = net, x

        def loss() -> Tensor:
            return workload.loss(jacobians(net, x))

        self._loss = torch.compile(loss) if compiled else loss

    def __call__(self) -> list[Tensor]:
        """Return the gradient in each parameter, of zeros where the loss does not depend on one."""
        parameters = list(self._net.parameters())
        found = torch.autograd.grad(self._loss(), parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


class GradientJudge:
    """Errors of a gradient in units of a budget, the worst over all parameters.

        budget = 4 · (max over jacrev and jacfwd of err(that in float32) + 16 · eps · max|g₆₄|)

    Args:
        workload: The loss.
        small: Whether at the sizes of a test.
        device: Where the contenders work.
    """

    def __init__(self, workload: Training, *, small: bool = False, device: torch.device | str = "cpu") -> None:
        net, x = workload.make(small=small, device=device)
        exact = deepcopy(net).double()
        self._reference = Step(jacrev, workload, exact, x.double(), compiled=False)()
        modes = [Step(mode, workload, net, x, compiled=False)() for mode in (jacrev, jacfwd)]
        eps, largest = torch.finfo(x.dtype).eps, max(float(g.abs().max()) for g in self._reference)
        self._budgets = [
            SLACK * (max(float((mode[k] - g).abs().max()) for mode in modes) + ROUNDINGS * eps * largest)
            for k, g in enumerate(self._reference)
        ]

    def __call__(self, gradients: Sequence[Tensor]) -> float:
        """Return the worst error over its budget; infinity where there is NaN or another shape."""
        if [g.shape for g in gradients] != [g.shape for g in self._reference]:
            return math.inf
        errors = [
            float((found - expected).abs().max()) / budget
            for found, expected, budget in zip(gradients, self._reference, self._budgets, strict=True)
        ]
        return math.inf if any(math.isnan(error) for error in errors) else max(errors)


def measure(
    workload: Training, device: torch.device, seconds: float, *, compiles: bool = True, small: bool = False
) -> list[Row]:
    """Check and time all contenders on one workload.

    Args:
        workload: The loss.
        device: Where.
        seconds: About how long to time all of them.
        compiles: Whether peers are compiled as well.
        small: Whether at the sizes of a test.

    Returns:
        One row per contender.
    """
    judge = GradientJudge(workload, small=small, device=device)
    rows: list[Row] = []
    steps: dict[str, Callable[[], object]] = {}
    for name, jacobians in CONTENDERS.items():
        for compiled in (False, True) if compiles else (False,):
            net, x = workload.make(small=small, device=device)
            outputs = net(x).shape[1]
            if name == ROWS and (outputs > MOST_ROWS or compiled):
                continue
            row: Row = {"workload": workload.id, "contender": (COMPILED if compiled else "") + name, "note": ""}
            rows.append(row | {"samples": len(x), "outputs": outputs, "inputs": x[0].numel()})
            if compiled and name != OURS and (failure := _probe(workload, name, device)):
                rows[-1]["note"] = f"raises: {failure}"
                continue
            if compiled and name == OURS:
                step = Step(ours_compiled, workload, net, x, compiled=False)
            else:
                step = Step(jacobians, workload, net, x, compiled=compiled)
            _check(rows[-1], step, judge, steps)
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    timings = time_interleaved(steps, device, seconds, clock=clock)
    for row in rows:
        timing = timings.get(row["contender"])
        if timing is not None:
            row |= {"median_ms": timing.median_ms, "p20_ms": timing.p20_ms, "p80_ms": timing.p80_ms}
    return rows


def _probe(workload: Training, name: str, device: torch.device) -> str:
    """Return how a compiled peer fails in a process of its own; nothing if it works.

    Where Dynamo fails inside of a transform of ``torch.func``, it leaves the process within that transform.
    """
    command = [sys.executable, __file__, "--device", device.type, "--probe", workload.id, name]
    with tempfile.TemporaryDirectory() as folder:  # for what it compiles: the first step here is to find nothing there
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder}
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return run.stdout.strip() if run.returncode else ""


def _probed(workload: Training, name: str, device: torch.device) -> int:
    """Take one step of a compiled peer; print how it fails."""
    net, x = workload.make(device=device)
    try:
        Step(CONTENDERS[name], workload, net, x, compiled=True)()
    except Exception as failure:
        print(problem(failure))
        return 1
    return 0


def _check(row: Row, step: Step, judge: GradientJudge, steps: dict[str, Callable[[], object]]) -> None:
    """Take the first steps, the last of which is judged, and keep a step that is right to be timed."""
    begin = time.perf_counter()
    try:
        gradients = step()
        row["first_s"] = time.perf_counter() - begin
        for _ in range(FIRST_STEPS - 1):
            gradients = step()
            if time.perf_counter() - begin > MOST_SECONDS:
                break
        else:
            row["first_steps_s"] = time.perf_counter() - begin
    except Exception as failure:
        row["note"] = f"raises: {problem(failure)}"
        return
    row["error_over_budget"] = error = judge(gradients)
    if error > 1:
        row["note"] = f"wrong: error is {number(error)} times the budget"
        return
    steps[row["contender"]] = step


def key_figures(rows: Sequence[Row]) -> Row:
    """Our time over that of the best peer, both eager or both compiled, in steps and in the first steps.

    Args:
        rows: All rows.

    Returns:
        The ratio of each workload, and geometric means.
    """
    figures: Row = {}
    for kind in ("eager", "compiled"):
        ratios = {}
        for name in dict.fromkeys(r["workload"] for r in rows):
            mine, peers = _times(rows, name, "median_ms", compiled=kind == "compiled")
            if mine is not None and peers:
                ratios[name] = mine / min(peers)
        for name, ratio in ratios.items():
            figures[f"{name}: step over the best {kind} peer's"] = round(ratio, 2)
        if ratios:
            figures[f"geometric mean over {len(ratios)} workloads, {kind} peers"] = round(
                statistics.geometric_mean(ratios.values()), 2
            )
    for name in dict.fromkeys(r["workload"] for r in rows):
        mine, peers = _times(rows, name, "first_steps_s", compiled=False)
        if mine is not None and peers:
            figures[f"{name}: the first {FIRST_STEPS} steps, planning included, over the best eager peer's"] = round(
                mine / min(peers), 2
            )
    return figures


def _times(rows: Sequence[Row], name: str, key: str, *, compiled: bool) -> tuple[float | None, list[float]]:
    found = {r["contender"]: r[key] for r in rows if r["workload"] == name and key in r}
    peers = [t for who, t in found.items() if OURS not in who and who.startswith(COMPILED) == compiled]
    return found.get(COMPILED + OURS if compiled else OURS), peers


COLUMNS: tuple[Column, ...] = (
    ("workload", lambda r: r["workload"]),
    ("J", lambda r: f"{r['samples']} x ({r['outputs']}, {r['inputs']})"),
    ("contender", lambda r: r["contender"]),
    ("median ms", lambda r: number(r.get("median_ms"))),
    ("p20-p80 ms", lambda r: f"{number(r['p20_ms'])}-{number(r['p80_ms'])}" if "p20_ms" in r else ""),
    ("first step s", lambda r: number(r.get("first_s"))),
    (f"first {FIRST_STEPS} steps s", lambda r: number(r.get("first_steps_s"))),
    ("error / budget", lambda r: number(r.get("error_over_budget"))),
    ("note", lambda r: r["note"]),
)


def draw(rows: Sequence[Row], plt: Any) -> Any:
    """Time of a step by workload and contender, on a logarithmic axis.

    Args:
        rows: All rows.
        plt: ``matplotlib.pyplot``.

    Returns:
        The figure.
    """
    workloads, contenders = (list(dict.fromkeys(r[key] for r in rows)) for key in ("workload", "contender"))
    figure, axis = plt.subplots(figsize=(11, 4.5))
    width = 0.8 / len(contenders)
    for place, contender in enumerate(contenders):
        heights = [
            next((r.get("median_ms", 0) for r in rows if (r["workload"], r["contender"]) == (w, contender)), 0)
            for w in workloads
        ]
        centre = place - (len(contenders) - 1) / 2
        axis.bar([i + centre * width for i in range(len(workloads))], heights, width=0.9 * width, label=contender)
    axis.set_xticks(range(len(workloads)), workloads, fontsize=8, rotation=20)
    axis.set(yscale="log", ylabel="ms per step", title="A loss of J and its gradient in all parameters")
    axis.legend(fontsize=8)
    return figure


def main() -> int:
    """Check, measure, print, save.

    Returns:
        1 if a row of ours is wrong or raises, else 0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is a GPU, else cpu")
    parser.add_argument("--seconds", type=float, default=3.0, help="for the timing of each workload")
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled peers")
    parser.add_argument("--only", type=lambda text: text.split(","), help="workloads, by name")
    parser.add_argument("--quick", action="store_true", help="half a second for each workload, no compiled peers")
    parser.add_argument("--budget-seconds", type=float, default=math.inf, help="add no workload after this time")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch on a CPU")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file and the plot")
    args = parser.parse_args()
    device = pick_device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device is None:
        return 0
    torch.set_num_threads(args.threads)
    if args.probe is not None:
        return _probed(next(one for one in WORKLOADS if one.id == args.probe[0]), args.probe[1], device)
    report = Report("training", device)
    start = time.monotonic()
    for workload in WORKLOADS:
        if args.only is not None and workload.id not in args.only:
            continue
        if time.monotonic() - start >= args.budget_seconds:
            report.notes.append(
                f"time budget of {args.budget_seconds:g} s used up: nothing measured from {workload.id} on"
            )
            break
        torch.compiler.reset()  # beyond some compilations of one function Dynamo compiles it no more
        seconds, compiles = 0.5 if args.quick else args.seconds, not (args.no_compile or args.quick)
        report.rows += measure(workload, device, seconds, compiles=compiles)
        report.save(args.results, quietly=True)
    report.key_figures = key_figures(report.rows)
    report.show(COLUMNS, sections=lambda r: r["workload"])
    path = report.save(args.results)
    report.plot(path, lambda plt: draw(report.rows, plt))
    return int(any(r["contender"] == OURS and "median_ms" not in r for r in report.rows))


if __name__ == "__main__":
    raise SystemExit(main())
