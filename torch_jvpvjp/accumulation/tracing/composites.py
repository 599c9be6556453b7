"""Functions that are more than they look: what others want to have open while a function is recorded.

A library whose ops hide the steps that they are made of can show them to the accumulator, which knows the Jacobian of
each step in closed form and of an op by its JVP and VJP alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

_CONTEXTS: list[Callable[[], AbstractContextManager[None]]] = []


def record_within(context: Callable[[], AbstractContextManager[None]]) -> None:
    """Have functions recorded within a context.

    Args:
        context: Makes it; within, calls of ops are calls of the steps that they are made of, to rounding equal in value
            and in every derivative.
    """
    _CONTEXTS.append(context)


@contextmanager
def composites() -> Iterator[None]:
    """Open what others want to have open."""
    with ExitStack() as stack:
        for context in _CONTEXTS:
            stack.enter_context(context())
        yield
