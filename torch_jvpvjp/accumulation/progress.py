"""A progress bar for long work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from .execute import Execution


@contextmanager
def bar(total: int, how: Execution) -> Iterator[Execution]:
    """Show a bar of `total` pieces of work while the block runs; yields the execution that moves it."""
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    with Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn()) as progress:
        work = progress.add_task("jacobian", total=total)
        yield replace(how, advanced=lambda: progress.advance(work))
