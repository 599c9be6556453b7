"""Pullbacks of convolutions and pools on a CPU by other ops of PyTorch, where its own for them are slow.

The pullback of a convolution of few channels, as the first one of a network has: oneDNN fills the lanes of a vector by
the channels of its result, most of which are idle then. One product for each sample, and the sum of what overlaps, take
0.15 to 0.7 of its time for images of up to four channels and kernels of 3 to 16. A line is an image of one row: 0.02 to
0.15 of its time for 160 lines of 200 entries, whose one channel is sixteen in oneDNN's memory.

The pullback of a mean over windows that are neither padded nor overlap is every cotangent ȳ / (kₕ k_w), repeated over
its window. PyTorch adds such entries one by one into a result of zeros. Here they are repeated along a row, and rows in
turn by a view, which what multiplies the result reads: 0.35 of the time with that product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..._onednn import onednn_is_on
from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layout, Layouts

_aten = torch.ops.aten
_MOST_CHANNELS = 4
_LEAST_SPREAD = 1 << 15  # entries that a pool's pullback makes; below, one call is quicker than several
_EXACT = frozenset({torch.float32, torch.float64})
_MEANS = frozenset({_aten.avg_pool2d_backward.default, _aten._adaptive_avg_pool2d_backward.default})
_VIEWS = frozenset({_aten.view.default, _aten._unsafe_view.default})


def with_quick_pullbacks(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls with pullbacks of convolutions and pools by what is quicker.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Returns:
        The calls.
    """
    images = onednn_is_on()  # else PyTorch takes that other op by itself
    users = _users(calls, results)
    products: dict[int, tuple[_Rows, int]] = {}  # by a product, and by the views before it: rows, and what they become
    found: list[ProgramCall] = []
    for call in calls:
        made = call.outputs[0] if call.outputs else None
        window = _window(call, layouts)
        if images and is_of_an_image(call, layouts):
            found.append(_by_products(call, layouts))
        elif images and _is_of_a_line(call, layouts):
            found += _by_products_of_rows(call, layouts, new_value)
        elif window is not None:
            rows = _Rows(call, window, layouts, new_value)
            found += rows.calls
            *read, product = _path(call, users) or (None,)
            if product is not None and rows.can_be_read_by(product, read[-1]):
                products |= dict.fromkeys([*read, product.outputs[0]], (rows, read[-1]))
            else:
                found += rows.repeated()
        elif made in products:
            rows, read = products[made]
            found += rows.times(call, read) if call.target is _aten.mul.Tensor else []
        else:
            found.append(call)
    return found


def _users(calls: Sequence[ProgramCall], results: Sequence[int]) -> dict[int, list[ProgramCall | None]]:
    """Return the calls that use each value, once for each place; None stands for the caller."""
    users: dict[int, list[ProgramCall | None]] = {index: [None] for index in results}
    for call in calls:
        for index in call.operands:
            users.setdefault(index, []).append(call)
    return users


def _path(call: ProgramCall, users: dict[int, list[ProgramCall | None]]) -> tuple[Any, ...] | None:
    """Return a result, its views, and the product that alone reads the last of them; None if others look at any."""
    read = [call.outputs[0] or 0]
    while True:
        user, *others = users.get(read[-1], [None])
        if user is None or others:
            return None
        if user.target is _aten.mul.Tensor and len(user.operands) == 2:
            return *read, user
        if user.target not in _VIEWS:
            return None
        read.append(user.outputs[0] or 0)


def is_plain(layout: Layout) -> bool:
    """Return whether a value lies row by row in the memory of a CPU."""  # noqa: DOC201
    return layout.device.type == "cpu" and layout.contiguous and not any(layout.twisted)


# ---- convolutions ----------------------------------------------------------------------------------------------------


def is_of_an_image(call: ProgramCall, layouts: Layouts) -> bool:
    """Return whether a call is the pullback of a convolution to few channels that products are quicker for."""  # noqa: DOC201
    return _is_of_few_channels(call, layouts, axes=2)


