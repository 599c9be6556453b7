"""A program of few numbers at many points at once: an entry is a row of memory, which NumPy's arithmetic runs along.

NumPy asks a quarter of the time that PyTorch does before its loop starts, and rounds arithmetic and roots alike. Other
functions are PyTorch's, which see the same memory. A row that nobody needs any more is the next result's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .entries import Entries
from .layout import Layout
from .numbers import COMPARISONS, FUNCTIONS, Node, Numbers, uses

_ARITHMETIC: dict[str, Any] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "neg": np.negative,
    "abs": np.absolute, "sign": np.sign, "sqrt": np.sqrt,
}  # fmt: skip
_COMPARED: dict[str, Any] = {
    "gt": np.greater, "ge": np.greater_equal, "lt": np.less, "le": np.less_equal, "eq": np.equal, "ne": np.not_equal,
}  # fmt: skip
_BY_TORCH: dict[str, Any] = {name: getattr(torch, name) for name in FUNCTIONS if name not in _ARITHMETIC}
_BY_TORCH["pow"] = torch.pow
_TYPES = {torch.float32: np.float32, torch.float64: np.float64}


def in_lanes(
    entries: Entries, inputs: Sequence[int], result: int, layouts: Mapping[int, Layout], dtype: torch.dtype
) -> Callable[..., tuple[Tensor, ...]]:
    """A program as a function of NumPy arrays.

    Args:
        entries: The program, entry by entry.
        inputs: The values that are its arguments, of which the first is used.
        result: The value that is returned.
        layouts: How these lie in memory.
        dtype: Of all of them.

    Returns:
        The function, which raises ArithmeticError where ops must be asked.
    """
    given = entries.given[inputs[0]].reshape(-1).tolist()
    ends = entries.result(result).reshape(-1).tolist()
    lanes = layouts[inputs[0]].shape[0]
    order, checked = entries.numbers.needed(ends)
    text = _Text(entries.numbers, given, ends, order, checked, _TYPES[dtype])
    body = text.lines()
    k, m = len(given), len(ends)
    count = text.rows
    lines = [
        f"def program({', '.join(f'v{index}' for index in inputs)}):",
        f"    whole = empty(({count}, {lanes}), dtype=dtype, device='cpu')",
        "    rows = whole.numpy()",
        f"    rows[:{k}] = v{inputs[0]}.detach().resolve_neg().numpy().reshape({lanes}, {k}).T",
        f"    [{', '.join(f'r{row}' for row in range(count))}] = rows",
        *(f"    t{row} = whole.select(0, {row})" for row in sorted(text.seen_by_torch)),
        *(f"    {line}" for line in body),
        f"    out = empty({tuple(layouts[result].shape)}, dtype=dtype, device='cpu')",
        f"    out.numpy().reshape({lanes}, {m})[...] = rows[{k}:{k + m}].T",
        "    return (out,)",
    ]
    scope = {**text.scope, "empty": torch.empty, "dtype": dtype}
    exec(compile("\n".join(lines) + "\n", "<jacobian lanes>", "exec"), scope)  # noqa: S102 (our own text)
    return _quietly(scope["program"])


def _quietly(program: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """Return a program that says nothing of infinities and NaN, as PyTorch says nothing of them."""
    context = np.errstate

    def quiet(*inputs: Tensor) -> tuple[Tensor, ...]:
        with context(all="ignore"):
            return program(*inputs)

    return quiet


class _Text:
    """Nodes as calls that write rows: those of what is given, then those of the results, then others.

    Args:
        numbers: The arithmetic.
        given: The nodes of what is given.
        ends: The nodes of the results.
        order: What is computed, in order.
        checked: What must be finite.
        kind: The dtype of constants.

    Attributes:
        rows: How many there are.
        seen_by_torch: Those that a function of PyTorch reads or writes.
        scope: What names stand for.
    """

    def __init__(
        self,
        numbers: Numbers,
        given: Sequence[int],
        ends: Sequence[int],
        order: Sequence[int],
        checked: Sequence[int],
        kind: Any,
    ) -> None:
        self._numbers, self._given, self._ends, self._order, self._checked = numbers, given, ends, order, checked
        self._kind = kind
        self._row: dict[int, int] = {node: row for row, node in enumerate(given)}
        self._left = uses(numbers.nodes, order, (*ends, *checked))  # uses that are still to come
        self._free: list[int] = []
        self.rows = len(given) + len(ends)
        self._at_end = {node: len(given) + place for place, node in reversed(list(enumerate(ends))) if node > 0}
        self.seen_by_torch: set[int] = set()
        self.scope: dict[str, Any] = {"where": np.where, "copyto": np.copyto}

    def lines(self) -> list[str]:
        """Return what computes the results."""
        lines: list[str] = []
        for number in self._order:
            node = self._numbers.nodes[number]
            if node.op != "given":
                lines += self._line(number, node)
        for place, node in enumerate(self._ends):
            row = len(self._given) + place
            if self._row.get(node) != row:
                lines.append(f"copyto(r{row}, {self._operand(node)})")
        return lines + self._check()

    def _line(self, number: int, node: Node) -> list[str]:
        args = [self._operand(arg) for arg in node.args]
        if node.op in COMPARISONS:
            self.scope[node.op] = _COMPARED[node.op]
            self._spend(node)
            return [f"m{number} = {node.op}({', '.join(args)})"]
        if node.op == "where":  # not in place, as it reads all of its operands before
            self._spend(node)
            return [f"copyto({self._made(number)}, where({', '.join(args)}))"]
        if node.op in _ARITHMETIC:
            self.scope[node.op] = _ARITHMETIC[node.op]
            self._spend(node)
            return [f"{node.op}({', '.join(args)}, {self._made(number)})"]
        (source,) = [arg for arg in node.args if arg > 0]
        read, power = self._row[source], f", {self._numbers.constants[-node.args[1]]!r}" if node.op == "pow" else ""
        self._spend(node)
        self._made(number)
        self.scope[node.op] = _BY_TORCH[node.op]
        self.seen_by_torch |= {read, self._row[number]}
        return [f"{node.op}(t{read}{power}, out=t{self._row[number]})"]

    def _operand(self, node: int) -> str:
        if node > 0:
            return f"r{self._row[node]}" if node in self._row else f"m{node}"
        name = f"c{-node}"
        self.scope[name] = np.array(self._numbers.constants[-node], dtype=self._kind)
        return name

    def _spend(self, node: Node) -> None:
        """Give back the rows of operands that nobody needs any more."""
        for arg in node.args:
            if arg > 0:
                self._left[arg] -= 1
                if not self._left[arg] and arg in self._row:
                    self._free.append(self._row[arg])

    def _made(self, number: int) -> str:
        """Return a row for a result: its own if it is returned."""
        row = self._at_end.get(number)
        if row is None:
            row = self._free.pop() if self._free else self.rows
            self.rows = max(self.rows, row + 1)
        self._row[number] = row
        return f"r{row}"

    def _check(self) -> list[str]:
        if not self._checked:
            return []
        first, *others = (self._operand(node) for node in self._checked)
        self.scope["add"] = np.add
        lines = [f"s = {first}.copy()", *(f"add(s, {other}, s)" for other in others), "s = float(add.reduce(s))"]
        return [*lines, "if s - s != 0.0: raise ArithmeticError"]
