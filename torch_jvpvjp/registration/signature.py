"""What the dispatcher op of a declaration takes and returns, inferred from the reference's annotations."""

import inspect
import math
import re
import types
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from . import _torch_private as private


@dataclass(frozen=True)
class Argument:
    """One input of an op.

    Attributes:
        name: Its name in the schema.
        kind: Its schema type, e.g. ``Tensor``, ``Tensor?``, ``float``, ``SymInt[]``.
        differentiable: Whether derivatives flow through it; only tensors can.
        default: The schema text of its default, or None.
    """

    name: str
    kind: str
    differentiable: bool = False
    default: str | None = None

    @property
    def is_tensor(self) -> bool:
        """Whether it takes a tensor (or None, for ``Tensor?``)."""
        return self.kind in ("Tensor", "Tensor?")


@dataclass(frozen=True)
class Result:
    """One output of an op.

    Attributes:
        name: What rules and messages call it.
        differentiable: Whether derivatives flow out of it.
        residual: Whether it is kept for a kernel's pullback only and hidden from the user. A formula recomputes what a
            residual holds: differentiating a formula that reads a saved one is silently wrong.
    """

    name: str
    differentiable: bool = True
    residual: bool = False


@dataclass(frozen=True)
class Signature:
    """Arguments and results of a dispatcher op; everything that the tower of derivatives derives from.

    Attributes:
        arguments: The inputs, in schema order.
        results: The outputs; residuals last.
    """

    arguments: tuple[Argument, ...]
    results: tuple[Result, ...]
    defaults: tuple[Any, ...] = field(default=(), compare=False)  # of the trailing arguments that have one

    # Derived once, eagerly: Dynamo traces through these attributes and cannot trace a cached property's lock.
    tensors: tuple[int, ...] = field(init=False, compare=False)  # arguments that take tensors
    differentiable: tuple[int, ...] = field(init=False, compare=False)  # ... through which derivatives flow
    required: tuple[int, ...] = field(init=False, compare=False)  # ... and do not take None
    options: tuple[int, ...] = field(init=False, compare=False)  # arguments that take anything else
    frozen: tuple[int, ...] = field(init=False, compare=False)  # ... through which none may
    differentiable_results: tuple[int, ...] = field(init=False, compare=False)
    visible_results: tuple[int, ...] = field(init=False, compare=False)
    inputs_type: Any = field(init=False, compare=False)  # named tuples in which rules receive their arguments
    tangents_type: Any = field(init=False, compare=False)
    cotangents_type: Any = field(init=False, compare=False)

    def __post_init__(self) -> None:
        tensors = [i for i, a in enumerate(self.arguments) if a.is_tensor]
        differentiable = [i for i in tensors if self.arguments[i].differentiable]
        flowing = [j for j, r in enumerate(self.results) if r.differentiable]
        derived = {
            "tensors": tuple(tensors),
            "differentiable": tuple(differentiable),
            "required": tuple(i for i in tensors if self.arguments[i].kind == "Tensor"),
            "options": tuple(i for i, a in enumerate(self.arguments) if not a.is_tensor),
            "frozen": tuple(i for i in tensors if i not in differentiable),
            "differentiable_results": tuple(flowing),
            "visible_results": tuple(j for j, r in enumerate(self.results) if not r.residual),
            "inputs_type": namedtuple("Inputs", [a.name for a in self.arguments]),
            "tangents_type": namedtuple("Tangents", [self.arguments[i].name for i in differentiable]),
            "cotangents_type": namedtuple("Cotangents", [self.results[j].name for j in flowing]),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def schema(self, opname: str) -> str:
        """The text that defines the op in the dispatcher.

        Args:
            opname: Name of the op without its namespace.

        Returns:
            The schema, e.g. ``soft_clip(Tensor x, float limit=1.0) -> Tensor``.
        """
        arguments = ", ".join(
            f"{a.kind} {a.name}" + (f"={a.default}" if a.default is not None else "") for a in self.arguments
        )
        returns = "Tensor" if len(self.results) == 1 else "(" + ", ".join(["Tensor"] * len(self.results)) + ")"
        return f"{opname}({arguments}) -> {returns}"

    def bind(self, qualname: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """One value per argument of a call.

        Args:
            qualname: The op, for messages.
            args: What was given by position.
            kwargs: What was given by name.

        Returns:
            The values, in order.

        Raises:
            TypeError: If they do not fit.
        """
        if not kwargs and len(args) == len(self.arguments):
            return args
        names = [a.name for a in self.arguments]
        unknown = [k for k in kwargs if k not in names[len(args) :]]
        required = names[: len(names) - len(self.defaults)]
        missing = [n for n in required[len(args) :] if n not in kwargs]
        if unknown or missing or len(args) > len(names):
            raise TypeError(
                f"{qualname}: takes ({', '.join(names)}); "
                + (f"missing {missing}" if missing else f"got {len(args)} positional argument(s) and {list(kwargs)}")
                + "."
            )
        return self.fill(
            (*args, *(kwargs[n] for n in required[len(args) :])), {k: v for k, v in kwargs.items() if k not in required}
        )

    def fill(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Restore what the dispatcher removed: trailing arguments equal to their defaults.

        Args:
            args: Positional arguments as a dispatcher kernel receives them.
            kwargs: Keyword arguments as a dispatcher kernel receives them.

        Returns:
            One value per argument.
        """
        missing = len(self.arguments) - len(args)
        if not missing:
            return tuple(args)
        tail = list(self.defaults[len(self.defaults) - missing :])
        for offset, argument in enumerate(self.arguments[len(args) :]):
            if argument.name in kwargs:
                tail[offset] = kwargs[argument.name]
        return (*args, *tail)


def fresh(name: str, taken: Sequence[str]) -> str:
    """A name that is not taken: ``name`` itself, or with the smallest number behind it.

    Args:
        name: The wanted name.
        taken: Names in use.

    Returns:
        The name to use.
    """
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}{number}", number + 1
    return candidate


def infer_signature(
    qualname: str,
    reference: Callable[..., Any],
    *,
    residuals: Sequence[str],
    non_differentiable: Sequence[str],
    non_differentiable_outputs: Sequence[int],
) -> Signature:
    """Read arguments and results of an op off its reference's annotations.

    Args:
        qualname: ``namespace::name`` of the op, for messages.
        reference: The annotated function.
        residuals: Names of the trailing outputs that only kernels' pullbacks read.
        non_differentiable: Names of tensor arguments through which no derivative flows.
        non_differentiable_outputs: Positions of outputs through which no derivative flows.

    Returns:
        The signature.

    Raises:
        TypeError: If an annotation is missing or not representable, or an output is not a tensor.
        ValueError: If a name or position does not exist.
    """
    first = next(iter(inspect.signature(reference).parameters.values()), None)
    if first is not None and first.name in ("self", "cls") and first.annotation is inspect.Parameter.empty:
        raise TypeError(
            f"differentiable_op {qualname!r}: a method cannot be an op, for {first.name!r} is no tensor; declare a "
            f"function (or a staticmethod) that takes what it reads of {first.name!r} as arguments, and call it in the "
            "method."
        )
    try:
        text = torch.library.infer_schema(_with_plain_defaults(reference), mutates_args=())
    except (ValueError, RuntimeError) as error:
        raise TypeError(
            f"differentiable_op {qualname!r}: every parameter and the return of the reference need an annotation "
            f"that a schema can hold (Tensor, Tensor | None, int, float, bool, str, Sequence[int], torch.dtype, ...): "
            f"{error}"
        ) from error
    defaulted = False
    for name, parameter in inspect.signature(reference).parameters.items():
        if name.startswith("_"):
            raise TypeError(
                f"differentiable_op {qualname!r}: argument {name!r} starts with an underscore, which the named tuples "
                "that rules receive cannot hold; rename it."
            )
        has_default = parameter.default is not inspect.Parameter.empty
        if defaulted and not has_default:
            raise TypeError(
                f"differentiable_op {qualname!r}: argument {name!r} follows one with a default and has none; give it a "
                "default, or move it to the front."
            )
        defaulted = defaulted or has_default
    schema = private.parse_schema(f"{qualname}{text}")
    if any(not isinstance(r.type, torch.TensorType) for r in schema.returns) or not schema.returns:
        raise TypeError(
            f"differentiable_op {qualname!r}: every output must be a Tensor (one, or a tuple of a fixed number), "
            f"got a return annotation that means {text.rpartition('->')[2].strip()}; return the tensors separately."
        )
    texts = [part.strip() for part in _split_arguments(text)]
    arguments = []
    for argument, part in zip(schema.arguments, texts, strict=True):
        kind = part.split(" ")[0]
        if kind.startswith("Tensor") and kind not in ("Tensor", "Tensor?"):
            raise TypeError(
                f"differentiable_op {qualname!r}: argument {argument.name!r} is a list of tensors, which has no place "
                "in the tower of derivatives; take the tensors as separate arguments, or stack them."
            )
        default = part.partition("=")[2] or None
        is_tensor = kind in ("Tensor", "Tensor?")
        arguments.append(Argument(argument.name, kind, is_tensor and argument.name not in non_differentiable, default))
    names = [a.name for a in arguments if a.is_tensor]
    for name in non_differentiable:
        if name not in names:
            raise ValueError(
                f"differentiable_op {qualname!r}: non_differentiable names {name!r}, but the tensor arguments are "
                f"{names}."
            )
    count, hidden = len(schema.returns), len(residuals)
    if hidden >= count:
        raise ValueError(
            f"differentiable_op {qualname!r}: residuals names {hidden} outputs {tuple(residuals)}, but the reference "
            f"returns {count} in all; return the residuals after at least one visible output."
        )
    for position in non_differentiable_outputs:
        if not 0 <= position < count - hidden:
            raise ValueError(
                f"differentiable_op {qualname!r}: non_differentiable_outputs names output {position}, but the "
                f"visible outputs are 0 to {count - hidden - 1}."
            )
    visible = ["y"] if count - hidden == 1 else [f"y{i}" for i in range(count - hidden)]
    taken = [a.name for a in arguments]
    results = [Result(fresh(n, taken), i not in non_differentiable_outputs) for i, n in enumerate(visible)]
    results += [Result(fresh(name, taken), differentiable=False, residual=True) for name in residuals]
    defaults = [
        parameter.default
        for parameter in inspect.signature(reference).parameters.values()
        if parameter.default is not inspect.Parameter.empty
    ]
    return Signature(tuple(arguments), tuple(results), tuple(defaults))


def _with_plain_defaults(reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference as a schema can describe it: without defaults that a schema cannot hold, nor any before them."""
    # Calls of the op fill them in all the same; only who calls `torch.ops` by hand must give them.
    signature = inspect.signature(reference)
    parameters = list(signature.parameters.values())
    held = [p.default is p.empty or _is_held(p.default) for p in parameters]
    if all(held):
        return reference
    first = len(held) - held[::-1].index(False)  # behind the last that is not
    bare = [p.replace(default=p.empty) for p in parameters[:first]]

    # Annotations may be strings, which are looked up where the reference is.
    described: Any = types.FunctionType((lambda *args, **kwargs: None).__code__, reference.__globals__)
    described.__signature__ = signature.replace(parameters=[*bare, *parameters[first:]])
    return described


def _is_held(default: Any) -> bool:
    """Whether a schema can hold a default, and ``_split_arguments`` read it there."""
    if isinstance(default, float):
        return math.isfinite(default)
    if isinstance(default, str):
        return re.fullmatch(r"[\w .:-]*", default) is not None
    return default is None or isinstance(default, int | torch.dtype | torch.device)


def _split_arguments(schema: str) -> list[str]:
    """The argument texts of a schema ``(Tensor x, int[2] y=[1, 2]) -> ...``, split at top-level commas."""
    inside, _, _ = schema.rpartition("->")
    inside = inside.strip()[1:-1].replace("*, ", "")
    parts, depth, start = [], 0, 0
    for position, character in enumerate(inside):
        depth += character in "[(" and 1 or 0
        depth -= character in "])" and 1 or 0
        if character == "," and depth == 0:
            parts.append(inside[start:position])
            start = position + 1
    return [*parts, inside[start:]] if inside.strip() else []


def without_defaults(arguments: Sequence[Argument]) -> tuple[Argument, ...]:
    """The same arguments, all of them required.

    Args:
        arguments: Arguments, some with defaults.

    Returns:
        Copies without defaults.
    """
    return tuple(replace(a, default=None) for a in arguments)
