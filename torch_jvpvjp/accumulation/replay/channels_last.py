"""Adjoint sweeps through convolutions on a CPU with the channels of a pixel side by side in memory.

oneDNN brings what lies image by image into an order of its own, of channels by 16, and back, for each convolution: for
24 channels that takes three times what the convolution does, for 48 as much as a fifth. What has the channels of a
pixel side by side (PyTorch's channels_last) it takes as it is; and PyTorch's means over windows go along the channels
then, in an eighth of the time. So a sweep is brought into that order once, where it meets its first convolution, and
back where something else looks at it:

    convolution_backward → view → mul, add → view → convolution_backward → … .

Between convolutions a sweep is a matrix, (adjoints, entries): entry by entry ops on it are done on images, as are what
they multiply and add. Where the sweep comes to the image itself, of a few channels, oneDNN has little to fill its
vectors with; there it is one product for each adjoint, which reads either order, and the sum of what overlaps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..._onednn import onednn_is_on
from ..calls import ProgramCall, without_unused
from ..tracing.tape import Ref
from .layout import Layouts
from .quick_pullbacks import is_of_an_image, is_plain

_aten = torch.ops.aten
_LEAST_FMA = 1 << 20  # of a convolution that a sweep is brought into another order for
_LEAST_CHANNELS = 8  # of a pool, which goes along them
_FEWEST = 2  # convolutions; one alone is not worth it
_VIEWS = frozenset({_aten.view.default, _aten._unsafe_view.default})
_BY_ENTRIES = frozenset({_aten.mul.Tensor, _aten.add.Tensor, _aten.sub.Tensor})
_POOLS = frozenset({_aten.avg_pool2d_backward.default, _aten.max_pool2d_with_indices_backward.default})
_CONVOLUTION = _aten.convolution_backward.default


def with_channels_innermost(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls whose adjoint sweeps through convolutions lie with channels innermost, if there are some.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned, which lie as before.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Returns:
        The calls.
    """
    convolutions = [call for call in calls if _is_convolution(call, layouts)]
    large = [call for call in convolutions if _fma(call, layouts) >= _LEAST_FMA]
    images = [call for call in convolutions if is_of_an_image(call, layouts)]
    if len(convolutions) < _FEWEST or len(large) == len([call for call in large if call in images]):
        return list(calls)
    if not onednn_is_on():
        return list(calls)
    sweep = _Sweep(calls, layouts, new_value)
    for call in calls:
        sweep.add(call)
    for index in results:
        sweep.laid_out_as_before(index, calls[-1].segment)
    return without_unused(sweep.found, results)


def _is_convolution(call: ProgramCall, layouts: Layouts) -> bool:
    """Return whether a call is the pullback of a convolution of images to its input that oneDNN makes."""
    if call.target is not _CONVOLUTION or call.kwargs:
        return False
    cotangent, _, weight, _, stride, _, _, transposed, _, groups, wanted = call.args
    plain = all(
        is_plain(layouts[ref.index]) and layouts[ref.index].dtype is torch.float32 for ref in (cotangent, weight)
    )
    return plain and not transposed and groups == 1 and len(stride) == 2 and list(wanted) == [True, False, False]


def _fma(call: ProgramCall, layouts: Layouts) -> int:
    cotangent, _, weight, *_ = call.args
    return layouts[cotangent.index].numel * layouts[weight.index].numel // layouts[weight.index].shape[0]


