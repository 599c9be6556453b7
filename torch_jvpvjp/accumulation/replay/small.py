"""Programs so small that calls of ops take all of their time, run by their entries instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._torch import outside_modes
from ..calls import ProgramCall
from .entries import Entries
from .in_lanes import in_lanes
from .in_python import in_python
from .layout import Layout

_Run = Callable[..., tuple[Tensor, ...]]
_LEAST_CALLS = 4
# Microseconds: an op on a small tensor, an operation on floats, one along a row
_CALL, _NUMBER, _ROW = 0.9, 0.012, 0.25
_MOST_GIVEN, _MOST_RETURNED = 512, 1024  # entries
_MOST_LANES = 4096
_PATIENCE = 8  # calls in vain


def by_entries(
    calls: Sequence[ProgramCall],
    inputs: Sequence[int],
    fixed: Mapping[int, Tensor],
    results: Sequence[int],
    layouts: Mapping[int, Layout],
) -> _Run | None:
    """A program run by its entries.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        inputs: The values that are given at each run.
        fixed: Values that are the same in every run.
        results: The values that are returned.
        layouts: How the values lie in memory.

    Returns:
        The program, which raises ArithmeticError or ValueError where tensors must be asked; None if that does not pay.
    """
    dtypes = {layouts[index].dtype for index in (*inputs, *results)}
    dtype = next(iter(dtypes))
    if len(calls) < _LEAST_CALLS or len(dtypes) > 1 or dtype not in {torch.float32, torch.float64}:
        return None
    if any(layouts[index].device.type != "cpu" for index in results):
        return None
    sizes = [sum(layouts[index].numel for index in some) for some in (inputs, results)]
    if not all(sizes):
        return None
    if sizes[0] <= _MOST_GIVEN and sizes[1] <= _MOST_RETURNED:
        return _at_one_point(_Program(calls, inputs, fixed, results, layouts, dtype))
    return _at_many_points(_Program(calls, inputs, fixed, results, layouts, dtype))


class _Program(NamedTuple):
    """What `by_entries` is given, and the dtype of what goes in and out."""

    calls: Sequence[ProgramCall]
    inputs: Sequence[int]
    fixed: Mapping[int, Tensor]
    results: Sequence[int]
    layouts: Mapping[int, Layout]
    dtype: torch.dtype


def _at_one_point(program: _Program) -> _Run | None:
    calls, inputs, fixed, results, layouts, dtype = program
    most = len(calls) * _CALL / _NUMBER
    entries = _run(Entries(fixed, layouts, dtype, 1, int(4 * most)), calls, inputs)
    # In float32, a condition may be seen otherwise than numbers of more digits see it.
    if entries is None or len(entries.numbers.nodes) > most / 2 or (entries.numbers.jumps and dtype is torch.float32):
        return None
    return in_python(entries, inputs, results, layouts, dtype)


def _at_many_points(program: _Program) -> _Run | None:
    calls, inputs, fixed, results, layouts, dtype = program
    given = layouts[inputs[0]]
    if len(inputs) > 1 or len(results) > 1 or len(given.shape) < 1 or not 1 < given.shape[0] <= _MOST_LANES:
        return None
    shape = layouts[results[0]].shape
    if shape[:1] != given.shape[:1] or not layouts[results[0]].contiguous:
        return None
    most = len(calls) * _CALL / _ROW
    entries = _run(Entries(fixed, layouts, dtype, given.shape[0], int(4 * most)), calls, inputs)
    if entries is None or len(entries.numbers.needed(entries.result(results[0]).reshape(-1).tolist())[0]) > most / 1.5:
        return None
    try:
        return in_lanes(entries, inputs, results[0], layouts, dtype)
    except NotImplementedError:  # a result that is not the same in all lanes
        return None


def _run(entries: Entries, calls: Sequence[ProgramCall], inputs: Sequence[int]) -> Entries | None:
    """Return what a program does to entries; None if they do not tell."""
    try:
        for index in inputs:
            entries.give(index)
        for call in calls:
            entries.run(call)
    except (NotImplementedError, ArithmeticError, ValueError, RuntimeError, IndexError, KeyError):
        return None
    return entries


def small_or_whole(whole: _Run, small: Callable[[], _Run | None]) -> _Run:
    """Return a program that is run by its entries, or by its ops where these do not tell.

    Args:
        whole: The program by its ops.
        small: Makes it by its entries, when it first runs on tensors with data; None if that does not pay.
    """
    quick: _Run | None = None
    untried, in_vain = True, 0  # whether there is none yet; calls that entries did not tell, one after another

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        nonlocal quick, untried, in_vain
        if untried and type(inputs[0]) is Tensor:
            untried = False
            with outside_modes():
                quick = small()
        if quick is not None and type(inputs[0]) is Tensor:
            try:
                found = quick(*inputs)
            except (ArithmeticError, ValueError):
                in_vain += 1
                if in_vain > _PATIENCE:
                    quick = None
            else:
                in_vain = 0
                return found
        return whole(*inputs)

    return run
