"""What a function looks at on its way: asked anew in every call.

A recording goes the way that f went where it was recorded, and before it is used what decided that is computed again:
the conditions, and where values were not to be seen, the checks of `torch.distributions` and of factorisations, which
are taken to pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .tape import Tape, TapeOp

_aten = torch.ops.aten
RAISING = {
    _aten._linalg_check_errors.default: _aten.eq.Scalar,
    _aten._assert_async.default: _aten.ne.Scalar,
    _aten._assert_async.msg: _aten.ne.Scalar,
}
"""Ops that raise for what their argument holds and return nothing, with how it compares to 0 where they do not."""


def inspected(tape: Tape) -> list[int]:
    """Return the values that every call looks at."""
    return [*tape.checked, *(index for op in tape.raising.values() for index in op.operands), *tape.conditions]


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
        _run(op, values)
    return tuple(values[index] for index in wanted)


def runs_unseen(tape: Tape, x: Tensor, constants: Mapping[int, Tensor]) -> bool:
    """Return whether no op raises where what f looks at is not to be seen: PyTorch's own checks see it under `vmap`."""
    values: dict[int, Tensor] = {**constants, tape.source: x}
    try:
        for op in tape.checks:
            _run(op, values)
        for op in tape.raising.values():
            op.call(values.__getitem__)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return False
    return True


def goes_the_same_way(tape: Tape, x: Tensor, constants: Mapping[int, Tensor]) -> bool:
    """Return whether all conditions are what they were, with no op run that comes after one that is not."""
    values: dict[int, Tensor] = {**constants, tape.source: x}
    expected = dict(zip(tape.conditions, tape.outcome, strict=True))
    if not all(torch.equal(values[index], expected[index]) for index in expected.keys() & values.keys()):
        return False
    for op in tape.checks:
        _run(op, values)
        if not all(torch.equal(values[index], expected[index]) for index in op.outputs if index in expected):
            return False
    return True


def looks_up(tape: Tape) -> bool:
    """Return whether an op reads or writes at indices that are made on the way."""
    return any(
        any(name in op.name for name in _AT_INDICES)
        and any(i not in tape.constants and not tape.metas[i].dtype.is_floating_point for i in op.operands)
        for op in (*tape.ops, *tape.checks)
    )


_AT_INDICES = ("gather", "index", "take", "embedding", "scatter", "nll_loss", "one_hot")


def _run(op: TapeOp, values: dict[int, Tensor]) -> None:
    for index, result in zip(op.outputs, op.call(values.__getitem__), strict=True):
        if index is not None and result is not None:
            values[index] = result
