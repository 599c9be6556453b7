"""A call that can be made again later: with other tensors, and with what its function referred to at the time."""

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["Call"]


class Call:
    """One call of a function, as a function of its tensors: arguments, and whichever it refers to and are wanted.

    Args:
        function: What is called.
        args: Its arguments, in trees of tensors and anything else.
        kwargs: Its keyword arguments, likewise.
        wanted: Which tensors that it refers to are operands as well.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        wanted: Callable[[Tensor], bool],
    ) -> None:
        while isinstance(function, partial):
            bound: Any = function
            args, kwargs, function = (*bound.args, *args), {**bound.keywords, **kwargs}, bound.func
        self._function = function
        operands: dict[int, tuple[int, Tensor]] = {}
        self._arguments = _Tree((args, kwargs), operands, lambda _: True)
        self._slots = [(slot, _Tree(value, operands, wanted)) for slot, value in _references(function)]
        self._operands = [tensor for _, tensor in operands.values()]

    def take_operands(self) -> list[Tensor]:
        """The tensors that it was made with, each once; they are not kept alive here."""
        operands, self._operands = self._operands, []
        return operands

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """Call the function on these tensors in the place of the call's own; the tensors in its result, each once."""
        args, kwargs = self._arguments.of(tensors)
        with self._referring_to(tensors):
            result = self._function(*args, **kwargs)
        results: dict[int, tuple[int, Tensor]] = {}
        self._result = _Tree(result, results, lambda _: True)
        return [tensor for _, tensor in results.values()]

    def result(self, tensors: Sequence[Tensor]) -> Any:
        """What the function returned, with these tensors in it."""
        return self._result.of(tensors)

    @contextmanager
    def _referring_to(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Everything that the function refers to as it was in the call, the operands among it exchanged for these."""
        changed = []
        try:
            for slot, tree in self._slots:
                value, present = tree.of(tensors), slot.read()
                if present is not value:
                    changed.append((slot, present))
                    slot.write(value)
            yield
        finally:
            for slot, present in reversed(changed):
                slot.write(present)


class _Tree:
    """A value in which some tensors are known only by their place in a list of operands."""

    def __init__(self, value: Any, operands: dict[int, tuple[int, Tensor]], wanted: Callable[[Tensor], bool]) -> None:
        leaves, spec = pytree.tree_flatten(value)
        self.value, self.leaves, self.spec = value, leaves, spec
        self.positions = [
            operands.setdefault(id(leaf), (len(operands), leaf))[0]
            if isinstance(leaf, Tensor) and wanted(leaf)
            else None
            for leaf in leaves
        ]
        self.holds_operands = any(i is not None for i in self.positions)
        if self.holds_operands:  # which are not kept alive here
            self.value = None
            self.leaves = [leaf if i is None else None for leaf, i in zip(leaves, self.positions, strict=True)]

    def of(self, tensors: Sequence[Tensor]) -> Any:
        """The value with these operands in it; the very object if it holds none."""
        if not self.holds_operands:
            return self.value
        pairs = zip(self.leaves, self.positions, strict=True)
        return pytree.tree_unflatten([leaf if i is None else tensors[i] for leaf, i in pairs], self.spec)


_GONE = object()


class _Slot(NamedTuple):
    """A place outside of the arguments where a function finds something: an attribute, or an entry of a dict."""

    owner: Any
    key: str
    is_entry: bool

    def read(self) -> Any:
        """What stands there; _GONE if nothing does."""
        if self.is_entry:
            return self.owner.get(self.key, _GONE)
        try:
            return getattr(self.owner, self.key)
        except ValueError:  # a cell that is not assigned yet
            return _GONE

    def write(self, value: Any) -> None:
        """Put something there, or take out what is there."""
        if not self.is_entry:
            delattr(self.owner, self.key) if value is _GONE else setattr(self.owner, self.key, value)
        elif value is _GONE:
            del self.owner[self.key]
        else:
            self.owner[self.key] = value


def _references(function: Any) -> Iterator[tuple[_Slot, Any]]:
    """Yield what a function finds outside of its arguments, and where.

    Cells and defaults of functions, parameters and buffers of modules, attributes of the object whose method it is: of
    the function, and of the functions and modules among these, also in lists, tuples and dicts.
    """
    pending, seen = [function], set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            yield from (found for module in value.modules() for found in _state(module))
            continue
        slots: list[_Slot] = []
        if isinstance(value, types.FunctionType):
            slots = [_Slot(cell, "cell_contents", is_entry=False) for cell in value.__closure__ or ()]
            slots += [_Slot(value, name, is_entry=False) for name in ("__defaults__", "__kwdefaults__")]
        elif isinstance(value, types.MethodType):
            pending += [value.__func__, value.__self__]
            slots = _attributes(value.__self__)
        elif isinstance(value, partial):
            pending += [value.func, *pytree.tree_leaves((value.args, value.keywords))]
        elif value is function:  # an object that can be called
            pending.append(type(value).__call__)
            slots = _attributes(value)
        for slot in slots:
            content = slot.read()
            if content is not None and content is not _GONE:
                yield slot, content
                pending += pytree.tree_leaves(content)


def _attributes(value: Any) -> list[_Slot]:
    attributes = {} if isinstance(value, torch.nn.Module) else getattr(value, "__dict__", {})
    if not isinstance(attributes, dict):  # a class shows its own through a proxy
        return []
    return [_Slot(attributes, name, is_entry=True) for name in attributes]


def _state(module: torch.nn.Module) -> Iterator[tuple[_Slot, Tensor]]:
    """Parameters and buffers of one module: what it is lent for a call; and what setattr put in the place of some."""
    for entries in (module._parameters, module._buffers):
        for name, tensor in entries.items():
            if tensor is not None:
                yield _Slot(entries, name, is_entry=True), tensor
    attributes = vars(module)
    for name, value in attributes.items():
        if isinstance(value, Tensor):
            yield _Slot(attributes, name, is_entry=True), value
