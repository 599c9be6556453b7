"""A plan as a drawing: its bracket tree, with sizes and costs.

The leaves stand in the order of the product, F_q … F_1, so that neighbours that are joined stand together and the
bracketing printed above reads the same way. Each step is a box over what it joins, in the colour of its mode.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bracket import Action, Mode
from .show import price_text, ratio_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .plan import Plan, Step

_COLOURS: dict[Mode | None, str] = {
    Mode.TANGENT: "#4c78a8",
    Mode.ADJOINT: "#e45756",
    Mode.COMPRESSED: "#7b5ea7",
    Mode.CLOSED: "#b07a2a",
    Mode.GIVEN: "#8a8a8a",
    None: "#3d8f5f",
}
_MEANINGS: dict[Mode | None, str] = {
    Mode.TANGENT: "tangents: columns pushed forward",
    Mode.ADJOINT: "adjoints: rows pulled back",
    Mode.COMPRESSED: "tangents compressed by colouring",
    Mode.CLOSED: "formed in closed form",
    Mode.GIVEN: "Jacobian given, no cost",
    None: "matrix · matrix",
}
_BY: dict[Mode | None, str] = {
    Mode.TANGENT: "by tangents",
    Mode.ADJOINT: "by adjoints",
    Mode.COMPRESSED: "compressed",
    Mode.CLOSED: "in closed form",
    Mode.GIVEN: "given",
    None: "",
}
_COLUMN, _LEVEL = 1.45, 1.25  # inches a leaf, inches a level
MOST_FACTORS = 40  # a wider picture than this would no longer be read


def save_drawing(plan: Plan, path: str | Path) -> None:
    """Draw a plan into an image file.

    Args:
        plan: The plan.
        path: The file, whose suffix says the format; .png is added where there is none.

    Raises:
        ImportError: If matplotlib is not installed.
        TypeError: If path is no path.
        ValueError: If the chain is too long to be drawn, or the suffix is of no format.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"Plan.plot: path must be a str or a Path, got {type(path).__name__}.")
    figure, suffix = draw(plan), Path(path).suffix.removeprefix(".")
    formats = sorted(figure.canvas.get_supported_filetypes())
    if suffix and suffix.lower() not in formats:
        raise ValueError(f"Plan.plot: path must end in one of .{', .'.join(formats)}, got {str(path)!r}.")
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white")


