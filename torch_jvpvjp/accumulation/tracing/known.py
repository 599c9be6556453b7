"""Whole numbers that structures are made of: indices that depend on nothing but tensors from outside.

Which entry `x[index]` reads decides the structure of its Jacobian, so a recording looks at the values of such an
index. They are compared in every call: after a write into them the function is recorded again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from .._torch import wraps_transform
from ..rules.indexed import READS, WRITES
from ..rules.indexing import unrecorded
from ..rules.losses import OF_CLASSES, is_of_each_sample
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
    numbers = Numbers(tape, varying)
    wanted: dict[int, Tensor] = {}
    with unrecorded():
        for op in tape.ops:
            if op.active and _is_decided_by_numbers(op):
                for index in set(op.operands) - set(op.active):
                    number = numbers.value(index)
                    if number is not None:
                        wanted[index] = number.cpu()
    used = numbers.behind(wanted)
    if sum(tensor.numel() for tensor in (*wanted.values(), *used)) > MOST_NUMBERS:
        return {}, []
    return wanted, used


def _is_decided_by_numbers(op: TapeOp) -> bool:
    """Return whether whole numbers among the operands of an op decide the structure of its Jacobian."""
    return op.target in READS | WRITES or (op.target in OF_CLASSES and is_of_each_sample(op.args[3]))


class Numbers:
    """The whole numbers of a tape that depend on nothing but tensors from outside, whose values are looked at.

    Args:
        tape: The tape, which may still grow.
        varying: Tensors from outside that are others in each call.
    """

    def __init__(self, tape: Tape, varying: Sequence[Tensor]) -> None:
        self._tape, self._other = tape, {id(tensor) for tensor in varying}
        self._makers: dict[int, TapeOp] = {}
        self._seen = 0  # ops of the tape
        self._found: dict[int, Tensor | None] = {}
        self._sources: dict[int, Tensor] = {}

    def read(self, index: int) -> int | bool | None:
        """Return the one number that a value holds, which is looked at from now on; None if it is not known."""
        value = self.all(index)
        with unrecorded():
            return None if value is None else value.item()  # pyright: ignore[reportReturnType] (never of fractions)

    def all(self, index: int) -> Tensor | None:
        """Return the numbers that a value holds, which are looked at from now on; None if they are not known."""
        with unrecorded():
            value = self.value(index)
            behind = [] if value is None else self.behind([index])
            if sum(tensor.numel() for tensor in behind) > MOST_NUMBERS:
                return None
            self._tape.looked_at += behind
            return value

    def value(self, index: int) -> Tensor | None:
        """Return the numbers that a value holds; None if they are not known."""
        if index not in self._found:
            self._found[index] = None
            meta, maker = self._tape.metas[index], self._maker(index)
            if meta.dtype.is_floating_point or meta.dtype.is_complex or index == self._tape.source:
                return None
            if index in self._tape.constants:
                constant = self._tape.constants[index]
                if id(constant) not in self._other and not wraps_transform(constant):
                    self._found[index] = constant.detach()
                    self._sources[index] = constant
            elif maker is not None:
                self._found[index] = _computed(maker, index, self.value)
        return self._found[index]

    def behind(self, values: Iterable[int]) -> list[Tensor]:
        """Return the tensors from outside that some values are made of."""
        behind = set(values)
        stack = list(behind)
        while stack:
            op = self._maker(stack.pop())
            for index in op.operands if op is not None else ():
                if index not in behind:
                    behind.add(index)
                    stack.append(index)
        return [tensor for index, tensor in self._sources.items() if index in behind]

    def _maker(self, index: int) -> TapeOp | None:
        for op in self._tape.ops[self._seen :]:
            self._makers.update((output, op) for output in op.outputs if output is not None)
        self._seen = len(self._tape.ops)
        return self._makers.get(index)


def _computed(op: TapeOp, index: int, value: Callable[[int], Tensor | None]) -> Tensor | None:
    """Return a result of an op whose operands are all known; None if one is not, or it is another in each call."""
    if op.opaque or op.draws or any(value(operand) is None for operand in op.operands):
        return None
    return op.call(lambda operand: _present(value(operand)))[op.outputs.index(index)]


def _present(value: Tensor | None) -> Tensor:
    assert value is not None, "a value was used that is not known"
    return value


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
