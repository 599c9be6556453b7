"""The one gate through which every kernel is launched, so that launches can be counted or recorded."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

# What the interpreter (tensors on the CPU) and shape-only tensors are taken to have; real devices are asked.
_MULTIPROCESSORS_WITHOUT_DEVICE = {"cpu": 1, "meta": 132}


class Launch(NamedTuple):
    """One launch: the kernel, its positional arguments, its constexprs with Triton's own options, and its grid."""

    kernel: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    programs: int


class LaunchCount:
    """How many kernels were launched, in all (`total`) and by kernel name (`by_name`)."""

    def __init__(self) -> None:
        self.by_name: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Number of launches of any kernel."""
        return sum(self.by_name.values())


_counts: list[LaunchCount] = []
_records: list[list[Launch]] = []


def launch(kernel: Any, programs: int, device_of: Tensor, *arguments: Any, **options: Any) -> None:
    """Run `kernel` on a one-dimensional grid, on the device of a tensor.

    The grid has one axis because axes y and z end at 65535; kernels decode groups and blocks from the program number.

    Args:
        kernel: A function decorated with `triton.jit`.
        programs: Size of the grid, at least 1.
        device_of: The tensor whose device runs the kernel.
        *arguments: The kernel's runtime arguments, in order.
        **options: Its constexprs by name, and `num_warps`, `num_stages`.
    """
    if _records or _counts:
        for count in _counts:
            count.by_name[kernel.fn.__name__] += 1
        if _records:
            _records[-1].append(Launch(kernel, arguments, options, programs))
            return
    if device_of.is_cuda and device_of.get_device() != torch.cuda.current_device():
        with torch.cuda.device(device_of.device):
            kernel[programs,](*arguments, **options)
    else:
        kernel[programs,](*arguments, **options)


@contextmanager
def count_launches() -> Iterator[LaunchCount]:
    """Count the kernels launched inside the block.

    Yields:
        The count, which goes on growing until the block ends.
    """
    count = LaunchCount()
    _counts.append(count)
    try:
        yield count
    finally:
        _counts.remove(count)


@contextmanager
def record_launches() -> Iterator[list[Launch]]:
    """Record launches inside the block instead of running them; tensors may live on the meta device.

    Yields:
        The launches so far, in order.
    """
    record: list[Launch] = []
    _records.append(record)
    try:
        yield record
    finally:
        _records.pop()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a device has; where there is none, a constant.

    Results then depend on shapes and the device only.
    """
    known = _MULTIPROCESSORS_WITHOUT_DEVICE.get(device.type)
    return torch.cuda.get_device_properties(device).multi_processor_count if known is None else known
