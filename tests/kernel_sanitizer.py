"""What Triton's interpreter does not show of a kernel and a GPU would: bad addresses, races, integers that overflow.

In the interpreter programs run one after another, and it reads what lies beyond a tensor without a word. Here every
address that a launch reads or writes is noted; it must lie in a tensor that the launch was given, be written once, and
be read by nobody if it is written: neither programs nor, without a barrier, threads of one wait for each other. Sums
and products of integers must fit their type.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

Numbers = np.ndarray[Any, Any]


class KernelFault(AssertionError):
    """What is wrong with a launch."""


class _Launch:
    """The addresses of one launch.

    Args:
        kernel: Its name.
        tensors: What it was given.
    """

    def __init__(self, kernel: str, tensors: list[torch.Tensor]) -> None:
        self.kernel = kernel
        spans = sorted(_span(tensor) for tensor in tensors if tensor.numel())
        merged: list[list[int]] = []
        for begin, end in spans:
            if merged and begin <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([begin, end])
        self.begins, self.ends = np.array(merged or [[0, 0]], dtype=np.uint64).T
        self.read: list[Numbers] = []
        self.written: list[Numbers] = []

    def note(self, noted: list[Numbers], pointers: Any, mask: Any) -> None:
        """Note where a tile is read or written."""
        places = np.asarray(pointers.data)
        shown = np.broadcast_to(np.asarray(mask.data, dtype=bool), places.shape)
        places = places[shown].astype(np.uint64).ravel()
        if places.size == 0:
            return
        which = np.maximum(np.searchsorted(self.begins, places, side="right") - 1, 0)
        outside = (places < self.begins[which]) | (places >= self.ends[which])
        if outside.any():
            raise KernelFault(f"{self.kernel}: {outside.sum()} of {places.size} elements lie outside of its tensors")
        noted.append(places)

    def check(self) -> None:
        """Look for races."""
        written = np.sort(np.concatenate([np.empty(0, np.uint64), *self.written]))
        twice = int((written[1:] == written[:-1]).sum())
        if twice:
            raise KernelFault(f"{self.kernel}: {twice} elements are written more than once")
        read = np.concatenate([np.empty(0, np.uint64), *self.read])
        both = int(np.isin(written, read).sum())
        if both:
            raise KernelFault(f"{self.kernel}: {both} elements are written and read")


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses from a tensor's first element to the end of its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _tensors(arguments: Any) -> Iterator[torch.Tensor]:
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from _tensors(argument)


@contextmanager
def sanitized() -> Iterator[None]:
    """Within, interpreted launches are checked."""
    from triton.runtime import interpreter

    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    arguments, restore = executor._init_args_hst, executor._restore_args_dev
    load, store = builder.create_masked_load, builder.create_masked_store
    running: list[_Launch] = []

    def begin(self: Any, args: Any, kwargs: Any) -> Any:
        args, kwargs = arguments(self, args, kwargs)
        running[:] = [_Launch(self.fn.__name__, list(_tensors((*args, *kwargs.values()))))]
        return args, kwargs

    def end(self: Any, *rest: Any) -> None:
        launch = running.pop()
        launch.check()
        restore(self, *rest)

    def loaded(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        running[-1].note(running[-1].read, pointers, mask)
        return load(self, pointers, mask, *rest)

    def stored(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        running[-1].note(running[-1].written, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        checked = interpreter.InterpreterOptions(sanitize_overflow=True, debug=True)
        patch.setattr(interpreter.interpreter_builder, "options", checked)
        patch.setattr(executor, "_init_args_hst", begin)
        patch.setattr(executor, "_restore_args_dev", end)
        patch.setattr(builder, "create_masked_load", loaded)
        patch.setattr(builder, "create_masked_store", stored)
        yield
