"""What a strided convolution of single pixels is pulled back to, added to adjoints that reach every pixel.

Such is the shortcut of a residual block that halves its images: of s · s pixels only one has a cotangent of it,

    x̄[s p] = z̄[s p] + Wᵀ ȳ[p],        x̄ = z̄ elsewhere.

One product makes what is added, in half to three quarters of the time: nothing is spread over images of zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..calls import ProgramCall
from ..tracing.tape import Ref
from .convolutions import FORWARD
from .images import Images

_aten = torch.ops.aten


class AtStrides(NamedTuple):
    """A transposed convolution of single pixels.

    Attributes:
        swept: The images that it is of.
        weight: Its weight.
        steps: Between the pixels that it makes.
    """

    swept: int
    weight: int
    steps: tuple[int, int]


def at_strides(call: ProgramCall, sweep: Images) -> AtStrides | None:
    """Return what a convolution is as such; None for another one."""  # noqa: DOC201
    if call.target is not FORWARD:
        return None
    swept, weight, bias, stride, padding, _, transposed, *_ = call.args
    single = sweep.layouts[weight.index].shape[2:].numel() == 1 and not any(padding)
    if not transposed or bias is not None or not single or max(stride) < 2:  # noqa: PLR2004 (steps of one spread nothing)
        return None
    return AtStrides(swept.index, weight.index, (stride[0], stride[1]))


def added_at_strides(sweep: Images, one: AtStrides, into: int, segment: int) -> int:
    """Return the sum of such a convolution and of images.

    Args:
        sweep: What the calls are added to.
        one: The convolution.
        into: The images.
        segment: The task that the calls belong to.
    """  # noqa: DOC201
    count, channels, *sides = sweep.layouts[one.swept].shape
    made = sweep.layouts[one.weight].shape[1]
    rows = sweep.run(segment, _aten.permute.default, Ref(one.swept), [0, 2, 3, 1])
    rows = sweep.run(segment, _aten.view.default, Ref(rows), [count * sides[0] * sides[1], channels])
    matrix = sweep.run(segment, _aten.view.default, Ref(one.weight), [channels, made])
    product = sweep.run(segment, _aten.mm.default, Ref(rows), Ref(matrix))
    product = sweep.run(segment, _aten.view.default, Ref(product), [count, *sides, made])
    product = sweep.run(segment, _aten.permute.default, Ref(product), [0, 3, 1, 2])
    image, pixel, *steps = sweep.layouts[into].stride
    stride = [image, pixel, *(step * by for step, by in zip(steps, one.steps, strict=True))]
    shape = [count, made, *sides]
    part = sweep.run(segment, _aten.as_strided.default, Ref(into), shape, stride, 0)
    part = sweep.run(segment, _aten.add.Tensor, Ref(part), Ref(product))
    return sweep.run(segment, _aten.as_strided_scatter.default, Ref(into), Ref(part), shape, stride, 0)
