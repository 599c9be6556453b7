"""Products of a batch with a matrix that its samples share, as one product with their columns side by side.

`vmap` of a product copies what is not batched once for each sample: for b samples of W X, with W of (m, k) and X of
(k, n), it copies b m k entries to spare b (k + m) n. Here

    expand(W, (b, e, m, k)) → clone → view → bmm(·, X)    becomes    W · [X₁ … X_b],

and likewise with the shared matrix on the right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .calls import ProgramCall
from .replay import Layouts
from .tracing.tape import Ref

_aten = torch.ops.aten
_VIEWS = frozenset({_aten.view.default, _aten._unsafe_view.default})


class _Shared(NamedTuple):
    """What a factor of a batched product is a copy of: the value of (e, rows, columns) that b samples share."""

    value: int
    batch: int


def without_copies_of_shared(
    calls: Sequence[ProgramCall], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls in which no shared matrix is copied for each sample where moving the samples costs less.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Returns:
        The calls; copies that nothing uses any longer are still among them.
    """
    makers = {index: call for call in calls for index in call.outputs if index is not None}
    shapes = layouts.shapes()
    found: list[ProgramCall] = []
    for call in calls:
        parts = _side_by_side(call, makers, shapes, new_value)
        for part in parts or ():
            layouts.add(part)
        found += parts or [call]
    return found


def _side_by_side(
    call: ProgramCall, makers: Mapping[int, ProgramCall], shapes: Mapping[int, torch.Size], new_value: Callable[[], int]
) -> list[ProgramCall] | None:
    if call.target is not _aten.bmm.default or len(call.operands) != 2:
        return None
    left, right = call.operands
    _, m, k = shapes[left]
    n = shapes[right][2]
    on_left, on_right = (_shared(value, makers, shapes) for value in (left, right))
    if on_left is not None and on_right is None and m * k >= (k + m) * n:
        steps = _shared_left(on_left, right, (m, k, n), shapes[left][0])
    elif on_right is not None and on_left is None and k * n >= (k + n) * m:
        steps = _shared_right(on_right, left, (m, k, n), shapes[left][0])
    else:
        return None
    made: list[ProgramCall] = []
    for target, args in steps:
        filled = tuple(Ref(made[-1].outputs[0] or 0) if arg is _BEFORE else arg for arg in args)
        made.append(ProgramCall(target, filled, {}, [new_value()], call.segment))
    last = made.pop()
    return [*made, ProgramCall(last.target, last.args, {}, call.outputs, call.segment)]


_BEFORE = object()  # the result of the step before
_Steps = Iterator[tuple[Any, tuple[Any, ...]]]


def _shared_left(shared: _Shared, other: int, sizes: tuple[int, int, int], count: int) -> _Steps:
    """Yield the steps of W · [X₁ … X_b]."""
    (m, k, n), b = sizes, shared.batch
    e = count // b
    yield _aten.view.default, (Ref(other), [b, e, k, n])
    yield _aten.permute.default, (_BEFORE, [1, 2, 0, 3])
    yield _aten.reshape.default, (_BEFORE, [e, k, b * n])
    yield _aten.bmm.default, (Ref(shared.value), _BEFORE)
    yield _aten.view.default, (_BEFORE, [e, m, b, n])
    yield _aten.permute.default, (_BEFORE, [2, 0, 1, 3])
    yield _aten.reshape.default, (_BEFORE, [count, m, n])


def _shared_right(shared: _Shared, other: int, sizes: tuple[int, int, int], count: int) -> _Steps:
    """Yield the steps of [X₁; …; X_b] · W."""
    (m, k, n), b = sizes, shared.batch
    e = count // b
    yield _aten.view.default, (Ref(other), [b, e, m, k])
    yield _aten.permute.default, (_BEFORE, [1, 0, 2, 3])
    yield _aten.reshape.default, (_BEFORE, [e, b * m, k])
    yield _aten.bmm.default, (_BEFORE, Ref(shared.value))
    yield _aten.view.default, (_BEFORE, [e, b, m, n])
    yield _aten.permute.default, (_BEFORE, [1, 0, 2, 3])
    yield _aten.reshape.default, (_BEFORE, [count, m, n])


def _shared(value: int, makers: Mapping[int, ProgramCall], shapes: Mapping[int, torch.Size]) -> _Shared | None:
    """Return what a factor is a copy of for each sample of a batch; None if it is no such copy."""
    viewed = makers.get(value)
    cloned = makers.get(viewed.operands[0]) if viewed is not None and viewed.target in _VIEWS else None
    expanded = makers.get(cloned.operands[0]) if cloned is not None and cloned.target is _aten.clone.default else None
    if expanded is None or expanded.target is not _aten.expand.default:
        return None
    base, full = expanded.operands[0], shapes[expanded.outputs[0] or 0]
    inner = full[1:]
    alike = shapes[value] == (full[:-2].numel(), *full[-2:]) and shapes[base] == inner
    return _Shared(base, full[0]) if alike and len(inner) == 3 and full[0] > 1 else None
