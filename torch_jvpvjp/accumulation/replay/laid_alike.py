"""Constants laid out as what they meet entry by entry, once, in place of read across memory in each run.

    x + c,   x transposed in memory and c row by row    becomes    x + c′,   c′ with the entries of c, laid out as x.

Such a c is the identity that the tangents of a residual layer begin with. A sum of two (2304, 96) takes a ninth of the
time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from ..calls import ProgramCall
from .layout import Layout, Layouts, layout_of

_aten = torch.ops.aten
_LEAST = 1 << 12  # entries; of fewer, how they lie makes no difference


def with_constants_laid_alike(
    calls: Sequence[ProgramCall],
    fixed: Mapping[int, Tensor],
    own: Collection[int],
    layouts: Layouts,
    new_value: Callable[[], int],
) -> tuple[list[ProgramCall], dict[int, Tensor]]:
    """Return calls and constants, these laid out as the other operand of a pointwise op that lies otherwise.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        fixed: Values that are the same in every run.
        own: Which of these the program has made, so that nobody else writes into them.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
    """
    made = {index for call in calls for index in call.outputs}
    relaid: dict[tuple[int, tuple[int, ...]], int] = {}
    every, found = dict(fixed), list[ProgramCall]()
    for call in calls:
        if torch.Tag.pointwise not in call.target.tags or len(call.distinct) != 2 or len(call.outputs) != 1:
            found.append(call)
            continue
        for constant, other in (call.distinct, call.distinct[::-1]):
            out = layouts[call.outputs[0] or 0]
            if constant not in own or other not in made or not _differ(layouts[constant], layouts[other], out):
                continue
            key = constant, out.stride
            if key not in relaid:
                relaid[key] = number = new_value()
                before = every[constant]
                every[number] = torch.empty_strided(out.shape, out.stride, dtype=before.dtype, device=before.device)
                every[number].copy_(before)
                layouts[number] = layout_of(every[number])
            again = call.renamed({constant: relaid[key]})
            call = again if layouts.of(again) == [out] else call
            break
        found.append(call)
    return found, every


def _differ(constant: Layout, other: Layout, out: Layout) -> bool:
    """Return whether a constant lies otherwise than what it meets, which fills its memory as the result does."""
    whole = out.numel >= _LEAST and not out.repeats and not any(constant.twisted)
    same = constant.shape == other.shape == out.shape and other.stride == out.stride
    last = sum((size - 1) * stride for size, stride in zip(out.shape, out.stride, strict=True))
    return whole and same and constant.stride != out.stride and last + 1 == out.numel
