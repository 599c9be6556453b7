"""How long planning takes, and how that grows with the length of the chain.

python benchmarks/bench_planner.py [--repeats 5] [--quick]

Every kind of chain is first planned at a length that a slow judge can check, and nothing is timed that is not optimal.
"""

import argparse
import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _environment import pick_device
from _report import RESULTS, Column, Report, Row, number

from torch_jvpvjp.accumulation import Chain, Factor, Plan
from torch_jvpvjp.accumulation.planning import plan_factors
from torch_jvpvjp.accumulation.structure import Banded, BlockDiagonal, Dense, Diagonal, Structure

Planned = Callable[[random.Random, int], Plan]


def dense(most: int) -> Planned:
    """Elemental Jacobians given, of sizes up to `most`."""  # noqa: DOC201
    return lambda rng, q: Chain.from_sizes([rng.randint(1, most) for _ in range(q + 1)]).plan()


def matrix_free(**options: Any) -> Planned:
    """Factors known by what a JVP and a VJP take."""  # noqa: DOC201

    def plan(rng: random.Random, q: int) -> Plan:
        dims, edges = [rng.randint(1, 50) for _ in range(q + 1)], [rng.randint(1, 500) for _ in range(q)]
        return Chain.from_sizes(dims, edges=edges).plan(**options)

    return plan


def within_budget(rng: random.Random, q: int) -> Plan:
    """Matrix-free, within the least peak of held entries."""  # noqa: DOC201
    return matrix_free(objective="memory")(rng, q)


def network(**options: Any) -> Planned:
    """Shared weights between elementwise slopes."""  # noqa: DOC201

    def plan(rng: random.Random, q: int) -> Plan:
        size, factors = 64, []
        for place in range(q):
            if place % 2:
                factors.append(Factor(size, size, size, size, size, Diagonal(size)))
                continue
            rows = rng.choice([16, 32, 64, 128])
            factors.append(Factor(size, rows, size * rows, size * rows, 0, Dense(rows, size), shared=True))
            size = rows
        return plan_factors(factors, **options)

    return plan


def sparse(rng: random.Random, q: int) -> Plan:
    """Patterns that are given, of one size."""  # noqa: DOC201
    kinds: list[Structure] = [Diagonal(60), Banded(60, 60, 1, 1), BlockDiagonal(4, 60, 60), BlockDiagonal(6, 60, 60)]
    return plan_factors([Factor(60, 60, structure=rng.choice(kinds)) for _ in range(q)])


def workers(rng: random.Random, q: int) -> Plan:
    """Matrix-free on four workers."""  # noqa: DOC201
    return matrix_free(threads=4)(rng, q)


@dataclass(frozen=True)
class Case:
    """One kind of chain.

    Attributes:
        plan: Makes a chain of that length and plans it.
        lengths: Numbers of factors.
        judge: Length up to which random chains are planned by exhaustive search too.
        target: Seconds at the greatest length, if there is a target.
    """

    plan: Planned
    lengths: tuple[int, ...]
    judge: int
    target: float | None = None


CASES = {
    "dense": Case(dense(50), (10, 30, 100, 300, 1000), 9, 1.0),
    "dense, sizes to 10^40": Case(dense(10**40), (10, 30, 100, 300, 1000), 9),
    "matrix-free": Case(matrix_free(), (10, 30, 100, 200), 5, 0.5),
    "matrix-free, least memory": Case(within_budget, (5, 10, 20, 40), 3),
    "matrix-free, 4 workers": Case(workers, (4, 8, 16, 32), 3),
    "network": Case(network(), (10, 30, 100, 300), 5),
    "network, batch of 32": Case(network(batch=32), (10, 30, 100, 300), 5),
    "network, by time": Case(network(objective="time"), (10, 30, 100, 200), 5),
    "sparse": Case(sparse, (10, 30, 100, 200), 5),
}


