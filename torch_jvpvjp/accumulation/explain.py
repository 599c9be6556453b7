"""The stages that were found in a function, as a table."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from .show import WIDTH

if TYPE_CHECKING:
    from .factor import Factor
    from .plan import Plan


def stages_text(plan: Plan) -> str:
    """Return a row for each stage that was found: what it does, its sizes, structure and costs."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("stage", overflow="fold")
    for name in ("n → m", "Jacobian", "fma of a JVP", "of a VJP", "to form J"):
        table.add_column(name, justify="left" if name == "Jacobian" else "right", no_wrap=True)
    for place, factor in enumerate(plan.factors, 1):
        table.add_row(f"F{place}", factor.label, f"{factor.n:,} → {factor.m:,}", *_cells(factor))
    refusals = {} if plan.runtime is None else plan.runtime.refusals()
    notes = [f"{name} is called as it stands: {reason}." for name, reason in refusals.items()]
    if plan.runtime is not None and plan.runtime.conditions:
        count = plan.runtime.conditions
        notes.append(
            f"It looks at data, {'once' if count == 1 else f'{count:,} times'}: where it sees something else, it is "
            f"recorded and planned anew."
        )
    count = len(plan.factors)
    with console.capture() as capture:
        console.print(f"{count} stage{'s' * (count != 1)}", table, *notes, sep="\n", markup=False, highlight=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip()


def _cells(factor: Factor) -> tuple[str, str, str, str]:
    """Return structure, cost of a JVP, of a VJP, and of forming the Jacobian."""
    costs = [factor.jvp_cost, factor.vjp_cost, 0 if factor.given else factor.forming_cost]
    texts = ["–" if cost is None else f"{cost:,}" for cost in costs]
    if factor.given:
        texts[2] = "known"
    return factor.jacobian.name, texts[0], texts[1], texts[2]
