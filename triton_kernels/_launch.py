"""The one gate through which every kernel is launched, so that launches can be counted or recorded."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
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


class _Compiled(NamedTuple):
    """What a kernel was compiled to, the constexprs after its arguments, and the owner of the number in the key."""

    owner: Any
    compiled: Any
    constants: tuple[Any, ...]


# By everything that Triton compiles a kernel anew for, and all integers; sizes that change at every call would fill it.
_compiled: dict[tuple[Any, ...], _Compiled] = {}
_MOST_COMPILED = 4096


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
    device = device_of.get_device()
    key = (
        id(kernel),
        device,
        *options,
        *options.values(),
        *[x if type(x) is int or x is None else _kind_of(x) for x in arguments],
    )
    _run(kernel, key, kernel, programs, device, arguments, options)


class Prepared(NamedTuple):
    """A launch of which all is known but its tensors, whose dtypes and device are the same every time.

    Attributes:
        kernel: A function decorated with `triton.jit`.
        programs: Size of the grid.
        numbers: Its arguments after the tensors.
        options: Its constexprs by name, and Triton's options.
    """

    kernel: Any
    programs: int
    numbers: tuple[Any, ...]
    options: dict[str, Any]


def launch_prepared(prepared: Prepared, device_of: Tensor, tensors: Sequence[Tensor | None]) -> None:
    """Run a kernel as `launch` does, in half of the time.

    Args:
        prepared: What is known of the launch.
        device_of: The tensor whose device runs the kernel.
        tensors: The kernel's first arguments.
    """
    kernel, programs, numbers, options = prepared
    if _records or _counts:
        launch(kernel, programs, device_of, *tensors, *numbers, **options)
        return
    key = (id(prepared), *[t is None or t.data_ptr() % 16 == 0 for t in tensors])
    _run(prepared, key, kernel, programs, device_of.get_device(), (*tensors, *numbers), options)


def _run(
    owner: Any,
    key: tuple[Any, ...],
    kernel: Any,
    programs: int,
    device: int,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    """Run a kernel, past Triton's look at every argument where the same call was made before.

    Triton finds out at every launch what a kernel has to be compiled for: dtypes of tensors and whether they are
    aligned, and whether integers are 1, divisible by 16 or beyond 32 bits. That takes it half a microsecond for each of
    the 75 arguments of attention. Here all that and the integers themselves are told by `key`, which begins with the
    number of `owner`.
    """
    if device >= 0 and device != torch.cuda.current_device():
        with torch.cuda.device(device):
            return _run(owner, key, kernel, programs, device, arguments, options)
    known = _compiled.get(key)
    if known is not None and not kernel.pre_run_hooks:
        known.compiled[programs, 1, 1](*arguments, *known.constants)
        return None
    compiled = kernel[programs,](*arguments, **options)
    if compiled is not None:  # the interpreter compiles nothing
        if len(_compiled) >= _MOST_COMPILED:
            _compiled.clear()
        constants = tuple(options[name] for name in kernel.arg_names[len(arguments) :])
        _compiled[key] = _Compiled(owner, compiled, constants)
    return None


def _kind_of(argument: Any) -> Any:
    """What Triton compiles a kernel for, of an argument that is no integer."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % 16 == 0
    if isinstance(argument, float):
        return float
    if isinstance(argument, tuple):
        return type(argument), *map(_kind_of, argument)
    return type(argument), argument


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
