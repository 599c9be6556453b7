"""Checks of arguments that a function makes on its way, as `torch.distributions` does: asked anew in every call.

Which way a function goes must not depend on values, but for a check that raises: a recording goes the way of what
passed, and before it is used what was checked is computed again.
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


def what_is_checked(tape: Tape, x: Tensor, constants: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    """Return what a function raises for unless it is true.

    Args:
        tape: What was recorded of it.
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
    return tuple(values[index] for index in tape.checked)
