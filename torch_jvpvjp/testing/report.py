"""What check_op found: every failure of an op in one table."""

import io
from dataclasses import dataclass, field


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
        from rich.console import Console
        from rich.table import Table

        buffer = io.StringIO()
        console = Console(file=buffer, width=150, no_color=True, highlight=False)
        passed = len(self.rows) - len(self.failures) - len(self.skipped)
        console.print(
            f"check_op({self.op}): {passed} passed, {len(self.failures)} failed, {len(self.skipped)} not applicable",
            markup=False,
        )
        for title, rows in (("failed", self.failures), ("not applicable", self.skipped)):
            if rows:
                table = Table(title=title, title_justify="left", show_lines=title == "failed")
                for heading in ("sample", "checked", "property", "what"):
                    table.add_column(heading, overflow="fold")
                for row in rows:
                    table.add_row(*map(_plain, (row.sample, row.group, row.name, row.problem or row.skipped or "")))
                console.print(table)
        return buffer.getvalue().rstrip()


class CheckFailure(AssertionError):
    """An op does not hold what check_op checks; the message is the whole table.

    Attributes:
        report: Every row, passed ones too.
    """

    def __init__(self, report: Report) -> None:
        super().__init__(f"\n{report}")
        self.report = report


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
