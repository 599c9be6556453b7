"""Whole numbers that structures are made of: indices that depend on nothing but tensors from outside.

Which entry `x[index]` reads decides the structure of its Jacobian, so a recording looks at the values of such an
index. They are compared in every call: after a write into them the function is recorded again.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np
import torch
from torch import Tensor

from .._torch import wraps_transform
from ..rules.indexed import READS, WRITES
from ..rules.indexing import unrecorded
from .tape import Tape, TapeOp

MOST_NUMBERS = 2_000_000  # in all; more are compared more slowly than they save


def known_numbers(tape: Tape, varying: Sequence[Tensor]) -> tuple[dict[int, Tensor], list[Tensor]]:
    """The indices of a tape that are known before x is.

    Args:
        tape: The tape.
        varying: Tensors from outside that are others in each call, as the further arguments of f are.

    Returns:
        The values of indices on the CPU, by their number, and the tensors from outside that they come from.
    """
    maker = {output: op for op in tape.ops for output in op.outputs if output is not None}
    other = {id(tensor) for tensor in varying}
    found: dict[int, Tensor | None] = {}
    sources: dict[int, Tensor] = {}

    def value(index: int) -> Tensor | None:
        if index not in found:
            found[index] = None
            meta = tape.metas[index]
            if meta.dtype.is_floating_point or meta.dtype.is_complex or index == tape.source:
                return None
            if index in tape.constants:
                constant = tape.constants[index]
                if id(constant) not in other and not wraps_transform(constant):
                    found[index] = constant.detach()
                    sources[index] = constant
            elif index in maker:
                found[index] = _computed(maker[index], index, value)
        return found[index]

    wanted: dict[int, Tensor] = {}
    with unrecorded():
        for op in tape.ops:
            if op.active and op.target in READS | WRITES:
                for index in set(op.operands) - set(op.active):
                    number = value(index)
                    if number is not None:
                        wanted[index] = number.cpu()
    needed = _behind(tape, wanted, maker)
    used = [tensor for index, tensor in sources.items() if index in needed]
    if sum(tensor.numel() for tensor in (*wanted.values(), *used)) > MOST_NUMBERS:
        return {}, []
    return wanted, used


def _computed(op: TapeOp, index: int, value: Callable[[int], Tensor | None]) -> Tensor | None:
    """Return a result of an op whose operands are all known; None if one is not, or it is another in each call."""
    if op.opaque or op.draws or any(value(operand) is None for operand in op.operands):
        return None
    return op.call(lambda operand: _present(value(operand)))[op.outputs.index(index)]


def _present(value: Tensor | None) -> Tensor:
    assert value is not None, "a value was used that is not known"
    return value


def _behind(tape: Tape, wanted: Container[int], maker: dict[int, TapeOp]) -> set[int]:
    """Return the values that some values are made of, and these."""
    behind = {index for index in range(len(tape.metas)) if index in wanted}
    stack = list(behind)
    while stack:
        op = maker.get(stack.pop())
        for index in op.operands if op is not None else ():
            if index not in behind:
                behind.add(index)
                stack.append(index)
    return behind


class Unchanged:
    """What tells whether some tensors of whole numbers hold what they held; on the CPU by a look at their memory."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        with unrecorded():
            self._here = [(tensor, tensor.data_ptr(), tensor.detach().numpy()) for tensor in tensors if _on_cpu(tensor)]
            self._copies = [view.copy() for _, _, view in self._here]
            self._there = [(tensor, tensor.detach().clone()) for tensor in tensors if not _on_cpu(tensor)]

    def __call__(self) -> bool:
        """Return whether they do."""
        for (tensor, place, view), copy in zip(self._here, self._copies, strict=True):
            if tensor.data_ptr() != place or not np.array_equal(view, copy):
                return False
        if not self._there:
            return True
        with unrecorded():
            return all(torch.equal(tensor, copy) for tensor, copy in self._there)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
