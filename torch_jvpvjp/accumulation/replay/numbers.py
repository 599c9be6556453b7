"""Arithmetic of single numbers, written down: what is known is computed, what occurs twice is one, zeros go.

A node that is multiplied by zero is dropped, which is right where it is finite: 0 · ∞ and 0 · NaN are NaN. What was
dropped is remembered, so that whoever computes the rest can see to it that it was finite.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from ctypes import c_float
from typing import NamedTuple

import torch

# Functions of one number: what raises outside of its domain, or where the result is infinite.
FUNCTIONS: dict[str, Callable[[float], float]] = {
    name: getattr(math, name)
    for name in (
        "acos acosh asin asinh atan atanh cos cosh erf erfc exp exp2 expm1 log log10 log1p log2 sin sinh sqrt tan tanh"
    ).split()
    if hasattr(math, name)  # exp2 is of Python 3.11
}
OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
COMPARISONS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "==", "ne": "!="}
# A result of these is finite only where their operands are.
_SPREADING = frozenset({"add", "sub", "mul", "neg", "abs"})


class Node(NamedTuple):
    """One operation.

    Attributes:
        op: What is done; `given` of a number from outside.
        args: The nodes that it is done to: of constants, numbers that are not positive.
    """

    op: str
    args: tuple[int, ...]


class Numbers:
    """Operations on numbers, each written down once.

    Nodes are numbered 1, 2, … in the order in which they may be computed; constants 0, −1, …, 0 being zero.

    Args:
        dtype: What constants are rounded to.

    Attributes:
        jumps: Whether any result is not continuous in the numbers given.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._narrow = dtype is torch.float32
        self.constants: list[float] = [0.0]
        self._known: dict[float, int] = {0.0: 0}
        self.nodes: list[Node] = [Node("given", ())]  # none has the number 0
        self._numbers: dict[Node, int] = {}
        self._checked: set[int] = set()
        self.jumps = False

    def given(self) -> int:
        """Return the node of another number from outside."""
        self.nodes.append(Node("given", ()))
        return len(self.nodes) - 1

    def constant(self, value: float) -> int:
        """Return the node of a number that is always the same.

        Args:
            value: The number.

        Returns:
            Its node.

        Raises:
            ArithmeticError: If it is not finite.
        """
        value = c_float(value).value if self._narrow else float(value)
        if not math.isfinite(value):
            raise ArithmeticError(f"a constant is {value}")
        found = self._known.get(value)
        if found is None:
            found = self._known[value] = -len(self.constants)
            self.constants.append(value)
        return found

    def _value(self, node: int) -> float:
        return self.constants[-node]

    def _op(self, op: str, *args: int) -> int:
        node = Node(op, args)
        found = self._numbers.get(node)
        if found is None:
            self.nodes.append(node)
            found = self._numbers[node] = len(self.nodes) - 1
        return found

    def _is(self, node: int, value: float) -> bool:
        return node <= 0 and self.constants[-node] == value

    def must_be_finite(self, node: int) -> None:
        """Note a node that the rest is right for only if it is finite."""
        if node > 0:
            self._checked.add(node)

    def add(self, a: int, b: int) -> int:
        """Return a + b."""
        if a <= 0 and b <= 0:
            return self.constant(self._value(a) + self._value(b))
        if a == 0 or b == 0:
            return a or b
        a, b = max(a, b), min(a, b)
        if b > 0 and self.nodes[b].op == "neg":
            return self.sub(a, self.nodes[b].args[0])
        if self.nodes[a].op == "neg":
            return self.sub(b, self.nodes[a].args[0])
        return self._op("add", a, b)

    def sub(self, a: int, b: int) -> int:
        """Return a − b."""
        if a <= 0 and b <= 0:
            return self.constant(self._value(a) - self._value(b))
        if b == 0:
            return a
        if a == 0:
            return self.neg(b)
        if b > 0 and self.nodes[b].op == "neg":
            return self.add(a, self.nodes[b].args[0])
        return self._op("sub", a, b)

    def neg(self, a: int) -> int:
        """Return −a."""
        if a <= 0:
            return self.constant(-self._value(a))
        return self.nodes[a].args[0] if self.nodes[a].op == "neg" else self._op("neg", a)

    def mul(self, a: int, b: int) -> int:
        """Return a · b."""
        if a <= 0 and b <= 0:
            return self.constant(self._value(a) * self._value(b))
        if a == 0 or b == 0:
            self.must_be_finite(a or b)
            return 0
        a, b = max(a, b), min(a, b)
        if self._is(b, 1.0):
            return a
        if self._is(b, -1.0):
            return self.neg(a)
        negative = [n > 0 and self.nodes[n].op == "neg" for n in (a, b)]
        if any(negative):
            a, b = (self.nodes[n].args[0] if minus else n for n, minus in zip((a, b), negative, strict=True))
            return self.mul(a, b) if all(negative) else self.neg(self.mul(a, b))
        return self._op("mul", a, b)

    def div(self, a: int, b: int) -> int:
        """Return a / b."""
        if a <= 0 and b <= 0:
            return self.constant(self._value(a) / self._value(b))
        if self._is(b, 1.0):
            return a
        if a > 0 and self.nodes[a].op == "neg":
            return self.neg(self.div(self.nodes[a].args[0], b))
        return self._op("div", a, b)

    def function(self, name: str, a: int) -> int:
        """Return a function of a, one of `FUNCTIONS`."""
        return self.constant(FUNCTIONS[name](self._value(a))) if a <= 0 else self._op(name, a)

    def power(self, a: int, exponent: float) -> int:
        """Return a to the power of a number, as PyTorch computes it."""
        if exponent in {0.5, 1.0, 2.0, 3.0}:
            square = self.mul(a, a) if exponent > 1 else a
            return self.function("sqrt", a) if exponent == 0.5 else square if exponent < 3 else self.mul(square, a)
        if exponent in {-0.5, -1.0, -2.0}:
            return self.div(self.constant(1.0), self.power(a, -exponent))
        if exponent == 0:
            return self.constant(1.0)
        return (
            self._op("pow", a, self.constant(exponent)) if a > 0 else self.constant(math.pow(self._value(a), exponent))
        )

    def absolute(self, a: int) -> int:
        """Return |a|."""
        return self.constant(abs(self._value(a))) if a <= 0 else self._op("abs", a)

    def compare(self, name: str, a: int, b: int) -> int:
        """Return whether a is greater than b, and the like: one of `COMPARISONS`."""
        if a <= 0 and b <= 0:
            return self.constant(float(getattr(operator, name)(self._value(a), self._value(b))))
        self.jumps = True
        return self._op(name, a, b)

    def choose(self, condition: int, a: int, b: int) -> int:
        """Return a where a condition holds, and b else."""
        if a == b or condition <= 0:
            return a if a == b or condition else b
        return self._op("where", condition, a, b)

    def sign(self, a: int) -> int:
        """Return 1, 0 or −1."""
        if a <= 0:
            return self.constant((self._value(a) > 0) - (self._value(a) < 0))
        self.must_be_finite(a)  # NaN compares as if it were zero
        self.jumps = True
        return self._op("sign", a)

    def needed(self, results: Iterable[int]) -> tuple[list[int], list[int]]:
        """What must be computed.

        Args:
            results: Nodes that are wanted.

        Returns:
            The nodes, in order, and those that must be found finite.
        """
        wanted = {node for node in results if node > 0} | self._checked
        for number in range(len(self.nodes) - 1, 0, -1):
            if number in wanted:
                wanted.update(arg for arg in self.nodes[number].args if arg > 0)
        order = sorted(wanted)
        seen_finite: set[int] = set()  # if those are that are checked
        checked = []
        for number in reversed(order):
            if number in self._checked and number not in seen_finite:
                checked.append(number)
            if number in self._checked or number in seen_finite:
                node = self.nodes[number]
                seen_finite.update(node.args if node.op in _SPREADING else node.args[:1] if node.op == "div" else ())
        return order, checked[::-1]


def uses(nodes: Sequence[Node], order: Iterable[int], results: Iterable[int]) -> dict[int, int]:
    """Return how many times each node is used, by others or as a result."""
    count: dict[int, int] = {}
    for node in (*(arg for number in order for arg in nodes[number].args), *results):
        count[node] = count.get(node, 0) + 1
    return count