def _is_of_a_line(call: ProgramCall, layouts: Layouts) -> bool:
    return _is_of_few_channels(call, layouts, axes=1)


def _is_of_few_channels(call: ProgramCall, layouts: Layouts, *, axes: int) -> bool:
    if call.target is not _aten.convolution_backward.default or call.kwargs:
        return False
    cotangent, x, weight, _, stride, _, dilation, transposed, _, groups, wanted = call.args
    if transposed or groups != 1 or set(dilation) != {1} or list(wanted) != [True, False, False]:
        return False
    cotangents, weights = layouts[cotangent.index], layouts[weight.index]
    return (
        len(weights.shape) == len(stride) + 2 == axes + 2
        and layouts[x.index].shape[1] <= _MOST_CHANNELS
        and cotangents.shape[0] >= torch.get_num_threads()  # each of which takes whole samples
        and all(is_plain(layout) and layout.dtype is torch.float32 for layout in (cotangents, weights))
        and layouts[call.outputs[0] or 0].contiguous
    )


def _by_products(call: ProgramCall, layouts: Layouts) -> ProgramCall:
    cotangent, x, weight, _, stride, padding, *_ = call.args
    kernel = list(layouts[weight.index].shape[2:])
    arguments = (cotangent, x, weight, kernel, list(stride), list(padding), [True, False, False])
    return ProgramCall(_aten._slow_conv2d_backward.output_mask, arguments, {}, call.outputs, call.segment)


def _by_products_of_rows(call: ProgramCall, layouts: Layouts, new_value: Callable[[], int]) -> list[ProgramCall]:
    """Return the calls that take each line for an image of one row."""
    cotangent, x, weight, _, stride, padding, *_ = call.args
    found: list[ProgramCall] = []

    def made(target: Any, *args: Any) -> Ref:
        found.append(ProgramCall(target, args, {}, [new_value()], call.segment))
        layouts.add(found[-1])
        return Ref(found[-1].outputs[0] or 0)

    rows = [made(_aten.unsqueeze.default, value, 2) for value in (cotangent, x, weight)]
    kernel = [1, layouts[weight.index].shape[2]]
    image, before = new_value(), layouts[call.outputs[0] or 0]
    arguments = (*rows, kernel, [1, *stride], [0, *padding], [True, False, False])
    layouts[image] = before._replace(
        shape=torch.Size([*before.shape[:2], 1, before.shape[2]]), stride=(*before.stride[:2], before.shape[2], 1)
    )
    outputs = [image, *call.outputs[1:]]
    found.append(ProgramCall(_aten._slow_conv2d_backward.output_mask, arguments, {}, outputs, call.segment))
    found.append(ProgramCall(_aten.squeeze.dim, (Ref(image), 2), {}, call.outputs[:1], call.segment))
    return found


# ---- pools -----------------------------------------------------------------------------------------------------------


class _Window(NamedTuple):
    """The windows of a pool, side by side.

    Attributes:
        height: Of a window.
        width: Of a window.
        divisor: What the sum over a window is divided by.
    """

    height: int
    width: int
    divisor: int


