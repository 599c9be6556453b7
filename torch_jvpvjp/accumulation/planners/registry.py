"""The table of planning strategies. A strategy turns a `Problem` into the brackets of a plan, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ..bracket import Bracket
from ..problem import Problem

Strategy = Callable[[Problem], Iterable[Bracket]]

STRATEGIES: dict[str, Strategy] = {}


def register_strategy(name: str) -> Callable[[Strategy], Strategy]:
    """Make a strategy available by name, as a decorator: `@register_strategy("mine")`.

    The strategy takes a `Problem` and returns one `Bracket` for each step; it need neither price nor order them, and
    what it returns is checked before a plan is made of it.

    Args:
        name: The name that `chain.plan(strategy=name)` will know it by.

    Returns:
        The decorator, which returns the strategy unchanged.

    Raises:
        TypeError: If the name is no text, or what is decorated no function.
        ValueError: If the name is taken.
    """
    if not isinstance(name, str):
        raise TypeError(f'register_strategy: name must be a str, got {name!r}; write @register_strategy("mine").')
    if name in STRATEGIES:
        raise ValueError(f"register_strategy: name must be new, got {name!r}, which is registered; take another.")

    def register(strategy: Strategy) -> Strategy:
        if not callable(strategy):
            raise TypeError(f"register_strategy: strategy {name!r} must be a function, got {type(strategy).__name__}.")
        STRATEGIES[name] = strategy
        return strategy

    return register


def resolve_strategy(name: str) -> Strategy:
    """The strategy of that name.

    Args:
        name: A registered name.

    Returns:
        The strategy.

    Raises:
        ValueError: If no strategy has that name.
    """
    if name not in STRATEGIES:
        known = ", ".join(repr(known) for known in STRATEGIES)
        raise ValueError(f"plan: strategy must be one of {known}, got {name!r}; add your own by register_strategy.")
    return STRATEGIES[name]
