"""Ops that count as the formulas that define them, for code that writes down step by step what a function does."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local


class _Depth(local):
    """How many contexts this thread is in."""

    value = 0


_depth = _Depth()


@contextmanager
def as_formulas() -> Iterator[None]:
    """Within this context composite ops that a mode sees are the steps of their formulas; for this thread."""
    _depth.value += 1
    try:
        yield
    finally:
        _depth.value -= 1


def are_formulas() -> bool:
    """Whether this thread is within such a context."""
    return _depth.value > 0