def _window(call: ProgramCall, layouts: Layouts) -> _Window | None:
    """Return the windows of a mean whose large pullback a call is; None for any other call."""
    if call.target not in _MEANS or call.kwargs:
        return None
    before, after = layouts[call.operands[0]], layouts[call.outputs[0] or 0]
    if not is_plain(before) or before.dtype not in _EXACT or not after.contiguous or after.numel < _LEAST_SPREAD:
        return None
    height, width = (size // parts for size, parts in zip(after.shape[-2:], before.shape[-2:], strict=True))
    if after.shape[-2:] != (before.shape[-2] * height, before.shape[-1] * width):
        return None
    if call.target is _aten._adaptive_avg_pool2d_backward.default:
        return _Window(height, width, height * width)
    _, _, kernel, stride, padding, _, _, divisor = call.args
    sides = [(sizes[0], sizes[-1]) for sizes in (kernel, stride or kernel)]
    return (
        _Window(height, width, divisor or height * width)
        if sides == [(height, width)] * 2 and not any(padding)
        else None
    )


class _Rows:
    """The pullback of a pool: cotangents divided and repeated along rows, which are yet to be repeated themselves.

    Args:
        call: The call of PyTorch's op.
        window: Its windows.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Attributes:
        calls: The calls that make the rows.
    """

    def __init__(self, call: ProgramCall, window: _Window, layouts: Layouts, new_value: Callable[[], int]) -> None:
        self._pullback, self._height, self._layouts, self._new_value = call, window.height, layouts, new_value
        self._length = layouts[call.outputs[0] or 0].shape[-1]
        line = self._line(call)
        value = line.then(_aten.div.Tensor, call.operands[0], float(window.divisor))
        if window.width > 1:
            wide = line.then(_aten.unsqueeze.default, value, -1)
            wide = line.then(_aten.expand.default, wide, [*layouts[value].shape, window.width])
            value = line.then(_aten.clone.default, wide, memory_format=torch.contiguous_format)
        self._rows, self._count = value, layouts[value].numel // self._length
        self.calls = line.calls

    def repeated(self) -> list[ProgramCall]:
        """Return the calls that make the pullback itself."""
        line, value = self._line(self._pullback), self._rows
        if self._height > 1:
            value = line.then(_aten.view.default, value, [self._count, 1, self._length])
            value = line.then(_aten.expand.default, value, [self._count, self._height, self._length])
            value = line.then(_aten.clone.default, value, memory_format=torch.contiguous_format)
        return line.ended(value)

    def can_be_read_by(self, product: ProgramCall, pullback: int) -> bool:
        """Return whether a product of the pullback, seen as that value, may read each row several times instead."""
        factor, made = self._layouts[_other(product, pullback)], self._layouts[product.outputs[0] or 0]
        if not (is_plain(factor) and is_plain(made)) or self._layouts[pullback].shape != made.shape:
            return False
        first = next((place for place, size in enumerate(factor.shape) if size != 1), len(factor.shape))
        shape = factor.shape[first:]
        ends = made.shape[len(made.shape) - len(shape) :] == shape
        return ends and factor.numel % (self._height * self._length) == 0

    def times(self, product: ProgramCall, pullback: int) -> list[ProgramCall]:
        """Return the calls that make a product of the pullback, seen as that value."""
        line, factor = self._line(product), _other(product, pullback)
        images = self._layouts[factor].numel // (self._height * self._length)  # rows of windows, for each of which ...
        value = line.then(_aten.view.default, self._rows, [self._count // images, images, 1, self._length])
        factor = line.then(_aten.view.default, factor, [images, self._height, self._length])
        return line.ended(line.then(_aten.mul.Tensor, value, Ref(factor)))

    def _line(self, call: ProgramCall) -> _Line:
        return _Line(call, self._layouts, self._new_value)


class _Line:
    """Calls one after another in the place of one.

    Args:
        call: The call in whose place they are.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Attributes:
        calls: They.
    """

    def __init__(self, call: ProgramCall, layouts: Layouts, new_value: Callable[[], int]) -> None:
        self._call, self._layouts, self._new_value = call, layouts, new_value
        self.calls: list[ProgramCall] = []

    def then(self, target: Any, value: int, *args: Any, **kwargs: Any) -> int:
        """Add a call of a value, and return the value that it makes."""
        made = self._new_value()
        self.calls.append(ProgramCall(target, (Ref(value), *args), kwargs, [made], self._call.segment))
        self._layouts.add(self.calls[-1])
        return made

    def ended(self, value: int) -> list[ProgramCall]:
        """Return the calls and a last one, by which a value becomes what the call made."""
        made = self._call.outputs[0] or 0
        shape = list(self._layouts[made].shape)
        return [*self.calls, ProgramCall(_aten.view.default, (Ref(value), shape), {}, [made], self._call.segment)]


def _other(product: ProgramCall, factor: int) -> int:
    first, second = product.operands
    return second if first == factor else first
