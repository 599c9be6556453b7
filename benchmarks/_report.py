"""What a benchmark leaves: one table, one JSON file, one plot."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _environment import describe, device_slug, headline

RESULTS = Path(__file__).resolve().parent / "results"

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], str]]  # heading, and how a row fills it


@dataclass
class Report:
    """Rows of one benchmark on one device.

    Attributes:
        name: Name of the benchmark.
        device: Where it ran.
        rows: One dictionary per contender, operation, shape and dtype.
        key_figures: The few numbers a target is set for.
        notes: What a reader must know, such as rows left out.
        extra: Further entries of the JSON.
    """

    name: str
    device: torch.device
    rows: list[Row] = field(default_factory=list)
    key_figures: Row = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    extra: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.environment = describe(self.device)

    def show(self, columns: Sequence[Column], sections: Callable[[Row], object] | None = None) -> None:
        """Print the table under a line naming device, versions and commit, then notes and key figures.

        Args:
            columns: The columns, from left to right.
            sections: Rows for which it differs are kept apart by a line.
        """
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        width = max(shutil.get_terminal_size((0, 0)).columns, 200)
        console = Console(width=width, highlight=False, soft_wrap=False)
        table = Table()
        for heading, _ in columns:
            table.add_column(heading, overflow="fold")
        for number, row in enumerate(self.rows):
            following = self.rows[number + 1] if number + 1 < len(self.rows) else row
            ends = sections is not None and sections(row) != sections(following)
            table.add_row(*(escape(fill(row)) for _, fill in columns), end_section=ends)
        console.print(f"{self.name}: {headline(self.environment)}", markup=False)
        console.print(table)
        for note in self.notes:
            console.print(f"note: {note}", markup=False)
        for figure, value in self.key_figures.items():
            console.print(f"{figure}: {value}", markup=False)

    def path(self, directory: Path) -> Path:
        """Return the path of the JSON file in a folder, ``<name>-<device>.json``."""
        return directory / f"{self.name}-{device_slug(self.device)}.json"

    def save(self, directory: Path, *, quietly: bool = False) -> Path:
        """Write the JSON file.

        Args:
            directory: Where to; it is made if absent.
            quietly: Whether not to say so.

        Returns:
            Path of the file, ``<name>-<device>.json``.
        """
        directory.mkdir(parents=True, exist_ok=True)
        path = self.path(directory)
        content = {
            "benchmark": self.name,
            "environment": self.environment,
            **self.extra,
            "key_figures": self.key_figures,
            "notes": self.notes,
            "rows": self.rows,
        }
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if not quietly:
            print(f"saved {_shown(path)}")
        return path

    def plot(self, path: Path, draw: Callable[[Any], Any]) -> None:
        """Save a plot, where matplotlib is installed.

        Args:
            path: Of the JSON file; the plot stands beside it.
            draw: From ``matplotlib.pyplot`` to a figure.
        """
        try:
            import matplotlib

            matplotlib.use("Agg")
            import matplotlib.pyplot as plt
        except ImportError:
            print("no plot: matplotlib is not installed")
            return
        figure = draw(plt)
        figure.savefig(path.with_suffix(".png"), dpi=130, bbox_inches="tight")
        plt.close(figure)
        print(f"saved {_shown(path.with_suffix('.png'))}")


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table.

    Args:
        value: The number, or None.
        digits: Significant digits.

    Returns:
        The number, "" for None.
    """
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def problem(error: BaseException) -> str:
    """An exception in one short line.

    Args:
        error: The exception.

    Returns:
        Its type and the first line of its message.
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:160]


def _shown(path: Path) -> str:
    """A path as seen from the repository, where it lies in it."""
    root = RESULTS.parent.parent
    return str(path.resolve().relative_to(root)) if path.resolve().is_relative_to(root) else str(path)
