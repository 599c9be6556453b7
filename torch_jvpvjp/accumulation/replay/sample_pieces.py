"""Values of a program in one piece for each sample of a batch, and the calls that make and see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch

from ..calls import ProgramCall
from ..tracing.tape import Ref
from .axes import SAMPLE, Form
from .layout import Layout, Layouts

_aten = torch.ops.aten


class Pieces:
    """Calls on pieces, written one after another.

    Args:
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Attributes:
        found: The calls, in order.
        waiting: By the sample, the calls since those of all samples were last added.
        segment: The task of the plan that calls are added to.
    """

    def __init__(self, layouts: Layouts, new_value: Callable[[], int]) -> None:
        self.layouts, self.new_value = layouts, new_value
        self.found: list[ProgramCall] = []
        self.waiting: dict[int, list[ProgramCall]] = {}
        self.segment = 0
        self._done: dict[Any, int] = {}  # views that are there, by what they are

    def run(self, target: Any, *args: Any, sample: int | None, **kwargs: Any) -> int:
        """Add a call on a piece, or on what all samples share, and return its result."""
        call = ProgramCall(target, args, kwargs, [self.new_value()], self.segment)
        if target.is_view:
            if call.key in self._done:
                return self._done[call.key]
            self._done[call.key] = call.outputs[0] or 0
        self.layouts.add(call)
        (self.found if sample is None else self.waiting.setdefault(sample, [])).append(call)
        return call.outputs[0] or 0

    def run_samples(self) -> None:
        """Add the calls on pieces, sample after sample: what one call has made is in the cache for the next."""
        for sample in sorted(self.waiting):
            self.found += self.waiting[sample]
        self.waiting = {}

    def layout(self, value: int, shape: Sequence[int]) -> Layout:
        """Return how a value lies when it is seen in a shape; its memory must allow that."""
        layout = self.layouts[value]
        if list(layout.shape) == list(shape):
            return layout
        (layout,) = self.layouts.of(ProgramCall(_aten.view.default, (Ref(value), list(shape)), {}, [None]))
        assert layout is not None, "a view gives a tensor"
        return layout

    def allows(self, value: int, shape: Sequence[int]) -> bool:
        """Return whether a value can be seen in a shape as it lies."""
        try:
            self.layout(value, shape)
        except RuntimeError:
            return False
        return True

    def seen(self, value: int, shape: Sequence[int], sample: int | None) -> int:
        """Return a piece in a shape."""
        if list(self.layouts[value].shape) == list(shape):
            return value
        return self.run(_aten.view.default, Ref(value), list(shape), sample=sample)

    def permuted(self, value: int, sizes: Sequence[int], order: Sequence[int], sample: int | None) -> int:
        """Return a piece that has axes of some sizes, with the axes in an order."""
        seen = self.seen(value, sizes, sample)
        if list(order) == sorted(order):
            return seen
        return self.run(_aten.permute.default, Ref(seen), list(order), sample=sample)

    def apart(self, form: Form, axis: int) -> Form:
        """Return the form of a value with each sample, along one of its axes, by itself."""
        seen, sizes = self.seen(form.values[0], form.sizes, None), form.sizes[:axis] + form.sizes[axis + 1 :]
        places = range(form.sizes[axis])
        values = tuple(self.run(_aten.select.int, Ref(seen), axis, place, sample=None) for place in places)
        groups = (tuple(SAMPLE if one == axis else one - (one > axis) for one in group) for group in form.groups)
        return Form(values, sizes, tuple(groups))

    def matrices(self, form: Form, batch: Sequence[int], rows: Sequence[int], columns: Sequence[int]) -> list[int]:
        """Return pieces as matrices, or as batches of them, that BLAS takes."""
        groups = [batch, rows, columns] if batch else [rows, columns]
        shape = [prod(form.sizes[axis] for axis in group) for group in groups]
        found: list[int] = []
        for sample, value in enumerate(form.values):
            seen = self.permuted(value, form.sizes, [axis for group in groups for axis in group], sample)
            if not self.allows(seen, shape) or not _is_for_blas(self.layout(seen, shape)):
                seen = self.run(_aten.clone.default, Ref(seen), sample=sample, memory_format=torch.contiguous_format)
            found.append(self.seen(seen, shape, sample))
        return found

    def along(self, form: Form, full: Form) -> list[int] | None:
        """Return the pieces of what broadcasts to a full tensor, with axes as its pieces have them."""
        ahead = len(full.groups) - len(form.groups)
        own: dict[int, int] = {}  # by the axes of the full tensor
        for place, group in enumerate(form.groups):
            if group:
                own |= dict(zip(full.groups[ahead + place], group, strict=True))
        if form.apart:
            if own.get(SAMPLE) != SAMPLE:
                return None
            pieces = form
        elif SAMPLE in own:
            sample = own.pop(SAMPLE)
            pieces = self.apart(form, sample)
            own = {axis: mine - (mine > sample) for axis, mine in own.items()}
        else:
            pieces = form._replace(values=form.values * len(full.values))
        shared = [axis for axis in range(len(full.sizes)) if axis in own]
        outermost = shared[0] if shared else len(full.sizes)
        shape = [full.sizes[axis] if axis in own else 1 for axis in range(outermost, len(full.sizes))]
        order = [own[axis] for axis in shared]
        found = list(pieces.values)
        if order != sorted(order):
            found = [self.permuted(value, pieces.sizes, order, sample) for sample, value in enumerate(found)]
        return [self.seen(value, shape, sample) for sample, value in enumerate(found)]


def _is_for_blas(layout: Layout) -> bool:
    """Return whether the rows or the columns of matrices are without gaps and apart from one another."""
    (m, n), (down, across) = layout.shape[-2:], layout.stride[-2:]
    return (across == 1 and down >= max(n, 1)) or (down == 1 and across >= max(m, 1))
