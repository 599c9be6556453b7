"""Plans as text and as HTML, of stable width, the same on every machine."""

from __future__ import annotations

import html
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Plan, Step

WIDTH = 100


def plan_text(plan: Plan) -> str:
    """Return what a plan says of itself: chain, costs beside the two plain modes, and a row for each step."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    for name, fact in plan_facts(plan):
        facts.add_row(name, fact)
    steps = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    steps.add_column("step", justify="right")
    for name in ("action", "mode", "bracket (j, k, i)", "shape", "structure"):
        steps.add_column(name, no_wrap=True)
    steps.add_column("fma", justify="right", no_wrap=True)
    for number, step in enumerate(plan.steps, 1):
        steps.add_row(str(number), *step_cells(step))
    with console.capture() as capture:
        console.print("Jacobian plan", facts, steps, sep="\n", markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()


def plan_facts(plan: Plan) -> list[tuple[str, str]]:
    """Return the header of a plan, as names and facts."""
    sizes = " → ".join(str(size) for size in plan.dims)
    options = [] if plan.tape_limit is None else [f"tape limit {plan.tape_limit:,} entries"]
    options += [] if plan.matrix_free else ["no elimination"]
    return [
        ("chain", sizes),
        ("bracketing", plan.bracketing()),
        ("objective", ", ".join([f"{plan.objective}, by {plan.strategy}", *options])),
        ("all tangent", _compared(plan, plan.tangent_fma)),
        ("all adjoint", _compared(plan, plan.adjoint_fma)),
        ("cost chosen", f"{plan.cost:,} {plan.objective}"),
        ("peak memory", f"{plan.peak_entries:,} entries"),
    ]


def step_cells(step: Step) -> tuple[str, str, str, str, str, str]:
    """Return the row of a step: action, mode, bracket, shape, structure, fma."""
    return (
        step.action.value,
        "" if step.mode is None else step.mode.value,
        f"({', '.join(map(str, step.bracket))})",
        f"{step.shape[0]} × {step.shape[1]}",
        step.structure,
        f"{step.fma:,}",
    )


def ratio_text(reference: int | None, fma: int) -> str:
    """Return how many times the plan's fma a reference takes, as in "5.65×"; empty if that says nothing."""
    if reference is None or fma == 0:
        return ""
    hundredths = (200 * reference + fma) // (2 * fma)  # rounded; in integers, which may be too large for a float
    return f"{hundredths // 100:,}.{hundredths % 100:02d}×"


def _compared(plan: Plan, reference: int | None) -> str:
    if reference is None:
        return "not possible"
    ratio = ratio_text(reference, plan.fma)
    return f"{reference:,} fma" + (f", {ratio} the plan's" if ratio else "")


def plan_html(plan: Plan) -> str:
    """Return the same for a notebook."""
    facts = "".join(f"<tr><th>{html.escape(n)}</th><td>{html.escape(fact)}</td></tr>" for n, fact in plan_facts(plan))
    header = "".join(f"<th>{name}</th>" for name in ("action", "mode", "bracket", "shape", "structure", "fma"))
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in step_cells(step)) + "</tr>" for step in plan.steps
    )
    return f"<b>Jacobian plan</b><table>{facts}</table><table><tr>{header}</tr>{rows}</table>"
