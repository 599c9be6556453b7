"""How a call is written in Python so that it costs the least before its kernel runs.

`torch.ops.aten.mul.Tensor(a, b)` finds its arguments by a schema, which takes as long as a small kernel does;
`torch.mul(a, b)` runs the very same op by a binding that was generated for it. Views are quickest as methods. A number
beside a tensor is first made a tensor, and cast, in each call: here it is one from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .._torch import bare_op
from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layout
from .overwriting import overwriting

_aten = torch.ops.aten

# Ops that `torch.<name>` runs when it is given what the op was given.
_BINDINGS = """
    abs add.Tensor addcmul addmm addmv acos asin atan atan2 baddbmm bmm cat clone clamp cos cosh cumsum.default
    diag_embed diagonal div.Tensor erf erfc exp expm1 flip gather gt.Scalar index_add index_select ge.Scalar
    le.Scalar lt.Scalar log log10 log1p log2 logical_not maximum mean.dim minimum mm mul.Tensor mv neg
    native_layer_norm pow.Tensor_Scalar pow.Tensor_Tensor reciprocal relu rsqrt scatter_add select.int sgn sigmoid
    sign sin sinh split_with_sizes sqrt stack sub.Tensor sum.dim_IntList tan tanh tril triu unbind.int where.self
""".split()
_METHODS = {
    "expand": "expand", "permute": "permute", "reshape": "reshape", "squeeze.dim": "squeeze", "t": "t",
    "transpose.int": "transpose", "unsqueeze": "unsqueeze", "view": "view",
}  # fmt: skip
_BY_NUMBER = {"add.Tensor", "div.Tensor", "mul.Tensor", "sub.Tensor"}
_EXACT = frozenset({torch.float32, torch.float64})  # a kernel for less than that takes a number in full precision


def _overload(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(_aten, packet), overload or "default")


BINDINGS: dict[Any, str] = {_overload(name): name.partition(".")[0] for name in _BINDINGS}
"""The op that is run, and the name of the function of `torch` that runs it."""
METHODS: dict[Any, str] = {_overload(name): method for name, method in _METHODS.items()}
"""The op that is run, and the name of the method of a tensor that runs it."""
_NUMBERED = frozenset(map(_overload, _BY_NUMBER))


def spelled(
    call: ProgramCall, place: int, layouts: Mapping[int, Layout], into: int | None = None
) -> tuple[str, dict[str, Any]]:
    """A call as an expression.

    Args:
        call: The call.
        place: Where it stands in the program, which makes the names of its literals.
        layouts: How the values of the program lie in memory.
        into: The operand that the result is written into, or None.

    Returns:
        The expression, and what the names in it stand for besides the values.
    """
    arguments = call.arguments
    scope: dict[str, Any] = {f"a{place}_{name}": value for name, value in call.literals.items()}
    method = METHODS.get(call.target)
    if method is not None and not call.kwargs:
        (first, *others) = call.args
        if isinstance(first, Ref) and all(_is_plain(other) for other in others):
            return f"v{first.index}.{method}({', '.join(_spread(others))})", {}
    if call.target is _aten.slice.Tensor and not call.kwargs:
        narrow = _narrow(call, layouts)
        if narrow is not None:
            return narrow, {}
    if call.target in _NUMBERED and not call.kwargs:
        number = _number(call, layouts)
        if number is not None:
            name = f"a{place}"
            arguments, scope = f"v{call.operands[0]}, {name}", {name: number}
    arguments = arguments.replace("@", f"a{place}_")
    name, function = _function(call.target)
    scope[name] = function
    return (f"{name}({arguments})" if into is None else overwriting(call, into, arguments)), scope


def _function(target: Any) -> tuple[str, Callable[..., Any]]:
    """Return a name for what runs an op, and what it is."""
    name = BINDINGS.get(target)
    if name is not None:
        return name, getattr(torch, name)
    return str(target).replace(".", "_").replace("::", "_"), bare_op(target)


def _narrow(call: ProgramCall, layouts: Mapping[int, Layout]) -> str | None:
    """Return a slice without gaps as the method of a tensor that takes it; None for another one."""
    given: tuple[Any, ...] = (*call.args, *(0, 0, None, 1)[len(call.args) - 1 :])
    value, axis, begin, end, step = given
    size = layouts[value.index].shape[axis]
    if step != 1 or type(begin) is not int or not 0 <= begin <= size or type(end) is not int or end < begin:
        return None
    return f"v{value.index}.narrow({axis}, {begin}, {min(end, size) - begin})"


def _is_plain(argument: Any) -> bool:
    return isinstance(argument, int) or (isinstance(argument, (list, tuple)) and all(type(x) is int for x in argument))


def _spread(arguments: list[Any]) -> list[str]:
    """Return integers, and lists of them, one after another, as the methods take them."""
    if len(arguments) == 1 and isinstance(arguments[0], (list, tuple)) and arguments[0]:
        return [str(size) for size in arguments[0]]
    return [repr(argument) for argument in arguments]


def _number(call: ProgramCall, layouts: Mapping[int, Layout]) -> torch.Tensor | None:
    """Return the number beside a tensor as one; None if there is none, or if that would change what is computed."""
    if len(call.args) != 2 or len(call.operands) != 1 or not isinstance(call.args[0], Ref):
        return None
    number, layout, out = call.args[1], layouts[call.operands[0]], layouts[call.outputs[0] or 0]
    if type(number) not in {int, float} or layout.dtype not in _EXACT or out.dtype is not layout.dtype:
        return None
    return torch.tensor(number, dtype=layout.dtype)