class _Sweep:
    """Calls rewritten one after another.

    Args:
        calls: The calls.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Attributes:
        found: What they have become; some of it nothing may use.
    """

    def __init__(self, calls: Sequence[ProgramCall], layouts: Layouts, new_value: Callable[[], int]) -> None:
        self.layouts, self.new_value = layouts, new_value
        self.found: list[ProgramCall] = []
        self._makers = {index: call for call in calls for index in call.outputs if index is not None}
        self._images: dict[int, int] = {}  # by a value: its entries as images with channels innermost
        self._absent: set[int] = set()  # values that are there as such images only
        self._again: dict[int, int] = {}  # by such images: the same in the order of before
        self._converted: dict[tuple[int, tuple[int, ...]], int] = {}

    def add(self, call: ProgramCall) -> None:
        """Add what a call has become."""
        if not self._rewritten(call):
            for index in call.distinct:
                self.laid_out_as_before(index, call.segment)
            self.found.append(call)

    def laid_out_as_before(self, index: int, segment: int) -> None:
        """Make a value that is there as images only."""
        if index not in self._absent:
            return
        images = self._images[index]
        if images not in self._again:
            kwargs = {"memory_format": torch.contiguous_format}
            self._again[images] = self._run(segment, _aten.clone.default, Ref(images), **kwargs)
        shape = list(self.layouts[index].shape)
        self.found.append(ProgramCall(_aten.view.default, (Ref(self._again[images]), shape), {}, [index], segment))
        self._absent.discard(index)

    def _rewritten(self, call: ProgramCall) -> bool:
        """Add a call on images, and return whether it can be done so."""
        if not call.outputs or not self.layouts[call.outputs[0] or 0].contiguous:
            return False
        if call.target in _VIEWS:
            (value,) = call.operands
            return value in self._absent and self._stands_for(call, self._images[value])
        if call.target in _BY_ENTRIES:
            return self._by_entries(call)
        if call.target in _POOLS:
            return self._pool(call)
        if not _is_convolution(call, self.layouts):
            return False
        if is_of_an_image(call, self.layouts):
            return call.operands[0] in self._images and self._to_an_image(call)
        return self._convolution(call)

    def _stands_for(self, call: ProgramCall, images: int) -> bool:
        made = call.outputs[0] or 0
        self._images[made] = images
        self._absent.add(made)
        return True

    def _convolution(self, call: ProgramCall) -> bool:
        cotangent, x, weight, *others = call.args
        images = self._images.get(cotangent.index)
        if images is None:
            if _fma(call, self.layouts) < _LEAST_FMA:
                return False
            images = self._converted_once(cotangent.index, self.layouts[cotangent.index].shape, call.segment)
        empty = self._empty(self.layouts[x.index].shape, call.segment)
        arguments = (Ref(images), Ref(empty), weight, *others)
        return self._stands_for(call, self._run_images(call, arguments))

    def _to_an_image(self, call: ProgramCall) -> bool:
        cotangent, _, weight, _, stride, padding, dilation, *_ = call.args
        images, kernel = self._images[cotangent.index], self.layouts[weight.index].shape
        count, channels, *sides = self.layouts[images].shape
        shape, terms = self.layouts[call.outputs[0] or 0].shape, kernel[1:].numel()
        if terms > 2 * channels:  # more would be held than the images themselves
            return False
        segment = call.segment
        pixels = self._run(segment, _aten.view.default, Ref(images), [count, channels, sides[0] * sides[1]])
        matrix = self._run(segment, _aten.view.default, weight, [1, channels, terms])
        matrix = self._run(segment, _aten.transpose.int, Ref(matrix), 1, 2)
        matrix = self._run(segment, _aten.expand.default, Ref(matrix), [count, terms, channels])
        columns = self._run(segment, _aten.bmm.default, Ref(matrix), Ref(pixels))
        arguments = (Ref(columns), list(shape[2:]), list(kernel[2:]), list(dilation), list(padding), list(stride))
        self.found.append(ProgramCall(_aten.col2im.default, arguments, {}, call.outputs[:1], segment))
        return True

    def _pool(self, call: ProgramCall) -> bool:
        cotangent, x, *others = call.args
        before, after = self.layouts[cotangent.index], self.layouts[x.index]
        images = self._images.get(cotangent.index)
        if (
            len(after.shape) != 4
            or after.shape[1] < _LEAST_CHANNELS
            or not is_plain(before)
            or before.dtype is not torch.float32
        ):
            return False
        if images is None:
            images = self._converted_once(cotangent.index, before.shape, call.segment)
        if isinstance(others[-1], Ref):  # the places of the largest
            others[-1] = Ref(self._places(others[-1].index, call.segment))
        arguments = (Ref(images), Ref(self._empty(after.shape, call.segment)), *others)
        return self._stands_for(call, self._run_images(call, arguments))

    def _places(self, index: int, segment: int) -> int:
        copy = self._makers.get(index)
        if copy is not None and copy.target is _aten.clone.default:
            (index,) = copy.operands  # often one image for all adjoints
        return self._converted_once(index, self.layouts[index].shape, segment)

    def _by_entries(self, call: ProgramCall) -> bool:
        known = [self._images[index] for index in call.operands if index in self._images]
        if not known:
            return False
        shape = self.layouts[known[0]].shape
        fitting = {index: self._fitting(index, shape, call) for index in call.distinct}
        if None in fitting.values():
            return False
        arguments = tuple(Ref(fitting[arg.index] or 0) if isinstance(arg, Ref) else arg for arg in call.args)
        return self._stands_for(call, self._run_images(call, arguments, shape, **call.kwargs))

    def _fitting(self, index: int, shape: torch.Size, call: ProgramCall) -> int | None:
        """Return an operand as images of that shape, or as one for all of them; None if its entries are others'."""
        before, made = self.layouts[index], self.layouts[call.outputs[0] or 0]
        if index in self._images:
            return (
                self._images[index]
                if (self.layouts[self._images[index]].shape, before.shape) == (shape, made.shape)
                else None
            )
        first = next((place for place, size in enumerate(before.shape) if size != 1), len(before.shape))
        inner = before.shape[first:]
        ends = made.shape[len(made.shape) - len(inner) :] == inner
        if (
            not ends
            or not is_plain(before)
            or before.dtype is not made.dtype
            or before.numel not in {shape.numel(), shape[1:].numel()}
        ):
            return None
        return self._converted_once(index, torch.Size([before.numel // shape[1:].numel(), *shape[1:]]), call.segment)

    def _converted_once(self, index: int, shape: Sequence[int], segment: int) -> int:
        """Return a value as images with channels innermost."""
        key = index, tuple(shape)
        if key not in self._converted:
            seen = index
            if self.layouts[index].shape != torch.Size(shape):
                seen = self._run(segment, _aten.view.default, Ref(index), list(shape))
            self._converted[key] = self._run(segment, _aten.clone.default, Ref(seen), memory_format=torch.channels_last)
        return self._converted[key]

    def _empty(self, shape: Sequence[int], segment: int) -> int:
        """Return images that an op looks at the shape and the order of, and at no entry."""
        kwargs = {"dtype": torch.float32, "device": torch.device("cpu"), "memory_format": torch.channels_last}
        return self._run(segment, _aten.empty.memory_format, list(shape), **kwargs)

    def _run_images(
        self, call: ProgramCall, arguments: tuple[Any, ...], shape: Sequence[int] | None = None, **kwargs: Any
    ) -> int:
        """Add a call in the place of another, whose result is images, and return these."""
        made = self.new_value()
        before = self.layouts[call.outputs[0] or 0]
        sizes = before.shape if shape is None else torch.Size(shape)
        lies = torch.empty(sizes, device="meta", memory_format=torch.channels_last)
        self.layouts[made] = before._replace(shape=sizes, stride=lies.stride(), offset=0)
        self.found.append(ProgramCall(call.target, arguments, kwargs, [made, *call.outputs[1:]], call.segment))
        return made

    def _run(self, segment: int, target: Any, *args: Any, **kwargs: Any) -> int:
        made = self.new_value()
        self.found.append(ProgramCall(target, args, kwargs, [made], segment))
        self.layouts.add(self.found[-1])
        return made
