"""What check_op found: the failures of an op in one table, led by the simplest property that fails."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

_MOST_IN_FULL = 8


@dataclass(frozen=True)
class Row:
    """One property on one sample.

    Attributes:
        sample: Name of the sample.
        group: Which family of properties, e.g. "eager" or "compiled (aot_eager)".
        name: The property.
        problem: What is wrong, or None.
        skipped: Why it was not checked, or None.
    """

    sample: str
    group: str
    name: str
    problem: str | None = None
    skipped: str | None = None


@dataclass
class Report:
    """All rows of one check; ``print(report)`` shows the failures, the gaps and a count.

    Many failures are summed up: the first in full, which is of the simplest property, then a line for each family.

    Attributes:
        op: Name of the op.
        rows: One per property and sample.
    """

    op: str
    rows: list[Row] = field(default_factory=list)

    @property
    def failures(self) -> list[Row]:
        """The rows that failed."""
        return [row for row in self.rows if row.problem is not None]

    @property
    def skipped(self) -> list[Row]:
        """The rows that could not be checked, each with its reason."""
        return [row for row in self.rows if row.skipped is not None]

    def __str__(self) -> str:
        passed = len(self.rows) - len(self.failures) - len(self.skipped)
        head = f"check_op({self.op}): {passed} passed, {len(self.failures)} failed, {len(self.skipped)} not applicable"
        parts = [head]
        columns = ("sample", "checked", "property", "what")
        if len(self.failures) > _MOST_IN_FULL:  # one mistake shows in many compositions
            first = self.failures[0]
            parts += [
                f"first of them: {first.name}, sample {first.sample} ({first.group})\n  {first.problem}",
                _table("failed", ("checked", "failed", "properties", "what, of the first"), self._by_group()),
                "(report.failures has what of each)",
            ]
        elif self.failures:
            parts.append(_table("failed", columns, [(*_place(row), row.problem or "") for row in self.failures]))
        if self.skipped:
            skipped = [(*_place(row), row.skipped or "") for row in self.skipped]
            parts.append(_table("not applicable", columns, skipped))
        return "\n".join(parts)

    def _by_group(self) -> list[tuple[str, ...]]:
        """For each family of properties how many rows failed, which properties, and what is wrong with the first."""
        groups: dict[str, list[Row]] = {}
        for row in self.failures:
            groups.setdefault(row.group, []).append(row)
        total = Counter(row.group for row in self.rows)
        return [
            (
                group,
                f"{len(rows)} of {total[group]}",
                "; ".join(dict.fromkeys(row.name for row in rows)),
                rows[0].problem or "",
            )
            for group, rows in groups.items()
        ]


def _place(row: Row) -> tuple[str, str, str]:
    return row.sample, row.group, row.name


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich.console import Console
    from rich.table import Table

    buffer = io.StringIO()
    table = Table(title=title, title_justify="left", show_lines=title == "failed")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(_plain, row))
    Console(file=buffer, width=150, no_color=True, highlight=False).print(table)
    return buffer.getvalue().rstrip()


class CheckFailure(AssertionError):
    """An op does not hold what check_op checks; the message is the printed report.

    Attributes:
        report: Every row, passed ones too.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(f"\n{report}")
        self.report = report


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
