"""Recorded programs made quick: what is idle goes, like calls run as one, and the rest is written as by hand."""

from .layout import Layout, Layouts, layout_of
from .one_row import by_vectors
from .tidying import without_idle_moves
from .writing import Spelling, by_hand, by_schema, written

__all__ = [
    "Layout", "Layouts", "Spelling", "by_hand", "by_schema", "by_vectors", "layout_of", "without_idle_moves", "written",
]  # fmt: skip
