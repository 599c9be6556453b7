"""Results written where an operand lay that nobody needs any more: less memory to fetch, and none to ask for.

What is asked for anew in each call costs more than a small kernel does, and where the allocator gave memory back, the
system hands it out again page by page, which may take longer than to fill it. The calls of a program stay as they are,
as compilers and clocks see them; only how they are spelled differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from .._torch import is_composite
from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layout

_aten = torch.ops.aten
_MAYBE_VIEWS = frozenset({_aten.reshape.default, _aten._unsafe_view.default})

# Entry by entry: an operand that is overwritten may be read by the same call, if it lies as the result does.
_ENTRYWISE = """
    abs acos add.Tensor addcmul asin atan atan2 clamp cos cosh div.Tensor erf erfc exp expm1 log log10 log1p log2
    maximum minimum mul.Tensor neg pow.Tensor_Scalar pow.Tensor_Tensor reciprocal rsqrt sgn sigmoid sign sin sinh sqrt
    sub.Tensor tan tanh
""".split()
_ADDING = ("addmm", "addmv", "baddbmm")  # to their first operand
_OWN_METHODS = frozenset(_ENTRYWISE) - {"maximum", "minimum"}  # of the same name with an underscore


def _overloads(names: Iterable[str]) -> dict[Any, str]:
    found: dict[Any, str] = {}
    for name in names:
        packet, _, overload = name.partition(".")
        found[getattr(getattr(_aten, packet), overload or "default")] = packet
    return found


_METHODS = _overloads((*sorted(_OWN_METHODS), *_ADDING))
_BY_ENTRIES, _BY_SUM = frozenset(_overloads(_ENTRYWISE)), frozenset(_overloads(_ADDING))


def overwritten(calls: Sequence[ProgramCall], results: Sequence[int], layouts: Mapping[int, Layout]) -> dict[int, int]:
    """The operands that calls may write their results into.

    Args:
        calls: A straight line of calls.
        results: The values that are returned.
        layouts: How the values lie in memory.

    Returns:
        By the place of a call, the operand; none if a call of the program writes into a tensor itself.
    """
    if any(call.target._schema.is_mutable for call in calls):
        return {}
    memory = _Memory(calls, results, layouts)
    spent = {place: memory.spent(call, place) for place, call in enumerate(calls)}
    return {place: operand for place, operand in spent.items() if operand is not None}


def overwriting(call: ProgramCall, operand: int, arguments: str) -> str:
    """A call that writes its result into an operand, as an expression.

    Args:
        call: The call.
        operand: The operand.
        arguments: What the call is given, as Python.

    Returns:
        The expression.
    """
    first, _, others = arguments.partition(", ")
    name = _METHODS.get(call.target)
    if name is not None and first == f"v{operand}":
        return f"{first}.{name}_({others})"
    return f"{call.target._schema.name.removeprefix('aten::')}({arguments}, out=v{operand})"


class _Memory:
    """Which values share memory, and until when it is needed.

    Args:
        calls: The calls.
        results: The values that are returned.
        layouts: How the values lie.
    """

    def __init__(self, calls: Sequence[ProgramCall], results: Sequence[int], layouts: Mapping[int, Layout]) -> None:
        self._layouts = layouts
        self._roots: dict[int, int] = {}  # of a value that a call has made, the one whose memory it is
        self._ends: dict[int, int] = {}  # of such a value, the last place that it, or what shares its memory, is used
        for place, call in enumerate(calls):
            for index in call.operands:
                self._ends[self._root(index)] = place
            fresh = _makes_memory(call.target)
            for index in call.outputs:
                if index is not None:
                    self._roots[index] = index if fresh else self._joined(call.operands)
                    self._ends.setdefault(self._roots[index], place)
        for index in results:
            self._ends[self._root(index)] = len(calls)

    def _root(self, index: int) -> int:
        return self._roots.get(index, _GIVEN)

    def _joined(self, operands: Sequence[int]) -> int:
        """Return the memory of a result that may be that of any operand; of several, none that is ever free."""
        roots = {self._root(index) for index in operands}
        return roots.pop() if len(roots) == 1 else _GIVEN

    def spent(self, call: ProgramCall, place: int) -> int | None:
        """Return an operand that a call may write its result into; None if there is none."""
        if (call.target not in _BY_ENTRIES and call.target not in _BY_SUM) or "out" in call.kwargs:
            return None
        candidates = [arg.index for arg in call.args if isinstance(arg, Ref)]
        for index in candidates if call.target in _BY_ENTRIES else candidates[:1]:
            if self._is_spent(index, call, place):
                return index
        return None

    def _is_spent(self, index: int, call: ProgramCall, place: int) -> bool:
        root = self._root(index)
        if root == _GIVEN or self._ends[root] > place:
            return False
        others = [other for other in call.operands if other != index]
        if any(self._root(other) == root for other in others):
            return False
        if call.target in _BY_SUM and call.operands.count(index) > 1:
            return False
        own, made, whole = self._layouts[index], self._layouts[call.outputs[0] or 0], self._layouts[root]
        return (
            own.key == made.key
            and own.device == made.device
            and own.dtype == whole.dtype
            and not any(own.twisted)
            and not own.repeats
            and own.numel == whole.numel > 0
        )


_GIVEN = -1  # the memory of what is given, fixed, or not known


@cache
def _makes_memory(target: Any) -> bool:
    """Whether what an op returns shares memory with nothing else."""
    if target.namespace not in {"aten", "mkldnn"} or target.is_view or target in _MAYBE_VIEWS:
        return False
    return not (is_composite(target) or any(result.alias_info is not None for result in target._schema.returns))
