"""The tape: what a function of one tensor does, op by op, with sizes in the place of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..rules.registry import Meta

Target = torch._ops.OpOverload | Callable[..., Any]


@dataclass(frozen=True)
class Ref:
    """A value of the tape in the place of a tensor."""

    index: int


@dataclass(frozen=True, eq=False)
class TapeOp:
    """One call that was recorded.

    Attributes:
        target: An ATen op, or any callable that could not be recorded: a black box.
        args: Positional arguments, a `Ref` in the place of each tensor.
        kwargs: Keyword arguments, likewise.
        outputs: The values that it makes; None for a result that is no tensor.
        active: The values among its arguments that the Jacobian is carried through.
    """

    target: Target
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[int | None, ...]
    active: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What people call it."""
        packet = getattr(self.target, "overloadpacket", None)
        if packet is not None:
            return str(packet).removeprefix("aten.")
        return getattr(self.target, "__name__", type(self.target).__name__)

    @property
    def opaque(self) -> bool:
        """Whether it is a black box, which is called as it stands and never looked into."""
        return not isinstance(self.target, torch._ops.OpOverload)

    @property
    def draws(self) -> bool:
        """Whether it draws random numbers."""
        return torch.Tag.nondeterministic_seeded in getattr(self.target, "tags", ())

    @cached_property
    def operands(self) -> tuple[int, ...]:
        """The values among its arguments, in order, a value once for each place."""
        return tuple(refs_of((self.args, dict(self.kwargs))))

    def call(self, value: Callable[[int], Tensor]) -> list[Tensor | None]:
        """Run the op on the values that `value` gives; the results are those of `outputs`."""
        args, kwargs = fill(self.args, value), fill(dict(self.kwargs), value)
        return flat_outputs(self.target(*args, **kwargs))


@dataclass(eq=False)
class Tape:
    """A recorded function y = f(x).

    Attributes:
        ops: What is run, in order.
        metas: Shape, dtype and device of each value.
        constants: The values that are tensors from outside: parameters, buffers, what f closes over.
        known: The values of whole numbers that structures were made of, on the CPU; see `known_numbers`.
        source: The value x.
        result: The value y.
        checked: Values that f raises for unless they are true; see `checks`.
        raising: Ops that raise, and return nothing, where a condition is false: that says so where it can be seen.
        conditions: Values that f looked at on its way; see `values`.
        outcome: What these were where it was recorded.
        checks: The ops that make what is checked, what may raise and the conditions, in order.
        looked_at: Tensors from outside whose whole numbers f has handed to Python.
        restores: Whether derivatives are on the way that autograd leaves out; see `statistics`.
    """

    ops: list[TapeOp] = field(default_factory=list)
    metas: list[Meta] = field(default_factory=list)
    constants: dict[int, Tensor] = field(default_factory=dict)
    known: dict[int, Tensor] = field(default_factory=dict)
    source: int = 0
    result: int = 0
    checked: list[int] = field(default_factory=list)
    raising: dict[int, TapeOp] = field(default_factory=dict)
    conditions: list[int] = field(default_factory=list)
    outcome: list[Tensor] = field(default_factory=list)
    checks: list[TapeOp] = field(default_factory=list)
    looked_at: list[Tensor] = field(default_factory=list)
    restores: bool = False

    @property
    def looks_to_raise(self) -> bool:
        """Whether f looks at data for nothing but to raise, which ops do for it."""
        return not self.checked and self.raising.keys() >= set(self.conditions)

    def new_value(self, meta: Meta) -> int:
        """Add a value and return its number."""
        self.metas.append(meta)
        return len(self.metas) - 1

    @property
    def differentiated(self) -> int:
        """How many ops the derivative passes through."""
        return sum(bool(op.active) for op in self.ops)

    @property
    def launches(self) -> int:
        """How many ops are launched in each call: no views, nor what constants alone tell, which is done once."""
        outside, count = set(self.constants), 0
        for op in self.ops:
            if outside.issuperset(op.operands):
                outside.update(index for index in op.outputs if index is not None)
            else:
                count += not getattr(op.target, "is_view", False)
        return count

    def active_ops(self) -> Iterator[TapeOp]:
        """Yield the ops that the Jacobian is carried through."""
        return (op for op in self.ops if op.active)


def place_of(tensor: Tensor) -> Any:
    """Return which entries of its memory a tensor looks at."""
    return tensor.storage_offset(), tensor.shape, tensor.stride()


def meta_of(tensor: Tensor) -> Meta:
    """Return the shape, dtype and device of a tensor."""
    return Meta(tensor.shape, tensor.dtype, tensor.device)


def refs_of(tree: Any) -> Iterator[int]:
    """Yield the values in a tree of arguments, in order."""
    if isinstance(tree, Ref):
        yield tree.index
    elif isinstance(tree, (tuple, list)):
        for leaf in tree:
            yield from refs_of(leaf)
    elif isinstance(tree, dict):
        for leaf in tree.values():
            yield from refs_of(leaf)


def fill(tree: Any, value: Callable[[int], Any]) -> Any:
    """Return a tree of arguments with each `Ref` replaced by what `value` gives for it."""
    if isinstance(tree, Ref):
        return value(tree.index)
    if isinstance(tree, (tuple, list)):
        return type(tree)(fill(leaf, value) for leaf in tree)
    if isinstance(tree, dict):
        return {key: fill(leaf, value) for key, leaf in tree.items()}
    return tree


def flat_outputs(out: Any) -> list[Tensor | None]:
    """Return the results of an op as a list, None in the place of what is no tensor."""
    if isinstance(out, Tensor):
        return [out]
    leaves = tree_leaves(out)
    return [leaf if isinstance(leaf, Tensor) else None for leaf in leaves]


def with_refs(tree: Any, number: Callable[[Tensor], int]) -> Any:
    """Return a tree of arguments with a `Ref` in the place of each tensor."""
    if isinstance(tree, Tensor):
        return Ref(number(tree))
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind([with_refs(leaf, number) for leaf in tree])
    return {key: with_refs(leaf, number) for key, leaf in tree.items()} if kind is dict else tree
