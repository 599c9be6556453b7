"""Whether the plan that the time objective picks is as fast as the fastest of all strategies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from _jacobian_case import Case
from _jacobian_judge import JacobianJudge
from _jacobian_timing import Contender, time_in_turn, timed_row
from _report import Column, Report, Row, number
from _report import problem as problem_text

import torch_jvpvjp as tj

PICK = "time: dynamic_programming"
CONTENDERS: dict[str, tuple[str, str]] = {  # objective and strategy
    "fma: forward": ("fma", "forward"),
    "fma: reverse": ("fma", "reverse"),
    "fma: greedy": ("fma", "greedy"),
    "fma: dynamic_programming": ("fma", "dynamic_programming"),
    PICK: ("time", "dynamic_programming"),
}
LIMIT = 1.15


def strategies_section(report: Report, cases: Sequence[Case], seconds: float) -> None:
    """Time every strategy's plan over the chains, print a table and add it to the report.

    Args:
        report: It gains the entry "strategies" and a key figure.
        cases: The workloads, of which the chains are taken.
        seconds: For one of them.
    """
    rows = [strategy_row(case, report.device, seconds) for case in cases if "widths" in case.full and not _kernel(case)]
    section = Report("strategies", report.device, rows)
    found = {row["workload"]: row["ratio"] for row in rows if "ratio" in row}
    figure = "not measured"
    if found:
        over = [f"{w} {number(r)}" for w, r in found.items() if r > LIMIT]
        worst = max(found, key=lambda w: found[w])
        figure = f"{number(found[worst])} on {worst}: {'FAIL: ' + ', '.join(over) if over else 'pass'}"
    name = f"time of the plan picked by objective 'time' / fastest of all strategies (target <= {LIMIT:g})"
    section.key_figures = {name: figure}
    section.notes = [f"{r['workload']}: {n}: {c['note']}" for r in rows for n, c in r["plans"].items() if "note" in c]
    section.show(_COLUMNS)
    report.extra["strategies"] = rows
    report.key_figures |= section.key_figures
    report.notes += section.notes


def strategy_row(case: Case, device: torch.device, seconds: float, *, small: bool = False) -> Row:
    """Check and time the plan of every strategy.

    Args:
        case: A chain.
        device: Where.
        seconds: For all of them.
        small: Whether at the sizes of the test.

    Returns:
        Its row.
    """
    problem, judge = case.make(small=small, device=device), JacobianJudge(case, small=small, device=device)
    plans: dict[str, Row] = {}
    contenders: dict[str, Contender] = {}
    for name, (objective, strategy) in CONTENDERS.items():
        try:
            plan = tj.plan_jacobian(problem.f, problem.x, objective=objective, strategy=strategy)
            contender = Contender(lambda plan=plan: plan(problem.x))
            error = judge(contender.run(device)[1])
            contender.seconds = contender.run(device)[0]
        except Exception as failure:  # noqa: BLE001 (it belongs in the row)
            plans[name] = {"note": f"raises: {problem_text(failure)}"}
            continue
        plans[name] = {"cost": plan.cost, "fma": plan.fma, "bracketing": plan.bracketing()}
        if error > 1:
            plans[name]["note"] = f"wrong: error is {number(error)} times the budget"
            continue
        contenders[name] = contender
    for name, times in time_in_turn(contenders, device, seconds).items():
        plans[name] |= timed_row(times)
    timed = {name: p["median_ms"] for name, p in plans.items() if "median_ms" in p}
    row: Row = {"workload": case.id, "plans": plans}
    return row | ({"ratio": timed[PICK] / min(timed.values())} if PICK in timed else {})


def _kernel(case: Case) -> bool:
    """Whether it is a parameter Jacobian, which is no chain of layers."""
    return "batch" in case.full


def _cell(row: Row, name: str) -> str:
    return number(row["plans"][name].get("median_ms")) or "-"


_COLUMNS: tuple[Column, ...] = (
    ("chain", lambda r: r["workload"]),
    *((f"{name} ms", lambda r, name=name: _cell(r, name)) for name in CONTENDERS),
    ("picked / fastest", lambda r: number(r.get("ratio"))),
)