def draw(plan: Plan) -> Figure:
    """Draw a plan.

    Args:
        plan: The plan.

    Returns:
        A matplotlib figure that belongs to no window.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the chain is too long to be drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plan.plot: matplotlib must be installed; pip install matplotlib.") from error
    q = len(plan.factors)
    if q > MOST_FACTORS:
        raise ValueError(f"Plan.plot: the chain must have at most {MOST_FACTORS} factors, got {q}; use print(plan).")
    places, top = _layout(plan)
    figure = Figure(figsize=(max(7.0, _COLUMN * (q + 0.6)), _LEVEL * (top + 2.45)))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.9, q - 0.1)
    axes.set_ylim(-1.2, top + 1.25)
    for step in plan.steps:
        _draw_step(axes, plan, step, places)
    axes.annotate("", (-0.75, -0.62), (q - 0.25, -0.62), arrowprops={"arrowstyle": "->", "color": "#555555", "lw": 1.2})
    axes.text(q - 0.25, -0.68, f"input x, {plan.dims[0]:,} numbers", ha="right", va="top", color="#555555")
    axes.text(-0.75, -0.68, f"output y, {plan.dims[-1]:,} numbers", ha="left", va="top", color="#555555")
    _draw_title(axes, plan, top)
    _draw_legend(axes, plan)
    return figure


def _layout(plan: Plan) -> tuple[dict[tuple[int, int], tuple[float, int]], int]:
    """Return where each block stands: over the middle of the factors it spans, one level above what it is made of."""
    q = len(plan.factors)
    places: dict[tuple[int, int], tuple[float, int]] = {}
    for step in plan.steps:  # operands come before results
        decision = step.decision
        middle = q - (decision.j + decision.i) / 2  # F_q at 0, F_1 at q - 1
        below = [places[operand][1] for operand in decision.operands]
        places[decision.span] = (middle, max(below, default=-1) + 1)
    return places, max(level for _, level in places.values())


def _draw_step(
    axes: Any,
    plan: Plan,
    step: Step,
    places: dict[tuple[int, int], tuple[float, int]],
) -> None:
    """A box for a step, a line to each block and each raw factor that goes into it."""
    decision, colour = step.decision, _COLOURS[step.mode]
    x, level = places[decision.span]
    if decision.action is Action.ACCUMULATE:
        _draw_leaf(axes, plan, decision.j, colour, f"{_BY[step.mode]}\n{_short(step.fma)} fma")
        return
    for operand in decision.operands:
        axes.plot(*zip((x, level), places[operand], strict=True), color="#333333", lw=1.6, zorder=1)
    for index in decision.raw_factors:
        leaf = len(plan.factors) - index
        axes.plot((x, leaf), (level, 0), color=colour, lw=1.0, ls=(0, (4, 2)), zorder=1)
        _draw_leaf(axes, plan, index, colour, "swept")
    joined = "multiply" if decision.action is Action.MULTIPLY else f"eliminate {_BY[step.mode]}"
    text = f"{joined}\n{step.shape[0]:,} × {step.shape[1]:,}{_structure(step.structure)}\n{_short(step.fma)} fma"
    _draw_box(axes, x, level, text, colour, filled=True)


def _draw_leaf(axes: Any, plan: Plan, index: int, colour: str, note: str) -> None:
    """A factor, at the bottom, with its sizes."""
    factor = plan.factors[index - 1]
    label = f"  {factor.label}" if factor.label else ""
    shape = f"{factor.n:,} → {factor.m:,}{_structure(factor.jacobian.name)}"
    _draw_box(axes, len(plan.factors) - index, 0, f"F{index}{label}\n{shape}\n{note}", colour, filled=False)


def _draw_box(axes: Any, x: float, y: float, text: str, colour: str, *, filled: bool) -> None:
    box = {"boxstyle": "round,pad=0.35", "edgecolor": colour, "facecolor": colour if filled else "white", "lw": 1.8}
    ink = "white" if filled else "#222222"
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5, color=ink, bbox=box, linespacing=1.3, zorder=3)


def _draw_title(axes: Any, plan: Plan, top: int) -> None:
    """What is computed, what it costs, and what the plain modes would cost."""
    ratios = [
        f"{name} {_short(reference)}" + (f" ({ratio})" if (ratio := ratio_text(reference, plan.fma)) else "")
        for name, reference in (("all tangents", plan.tangent_fma), ("all adjoints", plan.adjoint_fma))
        if reference is not None
    ]
    middle, bracketing = (len(plan.factors) - 1) / 2, f"J = {plan.bracketing()}"
    points = 72 * axes.figure.get_figwidth() / (0.68 * len(bracketing))  # the font size at which it fills the width
    axes.text(middle, top + 1.1, bracketing, ha="center", va="top", fontsize=min(11, points), weight="bold")
    cost = f"{price_text(plan.cost)} {plan.unit} in {len(plan.steps)} steps;  {',  '.join(ratios)}"
    if plan.makespan is not None:
        cost += f";  {price_text(plan.makespan)} {plan.unit} on {plan.threads} workers"
    axes.text(middle, top + 0.8, cost, ha="center", va="top", fontsize=9.5)


def _draw_legend(axes: Any, plan: Plan) -> None:
    """The colours that occur, and what they mean."""
    from matplotlib.patches import Patch

    modes = [mode for mode in _COLOURS if any(step.mode is mode for step in plan.steps)]
    handles = [Patch(color=_COLOURS[mode], label=_MEANINGS[mode]) for mode in modes]
    axes.legend(
        handles=handles, loc="lower center", bbox_to_anchor=(0.5, 0.0), ncols=len(handles), frameon=False, fontsize=9
    )


def _structure(name: str) -> str:
    return "" if name == "dense" else f", {name}"


def _short(number: int) -> str:
    """Return an exact number if it is short, else its size."""
    return f"{number:,}" if number < 10**9 else f"{Decimal(number):.3e}"
