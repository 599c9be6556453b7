"""What a function asks of PyTorch in Python while it is recorded: some is refused, some is written otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
import torch.nn.functional as F  # noqa: N812 (as PyTorch's documentation spells it)
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .._torch import is_all_true, wraps_derivative, wraps_transform
from .read_numbers import MAKING, ReadNumber, has_read_numbers, with_tensors
from .sized import SIZED


class NotRecordable(Exception):
    """A function cannot be recorded; the message says why."""


class Intercepted(TorchFunctionMode):
    """Refuses to hand the entries of a tensor from outside to Python, which no op shows: it has data, unlike x.

    What writes into memory of its own, or has a derivative that PyTorch has wrong, is replaced by what does not. What
    `torch.distributions` raises for unless all of it is true is `checked`: it is taken to be true, unless there are
    answers to what f looks at.

    Args:
        answers: Whether there are: what Python makes of a tensor is then asked for as truths and whole numbers.
    """

    def __init__(self, *, answers: bool) -> None:
        super().__init__()
        self.checked: list[Tensor] = []
        self.refusal: NotRecordable | None = None  # which f may have caught
        self._answers, self._has_read = answers, False

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._has_read and has_read_numbers(args, kwargs):
            args, kwargs = with_tensors(func, args, kwargs)
            return args[0].clone() if func in MAKING else func(*args, **kwargs)
        if self._answers and func in _LISTING and args[0].numel() <= _MOST_LISTED:
            return self._listed(args[0])
        reads = func in _READING
        if func in _FROM_LISTS and args and not isinstance(args[0], Tensor):
            reads = any(isinstance(leaf, Tensor) for leaf in tree_leaves(args[0]))
        if func in _SPLITTING:  # at indices that a tensor holds
            reads = any(isinstance(leaf, Tensor) for leaf in (*args[1:], *kwargs.values()))
        if reads:
            self._refuse(f"it reads the entries of a tensor, by {func.__name__}")
        if self._answers and func in _ASKING:
            return _ASKING[func](*args, **kwargs)
        if self._answers and func in SIZED:
            with self:
                followed = SIZED[func](*args, **kwargs)
            return func(*args, **kwargs) if followed is None else followed
        if func is is_all_true and not self._answers and not wraps_transform(args[0]):
            self.checked.append(args[0])
            return True
        if func is F.one_hot:
            self._check_classes(*args, **kwargs)
        if func is F.pad:
            wrapped = _wrapped(*args, **kwargs)
            return func(*args, **kwargs) if wrapped is None else wrapped
        if func in _SOFTMAXES:
            moved = _along_last(func, *args, **kwargs)
            return func(*args, **kwargs) if moved is None else moved
        if func is F.cross_entropy:
            return _by_rows(*args, **kwargs)
        if func in _SELECT_SCATTER:
            base, rows, dim, start = as_slice(*args, **kwargs)
            return torch.slice_scatter(base, rows.unsqueeze(dim), dim, start, start + 1)
        return func(*args, **kwargs)

    def _check_classes(self, tensor: Tensor, num_classes: int = -1) -> None:
        """Have the classes checked that PyTorch checks where there is data."""
        if num_classes > 0 and not wraps_transform(tensor):
            there = torch.logical_and(tensor >= 0, tensor < num_classes).all()
            if not self._answers:
                self.checked.append(there)
            elif not there:
                raise RuntimeError(f"one_hot: classes must lie in [0, {num_classes}).")

    def _refuse(self, reason: str) -> NoReturn:
        self.refusal = NotRecordable(reason)
        raise self.refusal

    def _listed(self, tensor: Tensor) -> Any:
        """Return the entries of a tensor as Python has them, fractions as numbers that were read."""
        if tensor.dim():
            return [self._listed(row) for row in tensor.unbind()]
        if not tensor.is_floating_point() or wraps_derivative(tensor):
            return tensor.item()
        self._has_read = True
        return ReadNumber(tensor.detach().to(torch.float64, copy=True), self._refuse)


def _truth(input: Tensor) -> bool:
    """Return whether a number is not 0."""
    return bool(input if input.dtype is torch.bool or input.numel() != 1 else input.detach() != 0)


def _fraction(input: Tensor) -> float:
    """Return a number."""
    return float(input.detach())  # PyTorch warns of one that requires grad


def _whole(input: Tensor) -> int:
    """Return a number without its fraction."""
    if input.numel() != 1 or not input.is_floating_point():
        return int(input)
    fraction = input.detach()
    if not bool(fraction.abs() < _MOST_WHOLE):  # of NaN too, where int() raises
        raise NotRecordable("it makes a whole number of what is none, or too large")
    return int(fraction.trunc().to(torch.int64))


def _equal(input: Tensor, other: Tensor) -> bool:
    """Return whether two tensors hold the same."""
    if input.shape != other.shape:
        return False
    return bool((input == other).all()) if input.dtype == other.dtype else torch.equal(input, other)


def _close(input: Tensor, other: Tensor, *how: Any, **named: Any) -> bool:
    """Return whether two tensors hold nearly the same."""
    return bool(torch.isclose(input, other, *how, **named).all())


_MOST_WHOLE, _MOST_LISTED = 2.0**62, 100
_LISTING: frozenset[Any] = frozenset({Tensor.item, Tensor.tolist})
# What asks for the values of tensors, with what asks for no more of them than is used.
_ASKING: dict[Any, Any] = {
    Tensor.__bool__: _truth, Tensor.is_nonzero: _truth, torch.is_nonzero: _truth, Tensor.__int__: _whole,
    Tensor.__float__: _fraction,
    torch.equal: _equal, Tensor.equal: _equal,
    torch.allclose: _close, Tensor.allclose: _close,
}  # fmt: skip


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


def _along_last(func: Any, input: Any, dim: Any = None, *others: Any, **kwargs: Any) -> Tensor | None:
    """Return what goes along an axis with that at the end, where its Jacobian is block-diagonal; None if it is so."""
    if not isinstance(input, Tensor) or type(dim) is not int or not -input.dim() <= dim < input.dim():
        return None
    axis = dim % input.dim()
    if input.shape[axis + 1 :].numel() == 1 or kwargs.get("out") is not None:
        return None
    return func(input.movedim(axis, -1), -1, *others, **kwargs).movedim(-1, axis)


def _by_rows(input: Any, target: Any, *others: Any, **kwargs: Any) -> Tensor:
    """Return the cross-entropy of each position of an image as that of a row, whose classes lie side by side."""
    fit = isinstance(input, Tensor) and isinstance(target, Tensor) and input.dim() > 2
    if not fit or target.is_floating_point() or target.shape != input.shape[:1] + input.shape[2:]:
        return F.cross_entropy(input, target, *others, **kwargs)
    rows = input.movedim(1, -1).reshape(-1, input.shape[1])
    losses = F.cross_entropy(rows, target.reshape(-1), *others, **kwargs)
    return losses.reshape(target.shape) if losses.dim() else losses


def as_slice(input: Tensor, src: Tensor, dim: int, index: int) -> tuple[Tensor, Tensor, int, int]:
    """Return `select_scatter` as one of a slice: under `vmap`, PyTorch multiplies its derivative in src by a size."""
    return input, src, dim, index + input.shape[dim] if index < 0 else index


_SELECT_SCATTER: frozenset[Any] = frozenset({torch.select_scatter, Tensor.select_scatter})
_SOFTMAXES: frozenset[Any] = frozenset({
    *(getattr(space, name) for space in (torch, Tensor, torch.special, F) for name in ("softmax", "log_softmax")),
    torch.logcumsumexp, Tensor.logcumsumexp,
})  # fmt: skip
_SPLITTING: frozenset[Any] = frozenset({torch.tensor_split, Tensor.tensor_split})
_READING: frozenset[Any] = frozenset({
    Tensor.tolist, Tensor.numpy, Tensor.data_ptr, Tensor.__array__, Tensor.__dlpack__, Tensor.untyped_storage,
})  # fmt: skip
_FROM_LISTS: frozenset[Any] = frozenset({torch.tensor, torch.as_tensor, torch.asarray})
