"""A program of few numbers as Python that computes with floats: a hundredth of the time of a tensor of one entry.

Floats are as exact as float64 tensors. Where tensors hold infinities or NaN, Python raises, and tensors are asked.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .entries import Entries
from .layout import Layout
from .numbers import COMPARISONS, FUNCTIONS, OPERATORS, Node, Numbers, uses

_DEEPEST = 16  # of expressions within expressions
_FORMATS = {torch.float32: "f", torch.float64: "d"}


def in_python(
    entries: Entries, inputs: Sequence[int], results: Sequence[int], layouts: Mapping[int, Layout], dtype: torch.dtype
) -> Callable[..., tuple[Tensor, ...]]:
    """A program as a function of Python.

    Args:
        entries: The program, entry by entry.
        inputs: The values that are its arguments.
        results: The values that are returned.
        layouts: How these lie in memory.
        dtype: Of all of them.

    Returns:
        The function, which raises ArithmeticError or ValueError where tensors must be asked.
    """
    numbers = entries.numbers
    wanted = {index: entries.result(index) for index in results}
    ends = [node for nodes in wanted.values() for node in nodes.reshape(-1).tolist()]
    order, checked = numbers.needed(ends)
    twice = [arg for number in order if numbers.nodes[number].op == "sign" for arg in numbers.nodes[number].args]
    text = _Text(numbers, uses(numbers.nodes, order, (*ends, *checked, *checked, *twice)))
    lines = [f"def program({', '.join(f'v{index}' for index in inputs)}):"]
    needed = set(order)
    for index, nodes in entries.given.items():
        if not needed.isdisjoint(nodes.reshape(-1).tolist()):
            lines.append(f"    {_unpacked(nodes, needed)} = v{index}.tolist()")
    lines += [f"    {line}" for number in order for line in text.line(number)]
    for start in range(0, len(checked), 32):
        lines.append(f"    s = {' + '.join(f'n{node}' for node in checked[start : start + 32])}")
        lines.append("    if s - s != 0.0: raise ArithmeticError")
    scope: dict[str, Any] = {**FUNCTIONS, "power": math.pow}
    made = []
    for place, index in enumerate(results):
        order_in_memory = _order(layouts[index])
        flat = torch.permute(wanted[index], order_in_memory).reshape(-1).tolist()
        scope[f"make{place}"] = _maker(layouts[index].shape, dtype, order_in_memory)
        scope[f"pack{place}"] = struct.Struct(f"{len(flat)}{_FORMATS[dtype]}").pack_into
        lines.append(f"    o{place}, memory = make{place}()")
        lines.append(f"    pack{place}(memory, 0, {', '.join(map(text.operand, flat))})")
        made.append(f"o{place}")
    lines.append(f"    return ({', '.join(made)},)")
    exec(compile("\n".join(lines) + "\n", "<jacobian entries>", "exec"), scope)  # noqa: S102 (our own text)
    return scope["program"]


def _order(layout: Layout) -> tuple[int, ...]:
    """Return the axes in the order in which they lie in memory; as they are where there are gaps between entries."""
    axes = tuple(range(len(layout.shape)))
    order = tuple(sorted(axes, key=lambda axis: (-layout.stride[axis], axis)))
    shape, stride = (tuple(side[axis] for axis in order) for side in (layout.shape, layout.stride))
    dense = layout._replace(shape=torch.Size(shape), stride=stride)
    return order if dense.contiguous else axes


def _maker(shape: Sequence[int], dtype: torch.dtype, order: Sequence[int]) -> Callable[[], tuple[Tensor, Any]]:
    """Return what makes an empty result whose axes lie in an order, and its memory as one run."""
    empty, plain = torch.empty_strided, list(order) == list(range(len(shape)))
    whole = torch.empty([shape[axis] for axis in order], device="meta")
    size, stride = tuple(shape), torch.permute(whole, [order.index(axis) for axis in range(len(shape))]).stride()

    def make() -> tuple[Tensor, Any]:
        out = empty(size, stride, dtype=dtype, device="cpu")
        return out, out.numpy() if plain else out.numpy().transpose(order)

    return make


def _unpacked(nodes: Tensor, needed: set[int]) -> str:
    """Return the names of nodes, nested as `tolist` nests what they stand for."""

    def names(tree: Any) -> str:
        if isinstance(tree, int):
            return f"n{tree}" if tree in needed else "_"
        return f"[{', '.join(map(names, tree))}]"

    return names(nodes.tolist())


class _Text:
    """Nodes as Python: those that are used once are written where they are used.

    Args:
        numbers: The arithmetic.
        count: How many times each node is used.
    """

    def __init__(self, numbers: Numbers, count: Mapping[int, int]) -> None:
        self._numbers, self._count = numbers, count
        self._inline: dict[int, tuple[str, int]] = {}  # an expression and how deep it is

    def operand(self, node: int) -> str:
        """Return a node as an operand."""
        if node <= 0:
            value = self._numbers.constants[-node]
            return f"({value!r})" if value < 0 else repr(value)
        return self._inline[node][0] if node in self._inline else f"n{node}"

    def line(self, number: int) -> list[str]:
        """Return what computes a node, if it is not written elsewhere."""
        node = self._numbers.nodes[number]
        if node.op == "given":
            return []
        if node.op == "sign":
            a = self.operand(node.args[0])
            return [f"n{number} = 1.0 if {a} > 0.0 else -1.0 if {a} < 0.0 else 0.0"]
        depth = 1 + max((self._inline[arg][1] for arg in node.args if arg in self._inline), default=0)
        text = self._expression(node)
        if self._count.get(number) == 1 and depth < _DEEPEST:
            self._inline[number] = text, depth
            return []
        return [f"n{number} = {text}"]

    def _expression(self, node: Node) -> str:
        args = [self.operand(arg) for arg in node.args]
        sign = OPERATORS.get(node.op) or COMPARISONS.get(node.op)
        if sign is not None:
            return f"({args[0]} {sign} {args[1]})"
        if node.op == "where":
            return f"({args[1]} if {args[0]} else {args[2]})"
        if node.op == "neg":
            return f"(-{args[0]})"
        return f"{ {'pow': 'power'}.get(node.op, node.op) }({', '.join(args)})"