def is_optimal(plan: Plan) -> bool:
    """Compare a plan with the optimum of exhaustive search.

    Args:
        plan: For a short chain.

    Returns:
        Whether cost, peak (if it was to be least) or makespan are those of the judge.
    """
    judge = plan_factors(
        plan.factors,
        objective=plan.objective,
        strategy="exhaustive",
        threads=plan.threads,
        batch=plan.batch,
    )
    if plan.threads is not None:
        return plan.makespan == judge.makespan
    if plan.objective == "memory" and plan.peak_entries != judge.peak_entries:
        return False
    return abs(plan.cost - judge.cost) <= (0 if isinstance(plan.cost, int) else 1e-9 * judge.cost)


def measure(name: str, case: Case, repeats: int) -> list[Row]:
    """Time one kind of chain.

    Args:
        name: Its name.
        case: The chains.
        repeats: Chains of each length, all different, so that none is remembered.

    Returns:
        A row for each length; one that says so if a plan was not optimal.
    """
    rng = random.Random(name)
    checked = [case.plan(rng, rng.randint(2, case.judge)) for _ in range(20)]
    if not all(map(is_optimal, checked)):
        return [{"chain": name, "note": "wrong: a plan is not optimal"}]
    rows: list[Row] = []
    for length in case.lengths:
        seconds = []
        for _ in range(repeats):
            gc.collect()
            start = time.perf_counter()
            case.plan(rng, length)
            seconds.append(time.perf_counter() - start)
        row: Row = {"chain": name, "length": length, "median_s": statistics.median(seconds), "repeats": repeats}
        row |= {"min_s": min(seconds), "max_s": max(seconds), "note": ""}
        if case.target is not None and length == case.lengths[-1]:
            row["target_s"] = case.target
        rows.append(row)
    return rows


COLUMNS: tuple[Column, ...] = (
    ("chain", lambda r: r["chain"]),
    ("factors", lambda r: str(r.get("length", ""))),
    ("median s", lambda r: number(r.get("median_s"))),
    ("min-max s", lambda r: f"{number(r['min_s'])}-{number(r['max_s'])}" if "min_s" in r else ""),
    ("target", lambda r: f"<= {r['target_s']:g}" if "target_s" in r else ""),
    ("note", lambda r: r["note"]),
)


def key_figures(rows: Sequence[Row]) -> Row:
    """The times that have a target.

    Args:
        rows: All rows.

    Returns:
        Median seconds by chain.
    """
    return {
        f"{r['chain']}, {r['length']} factors (target <= {r['target_s']:g} s)": round(r["median_s"], 3)
        for r in rows
        if "target_s" in r
    }


def draw(rows: Sequence[Row], plt: Any) -> Any:
    """Time by length, one line for each kind of chain.

    Args:
        rows: All rows.
        plt: ``matplotlib.pyplot``.

    Returns:
        The figure.
    """
    figure, axis = plt.subplots(figsize=(8, 5))
    for name in CASES:
        points = [(r["length"], r["median_s"]) for r in rows if r["chain"] == name and "median_s" in r]
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
    axis.set(xscale="log", yscale="log", xlabel="factors of the chain", ylabel="seconds to plan")
    axis.grid(visible=True, which="both", alpha=0.3)
    axis.legend(fontsize=8)
    return figure


def main() -> int:
    """Check, measure, print, save.

    Returns:
        1 if a plan was not optimal, else 0.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="chains of each length")
    parser.add_argument("--quick", action="store_true", help="one chain of each length")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file and the plot")
    args = parser.parse_args()
    device = pick_device("cpu")
    assert device is not None
    torch.set_num_threads(1)
    report = Report("planner", device)
    for name, case in CASES.items():
        report.rows += measure(name, case, 1 if args.quick else args.repeats)
    report.key_figures = key_figures(report.rows)
    report.show(COLUMNS, sections=lambda r: r["chain"])
    path = report.save(args.results)
    report.plot(path, lambda plt: draw(report.rows, plt))
    return int(any("median_s" not in r for r in report.rows))


if __name__ == "__main__":
    raise SystemExit(main())
