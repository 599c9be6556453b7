"""Convolutions of images that oneDNN makes on a CPU, of a sweep or of the primal."""

from __future__ import annotations

import torch

from ..calls import ProgramCall
from .layout import Layouts
from .quick_pullbacks import is_plain

FORWARD, BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


def is_of_a_sweep(call: ProgramCall, layouts: Layouts) -> bool:
    """Return whether a call is a convolution of tangents, or of adjoints to its input."""  # noqa: DOC201
    if not _is_of_images(call, layouts):
        return False
    if call.target is BACKWARD:
        return list(call.args[-1]) == [True, False, False]
    return call.args[2] is None and layouts[call.operands[0]].shape[0] > 1  # else it is one of the primal


def is_of_the_primal(call: ProgramCall, layouts: Layouts) -> bool:
    """Return whether a call is a convolution of values, with a bias or of one image."""  # noqa: DOC201
    return call.target is FORWARD and _is_of_images(call, layouts) and not is_of_a_sweep(call, layouts)


def _is_of_images(call: ProgramCall, layouts: Layouts) -> bool:
    if call.target not in {FORWARD, BACKWARD} or call.kwargs:
        return False
    forward = call.target is FORWARD
    stride, groups = call.args[3 if forward else 4], call.args[8 if forward else 9]
    given = [layouts[index] for index in (call.operands[0], weight_of(call))]
    return groups == 1 and len(stride) == 2 and all(is_plain(one) and one.dtype is torch.float32 for one in given)


def weight_of(call: ProgramCall) -> int:
    """Return the weight of a convolution, or of the pullback of one."""
    return call.args[1 if call.target is FORWARD else 2].index


def multiplications(call: ProgramCall, layouts: Layouts) -> int:
    """Return how often a convolution, or the pullback of one, multiplies."""
    swept, weight, made = (layouts[index] for index in (call.operands[0], weight_of(call), call.outputs[0] or 0))
    transposed = call.args[6 if call.target is FORWARD else 7]
    # Each entry of the side that an entry of the other is a sum over meets the weights of one channel of it.
    one = made if transposed == (call.target is BACKWARD) else swept
    return one.numel * weight.numel // max(1, weight.shape[0])


def as_a_convolution(call: ProgramCall, layouts: Layouts) -> ProgramCall:
    """Return the pullback of a convolution to its input as a convolution, transposed if that was not, and vice versa.

    The kernel is the same; its input is not asked for the shape alone, nor memory for what nothing is written into.

    Args:
        call: A convolution of images, or such a pullback.
        layouts: How each value lies in memory.

    Returns:
        The call; itself where it is one, or where PyTorch would take another kernel.
    """
    if call.target is FORWARD:
        return call
    cotangent, x, weight, _, stride, padding, dilation, transposed, _, groups, _ = call.args
    if not len(stride) == len(padding) == len(dilation) == 2:
        return call
    beyond = [0, 0]
    sizes = [layouts[value.index].shape[2:] for value in (x, cotangent, weight)]
    for axis, (size, swept, taps) in enumerate(zip(*sizes, strict=True)):
        reach = dilation[axis] * (taps - 1)
        if transposed:  # with dilation, what it has added at the end may be more than a step, which would make a pixel
            if size != (swept + 2 * padding[axis] - reach - 1) // stride[axis] + 1:
                return call
            continue
        beyond[axis] = size - ((swept - 1) * stride[axis] - 2 * padding[axis] + reach + 1)
        if padding[axis] > reach or not 0 <= beyond[axis] < stride[axis]:
            return call
    arguments = (cotangent, weight, None, stride, padding, dilation, not transposed, beyond, groups)
    return ProgramCall(FORWARD, arguments, {}, call.outputs[:1], call.segment)


def swept_axis(call: ProgramCall) -> int:
    """Return the axis of the weight along which a convolution, or the pullback of one, sums over channels."""
    return 1 if call.args[6 if call.target is FORWARD else 7] == (call.target is BACKWARD) else 0
