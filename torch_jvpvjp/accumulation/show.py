"""Plans as text and as HTML, of stable width, the same on every machine."""

from __future__ import annotations

import html
from io import StringIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cost import Price
    from .plan import Plan, Step

WIDTH = 100
WIDE = 140  # with a timetable


def plan_text(plan: Plan) -> str:
    """Return what a plan says of itself: chain, costs beside the two plain modes, and a row for each step."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    width = WIDTH if plan.timetable is None else WIDE
    console = Console(file=StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
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
    if plan.timetable is not None:
        steps.add_column("worker", justify="right", no_wrap=True)
        steps.add_column(f"start – end ({plan.unit})", no_wrap=True)
    for number, step in enumerate(plan.steps, 1):
        steps.add_row(str(number), *step_cells(step), *slot_cells(plan, number - 1))
    with console.capture() as capture:
        console.print("Jacobian plan", facts, steps, sep="\n", markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()


def plan_facts(plan: Plan) -> list[tuple[str, str]]:
    """Return the header of a plan, as names and facts."""
    sizes = " → ".join(str(size) for size in plan.dims)
    options = [] if plan.tape_limit is None else [f"tape limit {plan.tape_limit:,} entries"]
    options += [] if plan.peak_limit is None else [f"at most {plan.peak_limit:,} entries held"]
    options += [] if plan.matrix_free else ["no elimination"]
    options += [] if plan.batch == 1 else [f"batch of {plan.batch:,}"]
    facts = [
        ("chain", sizes),
        ("bracketing", plan.bracketing()),
        ("objective", ", ".join([f"{plan.objective}, by {plan.strategy}", *options])),
        ("all tangent", _compared(plan, plan.tangent_fma)),
        ("all adjoint", _compared(plan, plan.adjoint_fma)),
        ("cost chosen", f"{price_text(plan.cost)} {plan.unit}"),
        ("peak memory", _peak(plan)),
    ]
    if plan.seconds is not None:
        facts.append(("a call", f"{price_text(plan.seconds)} s predicted, f itself included"))
    if plan.makespan is not None:
        workers = "1 worker" if plan.threads == 1 else f"{plan.threads} workers"
        facts.append(("makespan", f"{price_text(plan.makespan)} {plan.unit} on {workers}"))
    return facts


def _peak(plan: Plan) -> str:
    """Return the entries of blocks, and the bytes of everything where somebody has asked for them already."""
    known: int | None = vars(plan).get("peak_bytes")
    entries = f"{plan.peak_entries:,} entries"
    return entries if known is None else f"{entries} of blocks, {known:,} bytes in all"


def price_text(price: Price) -> str:
    """Return a price as text: every digit of an integer, four of a float."""
    return f"{price:,}" if isinstance(price, int) else f"{price:.4g}"


def slot_cells(plan: Plan, place: int) -> tuple[str, ...]:
    """Return worker, start and end of a step; nothing for a plan without a timetable."""
    if plan.timetable is None:
        return ()
    slot = plan.timetable[place]
    return str(slot.worker + 1), f"{price_text(slot.start)} – {price_text(slot.end)}"


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
    names = ["action", "mode", "bracket", "shape", "structure", "fma"]
    names += [] if plan.timetable is None else ["worker", f"start – end ({plan.unit})"]
    header = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells in ((*step_cells(step), *slot_cells(plan, place)) for place, step in enumerate(plan.steps))
    )
    return f"<b>Jacobian plan</b><table>{facts}</table><table><tr>{header}</tr>{rows}</table>"
