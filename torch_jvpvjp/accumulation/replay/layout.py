"""How the values of a program lie in memory, which is the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..calls import ProgramCall
from ..tracing.tape import fill, flat_outputs


class Layout(NamedTuple):
    """What does not depend on the entries of a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    twisted: tuple[bool, bool] = (False, False)  # read as its conjugate, as its negative

    @property
    def numel(self) -> int:
        """The number of entries."""
        return self.shape.numel()

    @property
    def contiguous(self) -> bool:
        """Whether the entries follow one another, row by row; a step along an axis of one entry is never taken."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1:
                if stride != step:
                    return False
                step *= size
        return True

    @property
    def key(self) -> tuple[Any, ...]:
        """What two views of one memory share if they hold the same entries in the same order."""
        strides = tuple(0 if size == 1 else stride for size, stride in zip(self.shape, self.stride, strict=True))
        return self.shape, strides, self.offset, self.dtype, self.twisted

    @property
    def repeats(self) -> bool:
        """Whether several entries stand at one place."""
        return any(size > 1 and stride == 0 for size, stride in zip(self.shape, self.stride, strict=True))

    def empty(self) -> Tensor:
        """Return a tensor without memory that lies so."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


def layout_of(tensor: Tensor) -> Layout:
    """Return how a strided tensor lies in memory."""
    twisted = tensor.is_conj(), tensor.is_neg()
    return Layout(tensor.shape, tensor.stride(), int(tensor.storage_offset()), tensor.dtype, tensor.device, twisted)


class Layouts(dict[int, Layout]):
    """The layouts of the values of a program, by their numbers; a call that is added adds those of its results."""

    def shapes(self) -> Mapping[int, torch.Size]:
        """Return the shapes alone."""
        return {index: layout.shape for index, layout in self.items()}

    def add(self, call: ProgramCall) -> None:
        """Work out, without memory, how the results of a call lie.

        Args:
            call: A call of known values.

        Raises:
            RuntimeError: If it does not run, as a view that the memory of a value does not allow.
        """  # noqa: DOC502 (raised by the op)
        device = next((self[index].device for index in call.operands), torch.device("cpu"))
        args, kwargs = (fill(tree, lambda index: self[index].empty()) for tree in (call.args, dict(call.kwargs)))
        for index, made in zip(call.outputs, flat_outputs(call.target(*args, **kwargs)), strict=True):
            if index is not None and made is not None:
                self[index] = layout_of(made)._replace(device=device)
