"""Planning strategies, one a file; importing this package registers them."""

from .dynamic_programming import dynamic_programming
from .exhaustive import exhaustive
from .forward import forward
from .greedy import greedy
from .registry import STRATEGIES, Strategy, register_strategy, resolve_strategy
from .reverse import reverse

__all__ = [
    "STRATEGIES",
    "Strategy",
    "dynamic_programming",
    "exhaustive",
    "forward",
    "greedy",
    "register_strategy",
    "resolve_strategy",
    "reverse",
]
