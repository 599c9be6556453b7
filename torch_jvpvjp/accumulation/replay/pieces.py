"""Tensors that are joined only to be taken apart again: the parts take the place of the pieces.

    split(cat(x_1, …, x_k))    becomes    x_1, …, x_k

where every piece ends where a part does; a piece of several parts is their cat. So the blocks of a Jacobian in many
parameters are never copied into one matrix, nor the parameters into one vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch

from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layouts
from .relaid import laid_out, looks_at_memory

_aten = torch.ops.aten


def without_joins(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts
) -> tuple[list[ProgramCall], list[int]]:
    """Return calls and results in which no tensor is split where it was joined; idle calls are still among them.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory; those of values that lie otherwise now are put right.
    """
    after, same = Layouts(layouts), dict[int, int]()
    try:
        found = None if any(map(looks_at_memory, calls)) else _with_parts(calls, after, same)
    except RuntimeError:  # an op that does not run without data
        found = None
    if found is None:
        return list(calls), list(results)
    layouts.update(after)
    return found, [same.get(index, index) for index in results]


def _with_parts(calls: Sequence[ProgramCall], layouts: Layouts, same: dict[int, int]) -> list[ProgramCall]:
    """Return the calls; `same` learns which value takes the place of which."""
    makers: dict[int, ProgramCall] = {}
    moved: set[int] = set()  # values that lie otherwise than they did
    found: list[ProgramCall] = []
    for call in calls:
        again = call.renamed(same)
        parts = _parts(again, makers, layouts)
        if parts is None:
            if not moved.isdisjoint(call.operands):
                again = laid_out(again, layouts, moved)
            made = [again]
        else:
            made = _taken(again, parts, layouts, same)
            moved.update(index for index in call.outputs if index is not None)
        makers |= {index: one for one in made for index in one.outputs if index is not None}
        found += made
    return found


def _parts(call: ProgramCall, makers: Mapping[int, ProgramCall], layouts: Layouts) -> list[list[Ref]] | None:
    """Return the parts that each piece of a split consists of; None if it is no split of what is joined there."""
    if call.target is not _aten.split_with_sizes.default or call.kwargs:
        return None
    whole, sizes, *axis = call.args
    join = makers.get(whole.index)
    while join is not None and join.target is _aten.clone.default:
        join = makers.get(join.operands[0])
    if join is None or join.target is not _aten.cat.default or join.kwargs:
        return None
    members, *joined = join.args
    shape, dtype = layouts[whole.index].shape, layouts[whole.index].dtype
    along = (axis[0] if axis else 0) % len(shape)
    lies = [layouts[ref.index] for ref in members]
    alike = all(one.dtype is dtype and len(one.shape) == len(shape) and one.numel for one in lies)
    if (joined[0] if joined else 0) % len(shape) != along or not alike or 0 in sizes:
        return None
    place = {end: count for count, end in enumerate(accumulate((one.shape[along] for one in lies), initial=0))}
    ends = list(accumulate(sizes, initial=0))
    if not place.keys() >= set(ends):
        return None
    return [members[place[begin] : place[end]] for begin, end in zip(ends, ends[1:], strict=False)]


def _taken(
    call: ProgramCall, parts: Sequence[Sequence[Ref]], layouts: Layouts, same: dict[int, int]
) -> list[ProgramCall]:
    """Return what makes the pieces of a split that are more than a part each; the others are their part."""
    axis = call.args[2] if len(call.args) > 2 else 0
    made: list[ProgramCall] = []
    for piece, members in zip(call.outputs, parts, strict=True):
        if piece is None:
            continue
        if len(members) == 1:
            same[piece] = members[0].index
            continue
        made.append(ProgramCall(_aten.cat.default, (list(members), axis), {}, [piece], call.segment))
        layouts.add(made[-1])
    return made
