"""What a function looks at on its way: asked anew in every call.

A recording goes the way that f went where it was recorded, and before it is used what decided that is computed again:
the conditions, and where values were not to be seen, the checks of `torch.distributions`, which are taken to pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from .tape import Tape, TapeOp


def checks_of(ops: Sequence[TapeOp], checked: Sequence[int]) -> list[TapeOp]:
    """Return those of some ops that some values are made by, in order."""
    needed, kept = set(checked), []
    for op in reversed(ops):
        if not needed.isdisjoint(op.outputs):
            needed.update(op.operands)
            kept.append(op)
    return kept[::-1]


def values_of(tape: Tape, wanted: Sequence[int], x: Tensor, constants: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """Return some of what a function looks at.

    Args:
        tape: What was recorded of it.
        wanted: What was checked, or its conditions.
        x: The point.
        constants: The tensors from outside.

    Returns:
        The values.
    """
    values: dict[int, Tensor] = {**constants, tape.source: x}
    for op in tape.checks:
        for index, result in zip(op.outputs, op.call(values.__getitem__), strict=True):
            if index is not None and result is not None:
                values[index] = result
    return tuple(values[index] for index in wanted)
