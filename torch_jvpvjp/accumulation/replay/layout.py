"""How the values of a program lie in memory, which is the same in every run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._torch import outside_modes
from ..calls import ProgramCall
from ..tracing.tape import Ref, flat_outputs


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
    def bytes_on_cpu(self) -> int:
        """The bytes of main memory that the entries take; 0 on other devices."""
        return self.numel * self.dtype.itemsize if self.device.type == "cpu" else 0

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
        if not self.offset:
            return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")
        last = sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True) if size)
        whole = torch.empty(self.offset + last + 1, dtype=self.dtype, device="meta")
        return whole.as_strided(self.shape, self.stride, self.offset)


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
        for index, layout in zip(call.outputs, self.of(call), strict=True):
            if index is not None and layout is not None:
                self[index] = layout

    def of(self, call: ProgramCall) -> list[Layout | None]:
        """How the results of a call lie.

        Args:
            call: A call of known values.

        Returns:
            The layouts; None for what is no tensor.

        Raises:
            RuntimeError: If it does not run, as a view that the memory of a value does not allow.
        """  # noqa: DOC502 (raised by the op)
        device = next((self[index].device for index in call.operands), torch.device("cpu"))
        frozen = _frozen((list(call.args), dict(call.kwargs)), self)
        try:
            found = _layouts_made(call.target, frozen)
        except TypeError:  # an argument that has no hash
            found = _layouts_made.__wrapped__(call.target, frozen)
        return [None if layout is None else layout._replace(device=device) for layout in found]


class _Frozen(NamedTuple):
    """A part of the arguments of a call, in a form that can be looked up."""

    kind: Any  # the type; of a number too, since 1, 1.0 and True are equal
    value: Any


def _frozen(tree: Any, layouts: Mapping[int, Layout]) -> Any:
    """Return arguments with layouts in the place of values."""
    if isinstance(tree, Ref):
        return layouts[tree.index]
    if isinstance(tree, (tuple, list)):
        return _Frozen(type(tree), tuple(_frozen(leaf, layouts) for leaf in tree))
    if isinstance(tree, dict):
        return _Frozen(dict, tuple((key, _frozen(leaf, layouts)) for key, leaf in tree.items()))
    return _Frozen(type(tree), tree)


def _thawed(tree: Any) -> Any:
    """Return the arguments, with tensors without memory in the place of layouts."""
    if isinstance(tree, Layout):
        return tree.empty()
    kind, value = tree
    if kind is dict:
        return {key: _thawed(leaf) for key, leaf in value}
    return kind(map(_thawed, value)) if kind in {tuple, list} else value


@lru_cache(4096)
def _layouts_made(target: Any, arguments: Any) -> list[Layout | None]:
    """Return how what an op makes lies; a long program asks for few ops many times.

    Outside of all modes: where what a call holds is told on tensors without data, their mode raises other errors.
    """
    with outside_modes():
        args, kwargs = _thawed(arguments)
        made = flat_outputs(target(*args, **kwargs))
    return [None if tensor is None else layout_of(tensor) for tensor in made]
