"""Sweeps through convolutions on a CPU with the channels of a pixel side by side in memory.

oneDNN brings what lies image by image into an order of its own, of channels by 16, and back, for each convolution: for
24 channels that takes as long again as the convolution, for 48 a fifth. What has the channels of a pixel side by side
(PyTorch's channels_last) it takes as it is; and PyTorch's pools and upsampling go along the channels then, in a tenth
of the time. So a sweep of tangents or adjoints is brought into that order once, where it meets its first convolution or
pool, and back where something else looks at it:

    convolution_backward → view → mul, add → view → convolution_backward → … .

Between convolutions a sweep is a matrix, (adjoints, entries) or (entries, tangents): entry by entry ops on it are done
on images, as are what they multiply and add. Parts of images are cut out, and images joined, as they lie. Where
adjoints come to an image of a few channels, oneDNN has little to fill its vectors with; there it is one product for
each adjoint, which reads either order, and the sum of what overlaps.
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
_LEAST_CHANNELS, _LEAST_RESAMPLED = 8, 1 << 14  # of a pool or an upsampling that it is for, which goes along channels
_FEWEST = 2  # convolutions; one alone is not worth it
_VIEWS = frozenset({_aten.view.default, _aten._unsafe_view.default})
_BY_ENTRIES = frozenset({_aten.mul.Tensor, _aten.add.Tensor, _aten.sub.Tensor})
_TURNS = frozenset({_aten.permute.default, _aten.t.default, _aten.transpose.int})
_POOLS = frozenset({_aten.avg_pool2d_backward.default, _aten.max_pool2d_with_indices_backward.default})  # (ȳ, x, …)
_RESAMPLING = frozenset({
    _aten.avg_pool2d.default,
    _aten.upsample_nearest2d.default, _aten.upsample_nearest2d_backward.default,
    _aten.upsample_bilinear2d.default, _aten.upsample_bilinear2d_backward.default,
})  # fmt: skip
_FORWARD, _BACKWARD = _aten.convolution.default, _aten.convolution_backward.default


def with_channels_innermost(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls whose sweeps through convolutions lie with channels innermost, if there are some.

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
    """Return whether a call is a convolution of tangents, or of adjoints to its input, that oneDNN makes."""
    if call.target not in {_FORWARD, _BACKWARD} or call.kwargs:
        return False
    swept, *others = (layouts[index] for index in (call.operands[0], _weight(call)))
    if call.target is _FORWARD:
        *_, bias, stride, _, _, _, _, groups = call.args
        linear = bias is None and swept.shape[0] > 1  # else it is one of the primal
    else:
        *_, stride, _, _, _, _, groups, wanted = call.args
        linear = list(wanted) == [True, False, False]
    plain = all(is_plain(layout) and layout.dtype is torch.float32 for layout in (swept, *others))
    return plain and linear and groups == 1 and len(stride) == 2


def _weight(call: ProgramCall) -> int:
    return call.args[1 if call.target is _FORWARD else 2].index


def _fma(call: ProgramCall, layouts: Layouts) -> int:
    """Return the multiplications of a convolution of tangents or adjoints."""
    swept, weight, made = (layouts[index] for index in (call.operands[0], _weight(call), call.outputs[0] or 0))
    transposed = call.args[6 if call.target is _FORWARD else 7]
    # Each entry of the side that an entry of the other is a sum over meets the weights of one channel of it.
    one = made if transposed == (call.target is _BACKWARD) else swept
    return one.numel * weight.numel // max(1, weight.shape[0])


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
        self._turned: set[int] = set()  # values of which each column is an image, and not each row
        self._cuts: set[int] = set()  # values that lay in the memory of others, of which they were a part
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
        if index in self._cuts:
            call = self._makers[index]
            for operand in call.distinct:
                self.laid_out_as_before(operand, segment)
            self.found.append(ProgramCall(call.target, call.args, call.kwargs, call.outputs, segment))
            self._absent.discard(index)
            return
        images = self._images[index]
        if images not in self._again:
            kwargs = {"memory_format": torch.contiguous_format}
            self._again[images] = self._run(segment, _aten.clone.default, Ref(images), **kwargs)
        value, shape = self._again[images], self.layouts[index].shape
        if index in self._turned:
            value = self._run(segment, _aten.view.default, Ref(value), list(shape[::-1]))
            call = ProgramCall(_aten.permute.default, (Ref(value), [1, 0]), {}, [index], segment)
        else:
            call = ProgramCall(_aten.view.default, (Ref(value), list(shape)), {}, [index], segment)
        self.found.append(call)
        self._absent.discard(index)

    def _rewritten(self, call: ProgramCall) -> bool:
        """Add a call on images, and return whether it can be done so."""
        if not call.outputs or call.outputs[0] is None:
            return False
        first = call.operands[0] if call.operands else None
        if call.target in _VIEWS:
            return first in self._absent - self._turned and self._stands_for(call, self._images[first or 0])
        if call.target in _TURNS:
            return first in self._absent and self._turn(call, first or 0)
        if call.target in _BY_ENTRIES:
            return self._by_entries(call)
        if call.target is _aten.slice.Tensor:
            return first in self._absent - self._turned and self._cut(call, first or 0)
        if call.target is _aten.cat.default:
            return self._join(call)
        if not self.layouts[call.outputs[0]].contiguous or first in self._turned:
            return False
        if call.target in _POOLS or call.target in _RESAMPLING:
            return self._resample(call)
        if not _is_convolution(call, self.layouts):
            return False
        if is_of_an_image(call, self.layouts) and first not in self._images:
            return False
        return (is_of_an_image(call, self.layouts) and self._to_an_image(call)) or self._convolve(call)

    def _stands_for(self, call: ProgramCall, images: int, *, turned: bool = False) -> bool:
        made = call.outputs[0] or 0
        self._images[made] = images
        self._absent.add(made)
        if turned:
            self._turned.add(made)
        if call.target is _aten.slice.Tensor or (
            call.target in _VIEWS | _TURNS and not self._cuts.isdisjoint(call.operands)
        ):
            self._cuts.add(made)
        return True

    def _turn(self, call: ProgramCall, value: int) -> bool:
        """Take a transpose, or a permutation that changes nothing, for what it is of."""
        before, after = self.layouts[value], self.layouts[call.outputs[0] or 0]
        turned = value in self._turned
        if before.shape == after.shape and before.stride == after.stride:
            return self._stands_for(call, self._images[value], turned=turned)
        if len(before.shape) != 2 or (after.shape, after.stride) != (before.shape[::-1], before.stride[::-1]):
            return False
        return self._stands_for(call, self._images[value], turned=not turned)

    def _cut(self, call: ProgramCall, value: int) -> bool:
        """Take some channels, rows or columns of images for a copy of them, which lies as images do."""
        _, dim, *part = call.args
        rank, images = len(self.layouts[value].shape), self._images[value]
        axis = dim % rank - rank + 4
        if call.kwargs or axis < 1 or self.layouts[value].shape[-3:] != self.layouts[images].shape[1:]:
            return False
        seen = self._run(call.segment, call.target, Ref(images), axis, *part)
        copied = self._run(call.segment, _aten.clone.default, Ref(seen), memory_format=torch.channels_last)
        return self._stands_for(call, copied)

    def _join(self, call: ProgramCall) -> bool:
        """Join images along their channels, rows or columns, if some of them are there as images only."""
        members, *others = call.args
        made = self.layouts[call.outputs[0] or 0]
        rank = len(made.shape)
        axis = (others[0] if others else 0) % rank - rank + 4
        count = made.shape[:-3].numel()
        known = [member.index for member in members if member.index in self._absent - self._turned]
        if not known or axis < 1 or any(self._part(member.index, count) is None for member in members):
            return False
        parts = [
            self._images[index]
            if index in self._images
            else self._converted_once(index, [count, *self.layouts[index].shape[-3:]], call.segment)
            for index in (member.index for member in members)
        ]
        images = self._run(call.segment, call.target, list(map(Ref, parts)), axis)
        lies = torch.empty(self.layouts[images].shape, device="meta", memory_format=torch.channels_last)
        return self.layouts[images].stride == lies.stride() and self._stands_for(call, images)

    def _part(self, index: int, count: int) -> torch.Size | None:
        """Return the sizes of so many images that a value holds, or can be seen as; None if it cannot."""
        layout = self.layouts[index]
        shape = torch.Size([count, *layout.shape[-3:]])
        if index in self._images:
            alike = self.layouts[self._images[index]].shape == shape and index not in self._turned
            return shape if alike else None
        fits = is_plain(layout) and layout.contiguous and layout.dtype is torch.float32
        return shape if fits and shape.numel() == layout.numel else None

    def _convolve(self, call: ProgramCall) -> bool:
        swept, *others = call.args
        images = self._images.get(swept.index)
        if images is None:
            if _fma(call, self.layouts) < _LEAST_FMA:
                return False
            images = self._converted_once(swept.index, self.layouts[swept.index].shape, call.segment)
        if call.target is _BACKWARD:
            others[0] = Ref(self._empty(self.layouts[others[0].index].shape, call.segment))
        return self._stands_for(call, self._run_images(call, (Ref(images), *others)))

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

    def _resample(self, call: ProgramCall) -> bool:
        """Go along channels in a pool, an upsampling or the pullback of one; a large one begins that order."""
        swept, *others = call.args
        before, after = self.layouts[swept.index], self.layouts[call.outputs[0] or 0]
        if len(after.shape) != 4 or len(before.shape) != 4 or call.kwargs:
            return False
        images = self._images.get(swept.index)
        if images is None:
            plain = is_plain(before) and before.dtype is torch.float32 and before.shape[0] > 1
            if not plain or after.shape[1] < _LEAST_CHANNELS or max(before.numel, after.numel) < _LEAST_RESAMPLED:
                return False
            images = self._converted_once(swept.index, before.shape, call.segment)
        if call.target in _POOLS:
            others[0] = Ref(self._empty(after.shape, call.segment))
            if isinstance(others[-1], Ref):  # the places of the largest
                others[-1] = Ref(self._places(others[-1].index, call.segment))
        return self._stands_for(call, self._run_images(call, (Ref(images), *others)))

    def _places(self, index: int, segment: int) -> int:
        copy = self._makers.get(index)
        if copy is not None and copy.target is _aten.clone.default:
            (index,) = copy.operands  # often one image for all adjoints
        return self._converted_once(index, self.layouts[index].shape, segment)

    def _by_entries(self, call: ProgramCall) -> bool:
        known = [index for index in call.operands if index in self._images]
        if not known:
            return False
        turned, shape = known[0] in self._turned, self.layouts[self._images[known[0]]].shape
        made = self.layouts[call.outputs[0] or 0]
        row_by_row = made._replace(shape=made.shape[::-1], stride=made.stride[::-1]) if turned else made
        fitting = {index: self._fitting(index, shape, call, turned) for index in call.distinct}
        if None in fitting.values() or not row_by_row.contiguous:
            return False
        arguments = tuple(Ref(fitting[arg.index] or 0) if isinstance(arg, Ref) else arg for arg in call.args)
        images = self._run_images(call, arguments, shape, **call.kwargs)
        return self._stands_for(call, images, turned=turned)

    def _fitting(self, index: int, shape: torch.Size, call: ProgramCall, turned: bool) -> int | None:
        """Return an operand as images of that shape, or as one for all of them; None if its entries are others'."""
        before, made, image = self.layouts[index], self.layouts[call.outputs[0] or 0], shape[1:]
        if index in self._images:
            images = self._images[index]
            alike = self.layouts[images].shape == shape and before.shape == made.shape
            return images if alike and (index in self._turned) is turned else None
        if not is_plain(before) or before.dtype is not made.dtype:
            return None
        if before.shape[-3:] == (shape[1], 1, 1) and before.numel == shape[1] and made.shape[-3:] == image:
            return self._run(call.segment, _aten.view.default, Ref(index), [1, shape[1], 1, 1])  # one of each channel
        if before.numel not in {shape.numel(), image.numel()}:
            return None
        if turned:
            fits = before.shape == (image.numel(), 1)
        else:
            first = next((place for place, size in enumerate(before.shape) if size != 1), len(before.shape))
            fits = made.shape[len(made.shape) - len(before.shape[first:]) :] == before.shape[first:]
        many = before.numel // max(1, image.numel())
        return self._converted_once(index, torch.Size([many, *image]), call.segment) if fits else None

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
