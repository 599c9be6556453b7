"""Convolutions on a CPU with the channels of a pixel side by side in memory: the primal, and sweeps through it.

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

The primal before such sweeps lies so from its first large convolution of many channels on, and so do the slopes that
are made of it, which sweeps then multiply by as they are: a convolution of 24 channels takes two thirds of the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..._onednn import onednn_is_on
from ..calls import RANDOM, ProgramCall, without_unused
from ..tracing.tape import Ref
from .at_strides import AtStrides, added_at_strides, at_strides
from .convolutions import (
    BACKWARD,
    as_a_convolution,
    is_of_a_sweep,
    is_of_the_primal,
    multiplications,
    swept_axis,
    weight_of,
)
from .few_channels import pulled_to_few_channels
from .images import TURNS, VIEWS, Images, lie_so
from .layout import Layouts
from .quick_pullbacks import is_of_an_image, is_plain

_aten = torch.ops.aten
_LEAST_FMA, _LEAST_FMA_OF_ONE = 1 << 20, 1 << 17  # of a convolution that a sweep, or the primal, is reordered for
_LEAST_CHANNELS, _LEAST_RESAMPLED = 8, 1 << 14  # of a pool or an upsampling that it is for, which goes along channels
_FEWEST = 2  # convolutions; one alone is not worth it
_POOLS = frozenset({_aten.avg_pool2d_backward.default, _aten.max_pool2d_with_indices_backward.default})  # (ȳ, x, …)
_RESAMPLING = frozenset({
    _aten.avg_pool2d.default, _aten.max_pool2d_with_indices.default,
    _aten.upsample_nearest2d.default, _aten.upsample_nearest2d_backward.default,
    _aten.upsample_bilinear2d.default, _aten.upsample_bilinear2d_backward.default,
})  # fmt: skip
_NORMALISING = {_aten.native_batch_norm.default: 5, _aten._native_batch_norm_legit_no_training.default: None}
"""The op, and the place of the argument that says whether it counts what it is given."""
_COPIES = frozenset({_aten.clone.default, _aten._to_copy.default})
_HARMLESS = frozenset({"alpha", "approximate", "value"})  # arguments by name that do not say how a result lies


def with_channels_innermost(
    calls: Sequence[ProgramCall],
    results: Sequence[int],
    own: Mapping[int, Tensor],
    layouts: Layouts,
    new_value: Callable[[], int],
) -> list[ProgramCall]:
    """Return calls whose sweeps through convolutions lie with channels innermost, if there are some.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned, which lie as before.
        own: Values that are the same in every run and that nobody else writes into.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Returns:
        The calls.
    """
    convolutions = [call for call in calls if is_of_a_sweep(call, layouts)]
    large = [call for call in convolutions if multiplications(call, layouts) >= _LEAST_FMA]
    images = [call for call in convolutions if is_of_an_image(call, layouts)]
    if len(convolutions) < _FEWEST or len(large) == len([call for call in large if call in images]):
        return list(calls)
    if not onednn_is_on():
        return list(calls)
    sweep = _Sweep(calls, own, layouts, new_value)
    for call in calls:
        sweep.add(call)
    for index in results:
        sweep.laid_out_as_before(index, calls[-1].segment)
    return without_unused(sweep.found, results)


class _Sweep(Images):
    """Calls rewritten one after another.

    Args:
        calls: The calls.
        own: Values that are the same in every run and that nobody else writes into.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
    """

    def __init__(
        self,
        calls: Sequence[ProgramCall],
        own: Mapping[int, Tensor],
        layouts: Layouts,
        new_value: Callable[[], int],
    ) -> None:
        super().__init__(calls, own, layouts, new_value)
        self._begun = {call.operands[0] for call in calls if self._begins(call)}  # values that are brought into order
        self._before = set(self._begun)  # and those that they come of, entry by entry
        for call in reversed(calls):
            if not call.outputs or call.outputs[0] not in self._before:
                continue
            if call.target in VIEWS or _goes_by_entries(call):
                self._before.update(call.operands)
            elif call.target in _RESAMPLING and self._is_of_many_channels(call.operands[0]):
                self._begun.add(call.operands[0])
                self._before.add(call.operands[0])
        self._scaled: dict[int, tuple[int, int]] = {}  # images that are others times one number for each channel
        convolutions = [call for call in calls if is_of_the_primal(call, layouts) or is_of_a_sweep(call, layouts)]
        self._convolves = Counter(map(weight_of, convolutions))
        self._uses = Counter(index for call in calls for index in call.operands)
        self._at_strides: dict[int, AtStrides] = {}  # images that such convolutions make, which one call looks at

    def add(self, call: ProgramCall) -> None:
        """Add what a call has become."""
        if self._rewritten(call):
            return
        self._lay_out(call.distinct, call.segment)
        self.found.append(call)
        for index in self._begun.intersection(call.outputs):
            self.images[index] = self.as_images(index, self.layouts[index].shape, call.segment)

    def _begins(self, call: ProgramCall) -> bool:
        """Return whether what a convolution is of is brought into that order for it."""
        if is_of_the_primal(call, self.layouts):
            many = self._is_of_many_channels(call.operands[0])
            return many and multiplications(call, self.layouts) >= _LEAST_FMA_OF_ONE
        if not is_of_a_sweep(call, self.layouts) or is_of_an_image(call, self.layouts):
            return False
        return multiplications(call, self.layouts) >= _LEAST_FMA

    def _is_of_many_channels(self, index: int) -> bool:
        layout = self.layouts[index]
        images = is_plain(layout) and layout.dtype is torch.float32 and len(layout.shape) == 4  # noqa: PLR2004 (axes)
        return images and layout.shape[1] >= _LEAST_CHANNELS

    def _lay_out(self, values: Sequence[int], segment: int) -> None:
        for index in values:
            self.laid_out_as_before(index, segment)

    def _rewritten(self, call: ProgramCall) -> bool:
        """Add a call on images, and return whether it can be done so."""
        if not call.outputs or call.outputs[0] is None or not call.operands:
            return False
        first = call.operands[0]
        if call.target in VIEWS:
            return first in self.absent - self.turned and self.stands_for(call, self.images[first])
        if call.target in TURNS:
            return first in self.absent and self._turn(call, first)
        if call.target is _aten.slice.Tensor:
            return first in self.absent - self.turned and self._cut(call, first)
        if call.target is _aten.cat.default:
            return self._join(call)
        if _goes_by_entries(call):
            return self._by_entries(call)
        if not self.layouts[call.outputs[0]].contiguous or first in self.turned:
            return False
        if call.target in _POOLS or call.target in _RESAMPLING:
            return self._resample(call)
        if call.target in _NORMALISING:
            return self._normalise(call)
        if not is_of_the_primal(call, self.layouts) and not is_of_a_sweep(call, self.layouts):
            return False
        if first not in self.images and first not in self._begun:
            return False
        return (is_of_an_image(call, self.layouts) and self._to_an_image(call)) or self._convolve(call)

    def _turn(self, call: ProgramCall, value: int) -> bool:
        """Take a transpose, or a permutation that changes nothing, for what it is of."""
        before, after = self.layouts[value], self.layouts[call.outputs[0] or 0]
        turned = value in self.turned
        if before.shape == after.shape and before.stride == after.stride:
            return self.stands_for(call, self.images[value], turned=turned)
        if len(before.shape) != 2 or (after.shape, after.stride) != (before.shape[::-1], before.stride[::-1]):
            return False
        return self.stands_for(call, self.images[value], turned=not turned)

    def _cut(self, call: ProgramCall, value: int) -> bool:
        """Take some channels, rows or columns of images for a copy of them, which lies as images do."""
        _, dim, *part = call.args
        rank, images = len(self.layouts[value].shape), self.images[value]
        axis = dim % rank - rank + 4
        if call.kwargs or axis < 1 or self.layouts[value].shape[-3:] != self.layouts[images].shape[1:]:
            return False
        seen = self.run(call.segment, call.target, Ref(images), axis, *part)
        copied = self.run(call.segment, _aten.clone.default, Ref(seen), memory_format=torch.channels_last)
        return self.stands_for(call, copied)

    def _join(self, call: ProgramCall) -> bool:
        """Join images along their channels, rows or columns, if some of them are there as images only."""
        members, *others = call.args
        made = self.layouts[call.outputs[0] or 0]
        rank = len(made.shape)
        axis = (others[0] if others else 0) % rank - rank + 4
        count = made.shape[:-3].numel()
        known = [member.index for member in members if member.index in self.absent - self.turned]
        if not known or axis < 1 or any(self._part(member.index, count) is None for member in members):
            return False
        parts = [
            self.as_images(index, [count, *self.layouts[index].shape[-3:]], call.segment)
            for index in (member.index for member in members)
        ]
        images = self.run(call.segment, call.target, list(map(Ref, parts)), axis)
        return self.layouts[images].stride == lie_so(self.layouts[images].shape) and self.stands_for(call, images)

    def _part(self, index: int, count: int) -> torch.Size | None:
        """Return the sizes of so many images that a value holds, or can be seen as; None if it cannot."""
        layout = self.layouts[index]
        shape = torch.Size([count, *layout.shape[-3:]])
        if index in self.images:
            alike = self.layouts[self.images[index]].shape == shape and index not in self.turned
            return shape if alike else None
        fits = is_plain(layout) and layout.contiguous and layout.dtype is torch.float32
        return shape if fits and shape.numel() == layout.numel else None

    def _convolve(self, call: ProgramCall) -> bool:
        again, segment = as_a_convolution(call, self.layouts), call.segment
        swept, *others = again.args
        images = self.as_images(swept.index, self.layouts[swept.index].shape, segment)
        if again.target is BACKWARD:
            others[0] = Ref(self.empty(self.layouts[others[0].index].shape, segment))
        self._lay_out([other.index for other in others if isinstance(other, Ref)], segment)
        weight = laid = weight_of(again)
        if self._convolves[weight] > 1 and self.layouts[weight].shape[2:].numel() > 1:  # oneDNN takes it as it is, too
            laid = self.as_images(weight, self.layouts[weight].shape, segment)
        if images in self._scaled and 2 * self.layouts[weight].numel <= self.layouts[images].numel:
            images, scale = self._scaled[images]
            size = [1, 1, 1, 1]
            size[swept_axis(again)] = self.layouts[scale].numel
            scale = self.run(segment, _aten.view.default, Ref(scale), size)
            laid = self.run(segment, _aten.mul.Tensor, Ref(laid), Ref(scale))
        others = [Ref(laid) if isinstance(other, Ref) and other.index == weight else other for other in others]
        made = self.run_images(call, (Ref(images), *others), target=again.target)
        single = at_strides(self.found[-1], self)
        if single is not None and self._uses[call.outputs[0] or 0] == 1:
            self._at_strides[made] = single
        return self.stands_for(call, made)

    def _normalise(self, call: ProgramCall) -> bool:
        x, *others = call.args
        counts = _NORMALISING[call.target]
        if x.index not in self.images or call.kwargs or (counts is not None and call.args[counts]):
            return False
        images = self.as_images(x.index, self.layouts[x.index].shape, call.segment)
        if self.layouts[images].shape[1] < 2:  # which lie either way
            return False
        self._lay_out([other.index for other in others if isinstance(other, Ref)], call.segment)
        return self.stands_for(call, self.run_images(call, (Ref(images), *others)))

    def _to_an_image(self, call: ProgramCall) -> bool:
        cotangent, _, weight, *_ = call.args
        shape = self.layouts[cotangent.index].shape
        if self.layouts[weight.index].shape[1:].numel() > 2 * shape[1]:  # more would be held than the images themselves
            return False
        images = self.as_images(cotangent.index, shape, call.segment)
        self.laid_out_as_before(weight.index, call.segment)
        pulled_to_few_channels(self, call, images)
        return True

    def _resample(self, call: ProgramCall) -> bool:
        """Go along channels in a pool, an upsampling or the pullback of one; a large one begins that order."""
        swept, *others = call.args
        before, after = self.layouts[swept.index], self.layouts[call.outputs[0] or 0]
        if len(after.shape) != 4 or len(before.shape) != 4 or call.kwargs:
            return False
        if swept.index not in self.images:
            plain = is_plain(before) and before.dtype is torch.float32 and before.shape[0] > 1
            if not plain or after.shape[1] < _LEAST_CHANNELS or max(before.numel, after.numel) < _LEAST_RESAMPLED:
                return False
        elif after.shape[1] < 2:  # which lie either way
            return False
        images = self.as_images(swept.index, before.shape, call.segment)
        if call.target in _POOLS:
            others[0] = Ref(self.empty(after.shape, call.segment))
            if isinstance(others[-1], Ref):  # the places of the largest
                others[-1] = Ref(self._places(others[-1].index, call.segment))
        found = self.run_images(call, (Ref(images), *others))
        if len(call.outputs) > 1 and call.outputs[1] is not None:  # the places of the largest, in that order too
            self.found[-1].outputs = (found, self.image_of(call.outputs[1]))
            self.stands_for(call, self.found[-1].outputs[1], place=1)
        return self.stands_for(call, found)

    def _places(self, index: int, segment: int) -> int:
        copy = self.makers.get(index)
        if copy is not None and copy.target is _aten.clone.default:
            (index,) = copy.operands  # often one image for all adjoints
        return self.as_images(index, self.layouts[index].shape, segment)

    def _by_entries(self, call: ProgramCall) -> bool:
        known = [index for index in call.operands if index in self.images]
        if not known:
            return False
        index = max(known, key=lambda index: self.layouts[self.images[index]].numel)
        turned, shape = index in self.turned, self.layouts[self.images[index]].shape
        made = self.layouts[call.outputs[0] or 0]
        row_by_row = made._replace(shape=made.shape[::-1], stride=made.stride[::-1]) if turned else made
        if made.numel != shape.numel() and call.outputs[0] in self._before and not turned:
            count = made.numel // max(1, shape[1:].numel())  # what it meets comes to be so many images
            shape = torch.Size([count, *shape[1:]])
        if made.numel != shape.numel() or not row_by_row.contiguous:
            return False
        fitting = {index: self.fitting(index, shape, call, turned=turned) for index in call.distinct}
        if None in fitting.values():
            return False
        arguments = tuple(Ref(fitting[arg.index] or 0) if isinstance(arg, Ref) else arg for arg in call.args)
        images = self._added_at_strides(call, [fitting[index] or 0 for index in call.operands], shape)
        if images is not None:
            return self.stands_for(call, images, turned=turned)
        images = self.run_images(call, arguments, shape, **call.kwargs)
        if not self._lies_as_said(self.found[-1]):
            self.found.pop()
            return False
        self._note_scale(images, self.found[-1])
        return self.stands_for(call, images, turned=turned)

    def _added_at_strides(self, call: ProgramCall, operands: Sequence[int], shape: torch.Size) -> int | None:
        if call.target is not _aten.add.Tensor or call.kwargs or len(operands) != 2:  # noqa: PLR2004 (of two)
            return None
        for one, into in (operands, operands[::-1]):
            if one in self._at_strides and into != one and self.layouts[into].shape == shape:
                return added_at_strides(self, self._at_strides[one], into, call.segment)
        return None

    def _note_scale(self, images: int, call: ProgramCall) -> None:
        if call.target is _aten.mul.Tensor and len(call.operands) == 2:
            shape = self.layouts[images].shape
            for one, other in (call.operands, call.operands[::-1]):
                if (self.layouts[one].shape, self.layouts[other].shape) == (shape, (1, shape[1], 1, 1)):
                    self._scaled[images] = one, other

    def _lies_as_said(self, call: ProgramCall) -> bool:
        try:
            (found,) = self.layouts.of(call)
        except (RuntimeError, ValueError):
            return False
        return found == self.layouts[call.outputs[0] or 0]


def _goes_by_entries(call: ProgramCall) -> bool:
    """Return whether each entry of what a call makes comes of those at its place, in any order."""
    tags = call.target.tags
    plain = torch.Tag.pointwise in tags and RANDOM not in tags and len(call.outputs) == 1
    return plain and call.target not in _COPIES and call.kwargs.keys() <= _HARMLESS
