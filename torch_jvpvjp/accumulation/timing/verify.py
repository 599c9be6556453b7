"""Predicted against measured time of a plan, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Protocol


class PlannedStep(Protocol):
    """What is read of a step of a plan."""

    @property
    def action(self) -> str: ...  # noqa: D102
    @property
    def mode(self) -> str | None: ...  # noqa: D102
    @property
    def bracket(self) -> tuple[int, int, int]: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, int]: ...  # noqa: D102


@dataclass(frozen=True)
class VerifiedStep:
    """One step of a plan with both its times.

    Attributes:
        step: What was done, such as "eliminate tangent (3, 2, 1)".
        shape: Shape of the block that it computed.
        predicted: Seconds that the model gives it.
        measured: Seconds that it took.
    """

    step: str
    shape: tuple[int, int]
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured over predicted; infinite where nothing was predicted and something measured."""
        return _ratio(self.measured, self.predicted)


@dataclass(frozen=True)
class Verification:
    """The times of all steps. `print` shows them as a table.

    Steps are timed as the ops that they consist of. A whole call computes f too, which no step counts, and checks that
    f is what it was; on the other hand it may replay what several steps do as one, without tensors even.

    Attributes:
        rows: The steps, in the order of execution.
        call: A whole call; None if it was not timed.
    """

    rows: tuple[VerifiedStep, ...]
    call: VerifiedStep | None = None

    @property
    def predicted(self) -> float:
        """Seconds of all steps by the model."""
        return sum(row.predicted for row in self.rows)

    @property
    def measured(self) -> float:
        """Seconds of all steps as measured."""
        return sum(row.measured for row in self.rows)

    @property
    def ratio(self) -> float:
        """Measured over predicted time of all steps."""
        return _ratio(self.measured, self.predicted)

    def __str__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(title="predicted and measured time", title_justify="left")
        table.add_column("step")
        table.add_column("shape", justify="right")
        for heading in ("predicted", "measured", "measured / predicted"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            m, n = row.shape
            table.add_row(row.step, f"{m} × {n}", *_cells(row.predicted, row.measured, row.ratio))
        table.add_section()
        table.add_row("total", "", *_cells(self.predicted, self.measured, self.ratio))
        if self.call is not None:
            table.add_row(self.call.step, "", *_cells(self.call.predicted, self.call.measured, self.call.ratio))
        console = Console(file=StringIO(), width=110, color_system=None)
        with console.capture() as captured:
            console.print(table)
        return captured.get().rstrip()


def verify_plan(
    steps: Sequence[PlannedStep], predicted: Sequence[float], measured: Iterable[tuple[PlannedStep, float]]
) -> Verification:
    """Pair the steps of a plan with what a run of it took.

    Args:
        steps: The steps of the plan.
        predicted: Seconds of each by the model.
        measured: Yields each step that was executed with its seconds, in any order; a step that is yielded several
            times, by several runs, counts with the median.

    Returns:
        One row for each step.

    Raises:
        ValueError: If predictions and steps differ in number, or a step was not measured.
    """
    if len(steps) != len(predicted):
        raise ValueError(
            f"verify_plan: predicted must hold one time for each of {len(steps)} steps, got {len(predicted)}."
        )
    times: dict[tuple[object, ...], list[float]] = {}
    for step, seconds in measured:
        times.setdefault(_identity(step), []).append(seconds)
    missing = [_name(step) for step in steps if _identity(step) not in times]
    if missing:
        raise ValueError(f"verify_plan: measured must yield every step of the plan, got none for {missing}.")
    return Verification(tuple(_rows(steps, predicted, times)))


def verification_table(steps: Sequence[PlannedStep], predicted: Sequence[float], measured: Sequence[float]) -> str:
    """Return the table of a plan's steps with their predicted and measured seconds, in the same order."""
    return str(verify_plan(steps, predicted, zip(steps, measured, strict=True)))


def _rows(
    steps: Sequence[PlannedStep], predicted: Sequence[float], times: dict[tuple[object, ...], list[float]]
) -> Iterator[VerifiedStep]:
    for step, seconds in zip(steps, predicted, strict=True):
        taken = sorted(times[_identity(step)])
        yield VerifiedStep(_name(step), step.shape, float(seconds), taken[len(taken) // 2])


def _identity(step: PlannedStep) -> tuple[object, ...]:
    return step.action, step.mode, step.bracket


def _name(step: PlannedStep) -> str:
    return " ".join(str(part) for part in (step.action, step.mode, step.bracket) if part is not None)


def _ratio(measured: float, predicted: float) -> float:
    if predicted > 0:
        return measured / predicted
    return float("inf") if measured > 0 else 1.0


def _cells(predicted: float, measured: float, ratio: float) -> tuple[str, str, str]:
    return f"{predicted * 1e6:,.1f} µs", f"{measured * 1e6:,.1f} µs", f"{ratio:.2f}" if predicted else "–"
