"""The arguments of a call by the names that the schema of its op gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .registry import Call, Local, Operand

Arguments = Mapping[str, Any]


class TooManyEntries(Exception):  # noqa: N818 (not an error: the op is differentiated without a closed form)
    """A structure would need an index array, or values, of a size that does not pay."""


def arguments(call: Call) -> dict[str, Any]:
    """Return every argument of a call, defaults filled in; an `Operand` or a list of them stands for tensors."""
    named: dict[str, Any] = {}
    for place, argument in enumerate(call.target._schema.arguments):
        if place < len(call.args):
            named[argument.name] = call.args[place]
        elif argument.name in call.kwargs:
            named[argument.name] = call.kwargs[argument.name]
        else:
            named[argument.name] = argument.default_value
    return named


def reader(call: Call) -> Callable[[Sequence[Tensor]], Arguments]:
    """Return the function that puts the tensors of one run into the named arguments of a call."""
    named = arguments(call)
    places = [(name, value.position) for name, value in named.items() if isinstance(value, Operand)]

    def read(operands: Sequence[Tensor]) -> Arguments:
        return named | {name: operands[position] for name, position in places}

    return read


def fill(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """Return arguments with a tensor in the place of each `Operand`."""
    if isinstance(tree, Operand):
        return tensors[tree.position]
    if isinstance(tree, (list, tuple)):
        return type(tree)(fill(leaf, tensors) for leaf in tree)
    if isinstance(tree, Mapping):
        return {key: fill(leaf, tensors) for key, leaf in tree.items()}
    return tree


def rerun(call: Call, tensors: Sequence[Tensor], **changed: Any) -> Tensor:
    """Run a call on other tensors, some of its keyword arguments changed, and return the result it is about."""
    named = arguments(call) | changed
    schema = call.target._schema.arguments
    positional = [fill(named[argument.name], tensors) for argument in schema if not argument.kwarg_only]
    keyword = {argument.name: fill(named[argument.name], tensors) for argument in schema if argument.kwarg_only}
    result = call.target(*positional, **keyword)
    return result if isinstance(result, Tensor) else result[call.output_index]


def for_active(call: Call, **makers: Callable[[int], Local | None]) -> dict[int, Local]:
    """Return the local derivatives in the active operands among some named arguments.

    Args:
        call: The call.
        **makers: For each name, the function that takes the position of the operand to its local derivative.

    Returns:
        The local derivatives that there are, by position.
    """
    named = arguments(call)
    found: dict[int, Local] = {}
    for name, make in makers.items():
        operand = named[name]
        if isinstance(operand, Operand) and operand.position in call.active:
            found |= _made(operand.position, make)
    return found


def for_every_active(call: Call, make: Callable[[int], Local | None]) -> dict[int, Local]:
    """Return the local derivatives in all active operands, where one function makes them all."""
    found: dict[int, Local] = {}
    for position in call.active:
        found |= _made(position, make)
    return found


def _made(position: int, make: Callable[[int], Local | None]) -> dict[int, Local]:
    try:
        local = make(position)
    except TooManyEntries:
        return {}
    return {} if local is None else {position: local}
