"""The pullback of a convolution to images of a few channels, from cotangents with channels innermost.

One product makes what each tap of the kernel adds, and x̄ is the sum of what overlaps:

    c[i, j] = W[:, :, i, j]ᵀ ȳ,        x̄[p, q] = Σᵢ Σⱼ c[i, j][p + a - i, q + b - j],        (a, b) the padding.

PyTorch's `col2im` adds entry by entry. By steps of one pixel, whole rows of pixels are added instead, first for each i,
then for each j: two thirds of the time with the product.
"""

from __future__ import annotations

import torch

from ..calls import ProgramCall
from ..tracing.tape import Ref
from .images import Images

_aten = torch.ops.aten
_LEAST_SHIFTED = 1 << 17  # entries that the taps add; below, one call is quicker than several
_MOST = 1.25  # taps for each channel: they are copied once, with zeros around them, when the cotangents are gone


def pulled_to_few_channels(sweep: Images, call: ProgramCall, images: int) -> None:
    """Add the calls that a pullback becomes.

    Args:
        sweep: What they are added to.
        call: The pullback, of a convolution without groups or dilation.
        images: The cotangents with channels innermost.
    """
    _, _, weight, _, stride, padding, dilation, *_ = call.args
    _, few, *kernel = sweep.layouts[weight.index].shape
    count, channels, *sides = sweep.layouts[images].shape
    shape, taps, segment = sweep.layouts[call.outputs[0] or 0].shape, kernel[0] * kernel[1], call.segment
    around = [size - 1 - before for size, before in zip(kernel, padding, strict=True)]
    added = count * taps * few * sides[0] * sides[1]
    shifted = set(stride) == {1} and min(around) >= 0 and added >= _LEAST_SHIFTED and taps * few <= _MOST * channels
    pixels = sweep.run(segment, _aten.view.default, Ref(images), [count, channels, sides[0] * sides[1]])
    if shifted:  # a matrix of taps by channels, each a row for itself
        matrix = sweep.run(segment, _aten.permute.default, weight, [2, 3, 1, 0])
        matrix = sweep.run(segment, _aten.clone.default, Ref(matrix), memory_format=torch.contiguous_format)
        matrix = sweep.run(segment, _aten.view.default, Ref(matrix), [1, taps * few, channels])
    else:
        matrix = sweep.run(segment, _aten.view.default, weight, [1, channels, taps * few])
        matrix = sweep.run(segment, _aten.transpose.int, Ref(matrix), 1, 2)
    matrix = sweep.run(segment, _aten.expand.default, Ref(matrix), [count, taps * few, channels])
    columns = sweep.run(segment, _aten.bmm.default, Ref(matrix), Ref(pixels))
    if shifted:
        found = sweep.run(segment, _aten.view.default, Ref(columns), [count, kernel[0], kernel[1] * few, *sides])
        found = _summed(sweep, found, around[0], 3, segment)
        found = sweep.run(segment, _aten.view.default, Ref(found), [count, kernel[1], few, shape[2], sides[1]])
        found = _summed(sweep, found, around[1], 4, segment)
        last = ProgramCall(_aten.view.default, (Ref(found), list(shape)), {}, call.outputs[:1], segment)
    else:
        arguments = (Ref(columns), list(shape[2:]), list(kernel), list(dilation), list(padding), list(stride))
        last = ProgramCall(_aten.col2im.default, arguments, {}, call.outputs[:1], segment)
    sweep.found.append(last)


def _summed(sweep: Images, terms: int, around: int, axis: int, segment: int) -> int:
    """Return the sum over dimension 1, the i-th term i entries further on along an axis with zeros around it."""
    shape = sweep.layouts[terms].shape
    size, length = shape[1], shape[axis] + 2 * around - shape[1] + 1
    if around:
        sides = [*shape[:axis], around, *shape[axis + 1 :]]
        kwargs = {"dtype": torch.float32, "device": torch.device("cpu")}
        zeros = Ref(sweep.run(segment, _aten.zeros.default, sides, **kwargs))
        terms = sweep.run(segment, _aten.cat.default, [zeros, Ref(terms), zeros], axis)
    total: int | None = None
    for at in range(size):
        term = sweep.run(segment, _aten.select.int, Ref(terms), 1, at)
        term = sweep.run(segment, _aten.slice.Tensor, Ref(term), axis - 1, size - 1 - at, size - 1 - at + length)
        total = term if total is None else sweep.run(segment, _aten.add.Tensor, Ref(total), Ref(term))
    assert total is not None, "a kernel has at least one tap"
    return total
