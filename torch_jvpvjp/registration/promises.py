"""What every op holds its functions to: fresh, contiguous results whose dtype can carry their derivative."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _torch_private as private
from .conventions import Convention
from .signature import Argument


def contiguous(result: Tensor) -> Tensor:
    """A result in the layout that every op promises.

    Args:
        result: A tensor.

    Returns:
        The tensor itself, or a contiguous copy.
    """
    return result if result.is_contiguous() else result.contiguous(memory_format=torch.contiguous_format)


_OPTION_TYPES: dict[str, tuple[type, ...]] = {
    "float": (float, int, torch.SymFloat, torch.SymInt),
    "SymInt": (int, torch.SymInt),
    "bool": (bool, torch.SymBool),
    "str": (str,),
    "ScalarType": (torch.dtype,),
    "Device": (torch.device, str),
    "Scalar": (int, float, complex, torch.SymFloat, torch.SymInt, torch.SymBool),
}


_WORDS = {"SymInt": "an int", "ScalarType": "a torch.dtype", "Device": "a torch.device", "Scalar": "a number"}


def check_option(qualname: str, argument: Argument, value: Any) -> None:
    """Refuse a value that is no option: above all a tensor, whose derivative would be lost.

    Args:
        qualname: The op.
        argument: The argument, not a tensor one.
        value: What came.

    Raises:
        TypeError: If the value is not of the argument's type.
    """
    if isinstance(value, Tensor):
        raise TypeError(
            f"{qualname}: argument {argument.name!r} is a {argument.kind}, got a tensor; pass a number, or annotate it "
            "Tensor to have its derivatives."
        )
    if not _is_option(argument.kind, value):
        raise TypeError(f"{qualname}: argument {argument.name!r} must be {_in_words(argument.kind)}, got {value!r}.")


def _is_option(kind: str, value: Any) -> bool:
    """Whether a value is of a schema type: one of those above, perhaps in a list, perhaps optional."""
    wanted = _OPTION_TYPES.get(kind)
    if wanted is not None:
        return isinstance(value, wanted)
    if kind.endswith("?"):
        return value is None or _is_option(kind[:-1], value)
    if kind.endswith("[]"):
        return isinstance(value, list | tuple) and all(_is_option(kind[:-2], v) for v in value)
    return True


def _in_words(kind: str) -> str:
    """A schema type in words: "a float", "a sequence of int, or None"."""
    if kind.endswith("?"):
        return f"{_in_words(kind[:-1])}, or None"
    if kind.endswith("[]"):
        return f"a list or tuple of {_in_words(kind[:-2]).partition(' ')[2]}"
    return _WORDS.get(kind, f"a {kind}")


def common_device(convention: Convention, args: Sequence[Any]) -> torch.device | None:
    """The one device of all tensor arguments, which a kernel needs.

    Args:
        convention: Of the point.
        args: One value per argument.

    Returns:
        The device; None if no argument is a tensor.

    Raises:
        ValueError: If there are two.
    """
    device = None
    for i in convention.signature.tensors:
        if args[i] is not None:
            if device is None:
                device = args[i].device
            elif args[i].device != device:
                name = convention.signature.arguments[i].name
                raise ValueError(
                    f"{convention.qualname}: all tensors must be on one device, got {name} on {args[i].device} and "
                    f"another on {device}; move one with .to()."
                )
    return device


def finished(
    convention: Convention, results: Sequence[Tensor], args: Sequence[Any], *, look_for_aliases: bool = True
) -> tuple[Tensor, ...]:
    """Results of a formula or kernel on plain tensors, held to every promise.

    A rule may well pass a tangent or cotangent on as it is, so a derivative's results are copied where they alias; a
    primal that does is refused, since its user believes to have declared a function that returns something new.

    Args:
        convention: Of the point.
        results: What it returned.
        args: What it was given.
        look_for_aliases: Whether to look, which takes longer than all the rest.

    Returns:
        The results, contiguous.

    Raises:
        _alias_error: A ValueError, if a primal's result shares memory with an input or another result.
    """
    checked: list[Tensor] = []
    for j, result in enumerate(results):
        if look_for_aliases:
            alias = _find_alias(convention, result, args, checked)
            if alias is not None:
                if not convention.derived:
                    raise _alias_error(convention, j, alias)
                result = result.clone(memory_format=torch.contiguous_format)
        if not result.is_floating_point():
            _check_dtype(convention, j, result)
        checked.append(result if result.is_contiguous() else contiguous(result))
    return tuple(checked)


def _find_alias(convention: Convention, result: Tensor, args: Sequence[Any], earlier: Sequence[Tensor]) -> str | None:
    """What a result shares memory with, in words."""
    for i in convention.signature.tensors:
        if args[i] is not None and (result is args[i] or private.is_alias_of(result, args[i])):
            return f"input {convention.signature.arguments[i].name!r}"
    for k, other in enumerate(earlier):
        if result is other or private.is_alias_of(result, other):
            return f"output {convention.signature.results[k].name!r}"
    return None


def finished_differentiably(
    convention: Convention, results: Sequence[Tensor], args: Sequence[Any]
) -> tuple[Tensor, ...]:
    """Results of a formula that is being differentiated, where tensors may be wrappers without memory of their own.

    Args:
        convention: Of the point.
        results: What it returned.
        args: What it was given.

    Returns:
        The results, contiguous; those without derivative cut from the graph.

    Raises:
        _alias_error: A ValueError, if a primal's result is an input.
    """
    checked = []
    for j, result in enumerate(results):
        if any(result is a for a in (*args, *checked)):
            if not convention.derived:
                raise _alias_error(convention, j, "an input or another output")
            result = result.clone()
        _check_dtype(convention, j, result)
        differentiable = convention.signature.results[j].differentiable
        checked.append(contiguous(result if differentiable else result.detach()))
    return tuple(checked)


def _alias_error(convention: Convention, position: int, what: str) -> ValueError:
    name = convention.signature.results[position].name
    return ValueError(
        f"{convention.qualname}: output {name!r} is a view of, or the same as, {what}; an op must return fresh "
        "tensors, so return .clone() there."
    )


def _check_dtype(convention: Convention, position: int, result: Tensor) -> None:
    wanted = convention.signature.results[position]
    if wanted.differentiable and not (result.is_floating_point() or result.is_complex()):
        declare = f"declare it with non_differentiable_outputs=({position},)."
        raise TypeError(
            f"{convention.qualname}: output {wanted.name!r} has dtype {result.dtype}, which carries no derivative; "
            + ("return a floating-point tensor." if convention.derived else declare)
        )
