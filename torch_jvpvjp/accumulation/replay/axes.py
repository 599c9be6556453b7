"""The axes of memory behind a tensor that is seen in some shape: which of them each of its axes runs along.

A view of (k h, t, s) entries that lie as (k, t, h, s) has axes ((k, h), (t,), (s,)); so a view or a permutation of it
is known without doing it, and so is what it is for one h.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

import torch

from ..calls import ProgramCall

_aten = torch.ops.aten
RESHAPING = frozenset({_aten.view.default, _aten._unsafe_view.default})
TURNING = frozenset({_aten.permute.default, _aten.transpose.int, _aten.t.default})
SAMPLE = -1  # the axis along which each value is one piece


class Form(NamedTuple):
    """What a tensor is made of: a value, or one for each sample, and which axes of these its own run along."""

    values: tuple[int, ...]
    sizes: tuple[int, ...]  # of the axes of each value, none of them 1
    groups: tuple[tuple[int, ...], ...]  # the axes that each axis of the tensor runs along, the last one fastest

    @property
    def apart(self) -> bool:
        """Whether there is a value for each sample."""
        return any(SAMPLE in group for group in self.groups)

    @property
    def order(self) -> tuple[int, ...]:
        """All axes, as the tensor runs along them."""
        return tuple(axis for group in self.groups for axis in group)

    def size(self, axis: int) -> int:
        """Return how many entries an axis has."""
        return len(self.values) if axis == SAMPLE else self.sizes[axis]

    def group_sizes(self, place: int) -> tuple[int, ...]:
        """Return the sizes of the axes that an axis of the tensor runs along."""
        return tuple(self.size(axis) for axis in self.groups[place])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor."""
        return tuple(prod(self.group_sizes(place)) for place in range(len(self.groups)))


def whole(value: int, shape: Sequence[int]) -> Form:
    """Return the form of a value by itself."""
    numbers = iter(range(len(shape)))
    groups = tuple((next(numbers),) if size != 1 else () for size in shape)
    return Form((value,), tuple(size for size in shape if size != 1), groups)


def permuted(form: Form, order: Sequence[int]) -> Form:
    """Return the form of a permutation of a tensor."""
    return form._replace(groups=tuple(form.groups[place % len(form.groups)] for place in order))


def viewed(form: Form, shape: Sequence[int]) -> Form | None:
    """Return the form of a tensor in another shape; None if an axis of it would be a part of the samples."""
    left: list[tuple[int, int, int]] = [(axis, 0, form.size(axis)) for axis in form.order][::-1]
    parts: dict[int, list[int]] = {axis: [] for axis in range(len(form.sizes))}  # what each axis is taken apart into
    found: list[list[tuple[int, int]]] = []
    for size in shape:
        group: list[tuple[int, int]] = []
        rest = size
        while rest > 1:
            if not left:
                return None
            axis, part, extent = left.pop()
            if rest % extent:
                if extent % rest or axis == SAMPLE:
                    return None
                left.append((axis, part + 1, extent // rest))
                extent = rest
            if axis != SAMPLE:
                parts[axis].append(extent)
            group.append((axis, part))
            rest //= extent
        if rest != 1:
            return None
        found.append(group)
    if left:
        return None
    first = [sum(len(parts[before]) for before in range(axis)) for axis in range(len(form.sizes))]
    groups = tuple(tuple(SAMPLE if axis == SAMPLE else first[axis] + part for axis, part in group) for group in found)
    return Form(form.values, tuple(size for axis in range(len(form.sizes)) for size in parts[axis]), groups)


def moved(form: Form, call: ProgramCall, shape: Sequence[int]) -> Form | None:
    """The form of a view of a tensor, or of a copy.

    Args:
        form: Of the tensor.
        call: What is called with it.
        shape: The shape of the result.

    Returns:
        The form; None if axes do not tell.
    """
    rank = len(form.groups)
    if is_copy(call):
        return form
    if call.target in RESHAPING:
        return viewed(form, shape)
    if call.target is _aten.unsqueeze.default:
        axis = call.args[1] % (rank + 1)
        return form._replace(groups=(*form.groups[:axis], (), *form.groups[axis:]))
    if call.target is _aten.permute.default:
        return permuted(form, call.args[1])
    if call.target is _aten.t.default:
        return permuted(form, range(rank)[::-1])
    if call.target is _aten.transpose.int:
        order = list(range(rank))
        one, other = (axis % rank for axis in call.args[1:])
        order[one], order[other] = other, one
        return permuted(form, order)
    return None


def is_copy(call: ProgramCall) -> bool:
    """Return whether a call copies all of a tensor into memory that is contiguous."""
    return call.target is _aten.clone.default and call.kwargs.get("memory_format") is torch.contiguous_format


def alike(forms: Sequence[Form], places: Sequence[Sequence[int | None]]) -> list[Form] | None:
    """Take the axes of tensors apart until those that meet are the same.

    Args:
        forms: The forms.
        places: For each of them its axes, by those of what they meet in; None for one that it lacks.

    Returns:
        The forms, in which each axis has axes of the same sizes as that of another which it meets, unless it is of one
        entry; None if there are none such.
    """
    rank = len(places[0])
    common: list[tuple[int, ...]] = []
    for meeting in range(rank):
        sizes: tuple[int, ...] = ()
        for form, own in zip(forms, places, strict=True):
            place = own[meeting]
            other = () if place is None else form.group_sizes(place)
            if other:
                finer = tuple(_refined(sizes, other)) if sizes else other
                if prod(finer) != prod(other) or (sizes and prod(sizes) != prod(other)):
                    return None
                sizes = finer
        common.append(sizes)
    found: list[Form] = []
    for form, own in zip(forms, places, strict=True):
        wanted = [form.group_sizes(place) for place in range(len(form.groups))]
        for meeting, place in enumerate(own):
            if place is not None and wanted[place]:
                wanted[place] = common[meeting]
        fine = viewed(form, [size for sizes in wanted for size in sizes])
        if fine is None:
            return None
        axes = iter(fine.order)
        found.append(fine._replace(groups=tuple(tuple(next(axes) for _ in sizes) for sizes in wanted)))
    return found


def _refined(one: Sequence[int], other: Sequence[int]) -> Iterator[int]:
    """Yield sizes of which both sequences of the same product are products; fewer if there are none."""
    left, right = list(one)[::-1], list(other)[::-1]
    while left and right:
        large, small = (left, right) if left[-1] >= right[-1] else (right, left)
        step = small.pop()
        size = large.pop()
        if size % step:
            return
        yield step
        if size != step:
            large.append(size // step)
