"""Calls of values that hold what others held, and lie in memory otherwise."""

from __future__ import annotations

import torch

from ..calls import ProgramCall
from .layout import Layouts

_aten = torch.ops.aten
_BY_MEMORY = frozenset({_aten.as_strided.default, _aten.as_strided_scatter.default, _aten.view.dtype})


def looks_at_memory(call: ProgramCall) -> bool:
    """Return whether what a call gives depends on how a tensor lies."""
    return call.target in _BY_MEMORY


def laid_out(call: ProgramCall, layouts: Layouts, moved: set[int]) -> ProgramCall:
    """A call of values that lie otherwise than they did.

    Args:
        call: The call, which does not look at memory.
        layouts: How each value lies; those of the results are put right.
        moved: Values that lie otherwise, to which the results that do are added.

    Returns:
        The call; a view that the memory of its operand does not allow any longer is a reshape.

    Raises:
        RuntimeError: If it does not run on tensors without data.
    """
    before = {index: layouts[index] for index in call.outputs if index is not None}
    try:
        layouts.add(call)
    except RuntimeError:
        if call.target is not _aten.view.default:
            raise
        call = ProgramCall(_aten.reshape.default, call.args, call.kwargs, call.outputs, call.segment)
        layouts.add(call)
    moved.update(index for index, layout in before.items() if layouts[index] != layout)
    return call
