"""What a function asks of PyTorch in Python while it is recorded: some is refused, some is written otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .._torch import is_all_true, wraps_transform


class NotRecordable(Exception):
    """A function cannot be recorded; the message says why."""


class Intercepted(TorchFunctionMode):
    """Refuses to hand the entries of a tensor from outside to Python, which no op shows: it has data, unlike x.

    What writes into memory of its own, or has a derivative that PyTorch has wrong, is replaced by what does not. What
    `torch.distributions` raises for unless all of it is true is `checked`: it is taken to be true.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checked: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        reads = func in _READING
        if func in _FROM_LISTS and args and not isinstance(args[0], Tensor):
            reads = any(isinstance(leaf, Tensor) for leaf in tree_leaves(args[0]))
        if func in _SPLITTING:  # at indices that a tensor holds
            reads = any(isinstance(leaf, Tensor) for leaf in (*args[1:], *kwargs.values()))
        if reads:
            raise NotRecordable(f"it reads the entries of a tensor, by {func.__name__}")
        if func is is_all_true and not wraps_transform(args[0]):
            self.checked.append(args[0])
            return True
        if func is torch.nn.functional.pad:
            wrapped = _wrapped(*args, **kwargs)
            return func(*args, **kwargs) if wrapped is None else wrapped
        if func in _SELECT_SCATTER:
            base, rows, dim, start = as_slice(*args, **kwargs)
            return torch.slice_scatter(base, rows.unsqueeze(dim), dim, start, start + 1)
        return func(*args, **kwargs)


def _wrapped(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor | None:  # noqa: ARG001 (as the function)
    """Return x padded circularly without writing, which PyTorch does into memory of its own; None for other padding."""
    ends = list(zip(pad[::2], pad[1::2], strict=False))
    axes = range(-1, -len(ends) - 1, -1)
    if mode != "circular" or len(ends) != input.dim() - 2 or len(pad) % 2:
        return None
    if any(not 0 <= end <= input.shape[axis] for axis, pair in zip(axes, ends, strict=True) for end in pair):
        return None
    for axis, (before, after) in zip(axes, ends, strict=True):
        size = input.shape[axis]
        parts = [input.narrow(axis, size - before, before), input, input.narrow(axis, 0, after)]
        input = torch.cat([part for part in parts if part.shape[axis]] or [input], axis)
    return input


def as_slice(input: Tensor, src: Tensor, dim: int, index: int) -> tuple[Tensor, Tensor, int, int]:
    """Return `select_scatter` as one of a slice: under `vmap`, PyTorch multiplies its derivative in src by a size."""
    return input, src, dim, index + input.shape[dim] if index < 0 else index


_SELECT_SCATTER: frozenset[Any] = frozenset({torch.select_scatter, Tensor.select_scatter})
_SPLITTING: frozenset[Any] = frozenset({torch.tensor_split, Tensor.tensor_split})
_READING: frozenset[Any] = frozenset({
    Tensor.tolist, Tensor.numpy, Tensor.data_ptr, Tensor.__array__, Tensor.__dlpack__, Tensor.untyped_storage,
})  # fmt: skip
_FROM_LISTS: frozenset[Any] = frozenset({torch.tensor, torch.as_tensor, torch.asarray})
