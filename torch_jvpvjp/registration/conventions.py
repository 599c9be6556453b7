"""How the functions of each point of the tower are called: the primal, a JVP of a point, a VJP of a point.

A dispatcher op takes and returns flat tuples. What people write is not flat: a reference takes arguments, a JVP rule
``(primals, tangents)``, a VJP rule ``(cotangents, inputs[, outputs])``. A convention translates between the two,
derives the flat signature, and checks what a function returned.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .signature import Argument, Result, Signature, fresh, without_defaults

Function = Callable[..., Any]
FlatFunction = Callable[[tuple[Any, ...]], tuple[Tensor, ...]]
Expected = tuple[torch.Size | None, torch.dtype | None]  # of a result; None is anything
_ANYTHING: Expected = (None, None)


class Convention(ABC):
    """The calling convention of one point.

    Attributes:
        qualname: ``namespace::name`` of the point's dispatcher op.
        signature: Its flat arguments and results.
        derived: Whether it is a derivative of another point.
    """

    qualname: str
    signature: Signature
    derived: bool = True

    @abstractmethod
    def flatten(self, function: Function) -> FlatFunction:
        """Adapt a formula or kernel, as a person writes it, to flat arguments and results."""

    @abstractmethod
    def normalise(self, returned: Any, args: Sequence[Any], function: Function) -> tuple[Tensor, ...]:
        """Check what a function returned for ``args`` and bring it to one tensor per result."""

    def live_results(self, args: Sequence[Any]) -> tuple[int, ...]:
        """Positions of the results that carry a derivative for these arguments."""
        return self.signature.differentiable_results

    @abstractmethod
    def expected(self, args: Sequence[Any]) -> Sequence[Expected] | None:
        """Shapes and dtypes of the results for these arguments, as far as the formula of the primal says them."""

    def shared_results(self, batched: Sequence[bool]) -> tuple[int, ...]:
        """Positions of the results that depend on no argument that is batched, given which are."""
        return () if any(batched) else tuple(range(len(self.signature.results)))

    def _count_error(self, function: Function, wanted: str, returned: Any) -> ValueError:
        return ValueError(f"{self.qualname}: {label(function)} must return {wanted}, got {_describe(returned)}.")


class PrimalConvention(Convention):
    """A reference and its kernels: arguments in, the outputs (and residuals) out."""

    derived = False

    def __init__(self, qualname: str, signature: Signature) -> None:
        self.qualname, self.signature = qualname, signature
        self.expectation: Any = lambda args: None  # the op's `Expectation`

    def expected(self, args: Sequence[Any]) -> Sequence[Expected] | None:  # noqa: D102 -- inherited
        return self.expectation(args)

    def flatten(self, function: Function) -> FlatFunction:  # noqa: D102 -- inherited
        keywords = [p.name for p in _parameters(function) if p.kind is inspect.Parameter.KEYWORD_ONLY]
        positional = len(self.signature.arguments) - len(keywords)
        if not keywords:
            return lambda args: self.normalise(function(*args), args, function)
        return lambda args: self.normalise(
            function(*args[:positional], **dict(zip(keywords, args[positional:], strict=True))), args, function
        )

    def normalise(self, returned: Any, args: Sequence[Any], function: Function) -> tuple[Tensor, ...]:  # noqa: D102
        wanted = self.signature.results
        if type(returned) is Tensor and len(wanted) == 1:
            return (returned,)
        results = _as_tuple(returned)
        if len(results) != len(wanted) or not all(isinstance(r, Tensor) for r in results):
            names = ", ".join(r.name for r in wanted)
            raise self._count_error(function, f"{len(wanted)} tensor(s) ({names}), as the reference does", returned)
        return results


class JvpConvention(Convention):
    """A JVP rule ``(primals, tangents) -> (outputs, output tangents)`` of a point."""

    def __init__(self, qualname: str, base: Convention) -> None:
        self.qualname, self.base = qualname, base
        inner = base.signature
        arguments = list(without_defaults(inner.arguments))
        for i in inner.differentiable:
            name = fresh(f"{inner.arguments[i].name}_dot", [a.name for a in arguments])
            arguments.append(Argument(name, "Tensor?", differentiable=True))
        results = list(inner.results)
        for j in inner.differentiable_results:
            name = fresh(f"{inner.results[j].name}_dot", [r.name for r in results])
            results.append(Result(name))
        self.signature = Signature(tuple(arguments), tuple(results))

    def flatten(self, function: Function) -> FlatFunction:  # noqa: D102
        inner = self.base.signature
        count, inputs_type, tangents_type = len(inner.arguments), inner.inputs_type, inner.tangents_type

        def flat(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
            returned = function(inputs_type(*args[:count]), tangents_type(*args[count:]))
            return self.normalise(returned, args, function)

        return flat

    def normalise(self, returned: Any, args: Sequence[Any], function: Function) -> tuple[Tensor, ...]:  # noqa: D102
        inner = self.base.signature
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise self._count_error(function, "the pair (outputs, output tangents)", returned)
        outputs = self.base.normalise(returned[0], args[: len(inner.arguments)], function)
        tangents = _as_tuple(returned[1])
        if len(tangents) != len(inner.differentiable_results):
            wanted = [inner.results[j].name for j in inner.differentiable_results]
            raise self._count_error(function, f"one tangent for each differentiable output {wanted}", returned[1])
        for j, tangent in zip(inner.differentiable_results, tangents, strict=True):
            if tangent is not None:
                self._check_tangent(function, inner.results[j].name, outputs[j], tangent)
        live = self.base.live_results(args[: len(inner.arguments)])  # a cotangent nobody wants has no tangent
        # A rule may say None for a tangent that is zero.
        filled = [
            torch.zeros_like(outputs[j]) if t is None or j not in live else t
            for j, t in zip(inner.differentiable_results, tangents, strict=True)
        ]
        return (*outputs, *filled)

    def expected(self, args: Sequence[Any]) -> Sequence[Expected] | None:  # noqa: D102
        inner = self.base.signature
        count = len(inner.arguments)
        outputs = self.base.expected(args[:count])
        if outputs is None:
            return None
        for i, tangent in zip(inner.differentiable, args[count:], strict=True):
            if tangent is not None and args[i] is not None and tangent.shape != args[i].shape:
                # A vmap rule asks for K tangents of one primal: their shape is that of no formula.
                outputs = [(None, dtype) for _, dtype in outputs]
                break
        return (*outputs, *[outputs[j] for j in inner.differentiable_results])

    def shared_results(self, batched: Sequence[bool]) -> tuple[int, ...]:  # noqa: D102 -- primals decide of outputs
        return self.base.shared_results(batched[: len(self.base.signature.arguments)])

    def _check_tangent(self, function: Function, name: str, output: Tensor, tangent: Any) -> None:
        if not isinstance(tangent, Tensor):
            raise self._count_error(function, f"a tensor or None for the tangent of {name}", tangent)
        # Not its shape: a vmap rule may ask for K tangents of one primal. Where it becomes a dual, PyTorch compares.
        for what, wanted, got in (
            ("dtype", output.dtype, tangent.dtype),
            ("device", output.device, tangent.device),
        ):
            if wanted != got:
                raise ValueError(
                    f"{self.qualname}: {label(function)} must return a tangent of {name} of {what} {wanted}, as its "
                    f"output has, got {got}."
                )

    def live_results(self, args: Sequence[Any]) -> tuple[int, ...]:  # noqa: D102
        inner = self.base.signature
        live = self.base.live_results(args[: len(inner.arguments)])
        offset = len(inner.results)
        return (*live, *(offset + n for n, j in enumerate(inner.differentiable_results) if j in live))


class VjpConvention(Convention):
    """A VJP rule ``(cotangents, inputs[, outputs][, *, needs][, residuals]) -> input cotangents`` of a point.

    A rule that takes no ``outputs`` does not have them saved. ``needs`` tells, per differentiable input, whether its
    cotangent is wanted; a cotangent nobody wants is an empty tensor, since a dispatcher op cannot return None.
    ``residuals`` reaches kernels only: a formula must recompute what it would read there, or its own derivatives
    would treat it as a constant.
    """

    def __init__(self, qualname: str, base: Convention, *, takes_outputs: bool, unsaved: Sequence[str]) -> None:
        self.qualname, self.base = qualname, base
        inner = base.signature
        self.saved_results = tuple(
            j for j, r in enumerate(inner.results) if r.residual or takes_outputs
        )  # positions in the base's results
        taken = [a.name for a in inner.arguments]
        arguments = []
        for j in inner.differentiable_results:
            arguments.append(Argument(fresh(f"{inner.results[j].name}_bar", taken), "Tensor?", differentiable=True))
            taken.append(arguments[-1].name)
        self.offset = len(arguments)  # where the base's arguments start
        for argument in without_defaults(inner.arguments):
            optional = argument.name in unsaved
            arguments.append(replace(argument, kind="Tensor?") if optional else argument)
        for j in self.saved_results:
            result = inner.results[j]
            name = fresh(result.name, taken)
            taken.append(name)
            arguments.append(Argument(name, "Tensor", differentiable=result.differentiable))
        arguments.append(Argument(fresh("needs", taken), "bool[]"))
        self.unsaved = tuple(i for i, a in enumerate(inner.arguments) if a.name in unsaved)
        results = [
            Result(fresh(f"{inner.arguments[i].name}_bar", [a.name for a in arguments])) for i in inner.differentiable
        ]
        self.signature = Signature(tuple(arguments), tuple(results))

    def flatten(self, function: Function) -> FlatFunction:  # noqa: D102
        inner = self.base.signature
        keywords = {p.name for p in _parameters(function) if p.kind is inspect.Parameter.KEYWORD_ONLY}
        unknown = keywords - {"needs", "residuals"}
        if unknown:
            raise TypeError(
                f"{self.qualname}: {label(function)} asks for keyword-only {sorted(unknown)}; a VJP rule may ask for "
                "`needs` and, in a kernel, `residuals`."
            )
        stop = self.offset + len(inner.arguments)
        visible = [n for n, j in enumerate(self.saved_results) if not inner.results[j].residual]
        hidden = [n for n, j in enumerate(self.saved_results) if inner.results[j].residual]

        start, cotangents_type, inputs_type = self.offset, inner.cotangents_type, inner.inputs_type
        wants_outputs = takes_outputs(function)
        takes_needs, takes_residuals = "needs" in keywords, "residuals" in keywords

        def flat(args: tuple[Any, ...]) -> tuple[Tensor, ...]:
            arguments: list[Any] = [cotangents_type(*args[:start]), inputs_type(*args[start:stop])]
            if wants_outputs:
                arguments.append(tuple(args[stop + n] for n in visible))
            options: dict[str, Any] = {}
            if takes_needs:
                options["needs"] = tuple(args[-1])
            if takes_residuals:
                options["residuals"] = tuple(args[stop + n] for n in hidden)
            return self.normalise(function(*arguments, **options), args, function)

        return flat

    def normalise(self, returned: Any, args: Sequence[Any], function: Function) -> tuple[Tensor, ...]:  # noqa: D102
        inner, needs = self.base.signature, args[-1]
        cotangents = _as_tuple(returned)
        if len(cotangents) != len(inner.differentiable):
            wanted = [inner.arguments[i].name for i in inner.differentiable]
            raise self._count_error(function, f"one cotangent for each differentiable input {wanted}", returned)
        results = []
        for i, needed, cotangent in zip(inner.differentiable, needs, cotangents, strict=True):
            primal = args[self.offset + i]
            if not needed:
                results.append(_absent(args))
            elif cotangent is None and primal is None:
                name = inner.arguments[i].name
                raise self._count_error(
                    function, f"zeros for {name}, which it declares unsaved, in place of None", None
                )
            elif cotangent is None:
                results.append(torch.zeros_like(primal))  # a rule may say None for a cotangent that is zero
            elif not isinstance(cotangent, Tensor) or (primal is not None and not _is_alike(cotangent, primal)):
                kind = "a tensor" if primal is None else _kind(primal)
                raise self._count_error(function, f"for {inner.arguments[i].name} a cotangent: {kind}", cotangent)
            else:
                results.append(cotangent)
        return tuple(results)

    def expected(self, args: Sequence[Any]) -> Sequence[Expected] | None:  # noqa: D102
        primals = [args[self.offset + i] for i in self.base.signature.differentiable]
        return [
            _ANYTHING if primal is None or not needed else (primal.shape, primal.dtype)
            for primal, needed in zip(primals, args[-1], strict=True)
        ]

    def live_results(self, args: Sequence[Any]) -> tuple[int, ...]:  # noqa: D102
        return tuple(n for n, needed in enumerate(args[-1]) if needed)


def takes_only_positions(function: Function) -> bool:
    """Whether a function has no keyword-only parameter.

    Args:
        function: A kernel.

    Returns:
        True if all its arguments can be given by position.
    """
    return all(p.kind is not inspect.Parameter.KEYWORD_ONLY for p in _parameters(function))


def takes_outputs(rule: Function) -> bool:
    """Whether a VJP rule asks for the outputs of the primal.

    Args:
        rule: A VJP rule.

    Returns:
        True if it takes a third positional parameter.
    """
    return _positional(rule) >= 3


def check_function(qualname: str, what: str, function: Any) -> None:
    """Refuse what is no function when it is registered, not when it first runs.

    Args:
        qualname: The op it is for.
        what: What it is to be.
        function: What came.

    Raises:
        TypeError: If it cannot be called.
    """
    if not callable(function):
        raise TypeError(f"{qualname}.{what}: the {what} must be a function, got {type(function).__name__}.")


def check_arity(qualname: str, rule: Function, wanted: str, allowed: Sequence[int]) -> None:
    """Refuse a rule with the wrong number of positional parameters when it is registered, not when it first runs.

    Args:
        qualname: The op the rule is for.
        rule: The rule.
        wanted: Its parameters in words.
        allowed: The numbers of positional parameters that fit.

    Raises:
        TypeError: If the rule takes another number.
    """
    parameters = _parameters(rule)
    if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        return
    if _positional(rule) not in allowed:
        raise TypeError(f"{qualname}: {label(rule)} must take {wanted}, got ({', '.join(str(p) for p in parameters)}).")


def _absent(args: Sequence[Any]) -> Tensor:
    """The stand-in for a cotangent nobody wants: empty, on the device of the first tensor."""
    for value in args:
        if isinstance(value, Tensor):
            return torch.empty(0, dtype=value.dtype, device=value.device)
    raise AssertionError("a pullback always has a cotangent")


def _parameters(function: Function) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except ValueError:  # of a builtin, which takes what it takes by position
        return []


def _positional(function: Function) -> int:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds for p in _parameters(function))


def _as_tuple(returned: Any) -> tuple[Any, ...]:
    return tuple(returned) if isinstance(returned, tuple | list) else (returned,)


def label(function: Function) -> str:
    """A function for messages: its name, and where it is written.

    Args:
        function: Any.

    Returns:
        E.g. ``"soft_clip_vjp (line 12 of ops.py)"``.
    """
    name = getattr(function, "__qualname__", repr(function))
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{name} (line {code.co_firstlineno} of {code.co_filename})" if code else name


def _is_alike(result: Tensor, other: Tensor) -> bool:
    return result.shape == other.shape and result.dtype == other.dtype and result.device == other.device


def _kind(tensor: Tensor) -> str:
    return f"a tensor of shape {tuple(tensor.shape)} and {tensor.dtype} on {tensor.device}"


def _describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return _kind(value)
    if isinstance(value, tuple | list):
        return f"{len(value)} value(s): ({', '.join(_describe(v) for v in value)})"
    if isinstance(value, torch.dtype):
        return str(value)
    return "None" if value is None else f"{type(value).__name__}"
