"""Values of a program as images with the channels of a pixel side by side in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import FakeTensor
from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layout, Layouts
from .quick_pullbacks import is_plain

_aten = torch.ops.aten
VIEWS = frozenset({_aten.view.default, _aten._unsafe_view.default})
TURNS = frozenset({_aten.permute.default, _aten.t.default, _aten.transpose.int})
_LEAST_TURNED = 16, 1 << 14  # channels and entries of an image that is turned as a matrix
_SLOPES = frozenset({
    _aten.threshold_backward.default, _aten.tanh_backward.default, _aten.sigmoid_backward.default,
})  # fmt: skip


class Images:
    """Calls rewritten one after another, of which some make such images in the place of what was there.

    Args:
        calls: The calls.
        own: Values that are the same in every run and that nobody else writes into.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Attributes:
        found: What they have become; some of it nothing may use.
        images: By a value, its entries as images.
        absent: The values that are there as such images only.
        turned: The values of which each column is an image, and not each row.
    """

    def __init__(
        self,
        calls: Sequence[ProgramCall],
        own: Mapping[int, Tensor],
        layouts: Layouts,
        new_value: Callable[[], int],
    ) -> None:
        self.layouts, self.new_value, self.own = layouts, new_value, own
        self.found: list[ProgramCall] = []
        self.images: dict[int, int] = {}
        self.absent: set[int] = set()
        self.turned: set[int] = set()
        self.makers = {index: call for call in calls for index in call.outputs if index is not None}
        self._cuts: set[int] = set()  # values that lay in the memory of others, of which they were a part
        self._again: dict[int, int] = {}  # by such images: the same in the order of before
        self._converted: dict[tuple[int, tuple[int, ...]], int] = {}
        self._single: dict[int, int | None] = {}  # by a value: the one entry that it repeats, if it is seen to
        self._channels: dict[tuple[int, torch.Size], int | None] = {}  # and the one of each channel

    # ---- what stands for what ----

    def stands_for(self, call: ProgramCall, images: int, *, turned: bool = False, place: int = 0) -> bool:
        """Have images in the place of what a call makes, of its first value unless told otherwise; True."""  # noqa: DOC201
        made = call.outputs[place] or 0
        self.images[made] = images
        self.absent.add(made)
        if turned:
            self.turned.add(made)
        if call.target is _aten.slice.Tensor or (
            call.target in VIEWS | TURNS and not self._cuts.isdisjoint(call.operands)
        ):
            self._cuts.add(made)
        return True

    def laid_out_as_before(self, index: int, segment: int) -> None:
        """Make a value that is there as images only."""
        if index not in self.absent:
            return
        call = self.makers[index]
        if index in self._cuts:
            for operand in call.distinct:
                self.laid_out_as_before(operand, segment)
            self.found.append(ProgramCall(call.target, call.args, call.kwargs, call.outputs, segment))
            self.absent.discard(index)
            return
        images = self.images[index]
        if images not in self._again:
            kwargs = {"memory_format": torch.contiguous_format}
            self._again[images] = self.run(segment, _aten.clone.default, Ref(images), **kwargs)
        value, shape = self._again[images], self.layouts[index].shape
        if index in self.turned:
            value = self.run(segment, _aten.view.default, Ref(value), list(shape[::-1]))
            call = ProgramCall(_aten.permute.default, (Ref(value), [1, 0]), {}, [index], segment)
        else:
            call = ProgramCall(_aten.view.default, (Ref(value), list(shape)), {}, [index], segment)
        self.found.append(call)
        self.absent.discard(index)

    # ---- what there is, as images ----

    def as_images(self, index: int, shape: Sequence[int], segment: int) -> int:
        """Return a value as images of a shape, which it is copied into once if it is not there as such."""
        images = self.images.get(index)
        if images is not None and index not in self.turned and self.layouts[images].shape == torch.Size(shape):
            return images
        self.laid_out_as_before(index, segment)
        key = index, tuple(shape)
        if key not in self._converted:
            self._converted[key] = self._copied(index, shape, segment)
        return self._converted[key]

    def _copied(self, index: int, shape: Sequence[int], segment: int) -> int:
        count, channels, height, width = shape
        large = channels >= _LEAST_TURNED[0] and math.prod(shape) >= _LEAST_TURNED[1]
        if count == 1 and large and self.layouts[index].contiguous:
            # PyTorch turns a matrix block by block, in 0.25 to 0.65 of the time of a copy that goes along rows.
            matrix = self.run(segment, _aten.view.default, Ref(index), [channels, height * width])
            matrix = self.run(segment, _aten.t.default, Ref(matrix))
            matrix = self.run(segment, _aten.clone.default, Ref(matrix), memory_format=torch.contiguous_format)
            matrix = self.run(segment, _aten.view.default, Ref(matrix), [1, height, width, channels])
            return self.run(segment, _aten.permute.default, Ref(matrix), [0, 3, 1, 2])
        if self.layouts[index].shape != torch.Size(shape):
            index = self.run(segment, _aten.view.default, Ref(index), list(shape))
        return self.run(segment, _aten.clone.default, Ref(index), memory_format=torch.channels_last)

    def fitting(self, index: int, shape: torch.Size, call: ProgramCall, *, turned: bool) -> int | None:
        """Return an operand of a call entry by entry as images, or as what is read as such.

        Args:
            index: The operand.
            shape: Of the images that the call is to make.
            call: The call.
            turned: Whether each column of what it makes is an image, and not each row.

        Returns:
            Images of that shape, one for all of them, or what holds one entry for each channel or for all; None if its
            entries are others'.
        """
        before, made, image = self.layouts[index], self.layouts[call.outputs[0] or 0], shape[1:]
        if index in self.images:
            images = self.images[index]
            if self.layouts[images].shape == shape and before.shape == made.shape:
                return images if (index in self.turned) is turned else None
            one = self.layouts[images].shape == (1, *image) and index not in self.turned
            return images if one and _is_for_all(before, made, image, turned=turned) else None
        if not is_plain(before) or before.dtype is not made.dtype:
            return None
        if before.shape == ():
            return index
        if before.shape[-3:] == (shape[1], 1, 1) and before.numel == shape[1] and made.shape[-3:] == image:
            return self.run(call.segment, _aten.view.default, Ref(index), [1, shape[1], 1, 1])  # one of each channel
        if before.numel not in {shape.numel(), image.numel()} or not _is_for_all(before, made, image, turned=turned):
            return None
        shape = torch.Size([before.numel // max(1, image.numel()), *image])
        few = self._held_by_few(index, call, shape)
        return self.as_images(index, shape, call.segment) if few is None else few

    def _held_by_few(self, index: int, call: ProgramCall, shape: torch.Size) -> int | None:
        """Return a view of the few entries that images repeat, or what is made of it alone, if they are seen to."""
        if shape[0] == 1 and call.target in _SLOPES:  # of ones, which need not be as many as what they meet
            if index not in self._single:
                self._single[index] = self._of_all(index, call.segment)
            if self._single[index] is not None:
                return self._single[index]
        key = index, shape
        if key not in self._channels:
            self._channels[key] = self._of_each_channel(index, shape, call.segment)
        return self._channels[key]

    def _of_all(self, index: int, segment: int) -> int | None:
        """Return the view (1,) that a value repeats; None if others may write into it."""
        tensor = self.own.get(index)
        if tensor is None or isinstance(tensor, FakeTensor) or not bool((tensor == tensor.flatten()[0]).all()):
            return None
        seen = self.run(segment, _aten.view.default, Ref(index), [tensor.numel()])
        return self.run(segment, _aten.slice.Tensor, Ref(seen), 0, 0, 1)

    def _of_each_channel(self, index: int, shape: torch.Size, segment: int) -> int | None:
        """Return the entries (…, C, 1, 1) that a value repeats over each image; None if it is not seen to do so."""
        at, value, call, scaled = None, index, self.makers.get(index), list[ProgramCall]()
        while call is not None and (call.target in _KEEPING_ENTRIES or _scales(call)):
            if call.target is _aten.unbind.int:
                if at is not None or call.kwargs or tuple(call.args[1:]) not in {(), (0,)}:
                    return None
                at = call.outputs.index(value)
            if _scales(call):
                scaled.append(call)
            (value,) = call.operands
            call = self.makers.get(value)
        if call is None or call.target is not _aten.expand.default:
            return None
        (below,) = call.operands
        before, after = self.layouts[below], self.layouts[value]
        stack = after.shape[:-3]
        alike = before.shape == (*stack, shape[1], 1, 1) and after.shape[-3:] == shape[1:]
        if not alike or stack.numel() != (shape[0] if at is None else shape[0] * stack[0]) or below in self.absent:
            return None
        if at is not None:
            below = self.run(segment, _aten.select.int, Ref(below), 0, at)
        for call in reversed(scaled):
            below = self.run(segment, call.target, Ref(below), *call.args[1:])
        return self.run(segment, _aten.reshape.default, Ref(below), [shape[0], shape[1], 1, 1])

    # ---- calls that are added ----

    def empty(self, shape: Sequence[int], segment: int) -> int:
        """Return images that an op looks at the shape and the order of, and at no entry."""
        kwargs = {"dtype": torch.float32, "device": torch.device("cpu"), "memory_format": torch.channels_last}
        return self.run(segment, _aten.empty.memory_format, list(shape), **kwargs)

    def run_images(
        self,
        call: ProgramCall,
        arguments: tuple[Any, ...],
        shape: Sequence[int] | None = None,
        *,
        target: Any = None,
        **kwargs: Any,
    ) -> int:
        """Add a call in the place of another, of the same op unless told otherwise, whose result is images; these."""  # noqa: DOC201
        made, others = self.image_of(call.outputs[0] or 0, shape), call.outputs[1:]
        if target is not None and target is not call.target:
            others = ()
        self.found.append(ProgramCall(target or call.target, arguments, kwargs, [made, *others], call.segment))
        return made

    def image_of(self, index: int, shape: Sequence[int] | None = None) -> int:
        """Return a new value that is to be what another one is, as images; of its own shape unless one is given."""
        made, before = self.new_value(), self.layouts[index]
        sizes = before.shape if shape is None else torch.Size(shape)
        self.layouts[made] = before._replace(shape=sizes, stride=lie_so(sizes), offset=0)
        return made

    def run(self, segment: int, target: Any, *args: Any, **kwargs: Any) -> int:
        """Add a call, and return the value that it makes."""
        made = self.new_value()
        self.found.append(ProgramCall(target, args, kwargs, [made], segment))
        self.layouts.add(self.found[-1])
        return made


_SCALING = frozenset({_aten.div.Scalar, _aten.mul.Scalar, _aten.div.Tensor, _aten.mul.Tensor})
_KEEPING_ENTRIES = VIEWS | {_aten.clone.default, _aten.reshape.default, _aten.unbind.int}


def _scales(call: ProgramCall) -> bool:
    """Return whether a call multiplies or divides a value by a number."""
    return call.target in _SCALING and len(call.operands) == 1 and isinstance(call.args[0], Ref) and not call.kwargs


def lie_so(shape: torch.Size) -> tuple[int, ...]:
    """Return how images of a shape lie."""
    return torch.empty(shape, device="meta", memory_format=torch.channels_last).stride()


def _is_for_all(before: Layout, made: Layout, image: torch.Size, *, turned: bool) -> bool:
    """Return whether what has the entries of an image, or of all, meets each image of what is made."""
    if turned:
        return before.shape == (image.numel(), 1)
    first = next((place for place, size in enumerate(before.shape) if size != 1), len(before.shape))
    return made.shape[len(made.shape) - len(before.shape[first:]) :] == before.shape[first:]
