"""Autocast is for the function: it is on where the function runs, as its caller has it, and off around that.

A recording holds the casts that autocast has made, so that its derivatives are those of the function; run once more
within autocast, products of derivatives would be made in bfloat16. Nor are casts remembered meanwhile: autocast keeps a
cast of a weight for as long as it is on, and one that was made while tensors without data run is such a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any, TypeVar

import torch

from ._torch import is_any_autocast_enabled

Result = TypeVar("Result")
State = tuple[tuple[str, torch.dtype], ...]  # where it is on, with what it casts to

_DEVICES = ("cpu", "cuda")


class _Outside(local):
    """What the caller of this package has on in this thread; None where that is as it is."""

    state: State | None = None


_OUTSIDE = _Outside()


def autocasts() -> State:
    """Return where autocast is on for the function, and what it casts to."""
    state = _OUTSIDE.state
    if state is not None:
        return state
    return _now() if is_any_autocast_enabled() else ()


def _now() -> State:
    if not is_any_autocast_enabled():
        return ()
    return tuple((device, torch.get_autocast_dtype(device)) for device in _DEVICES if torch.is_autocast_enabled(device))


def beyond_autocast(function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
    """Return what a function of this package returns, with autocast off."""
    state = _now()
    if not state or _OUTSIDE.state is not None:  # it is off, or was on only outside of us
        return function(*args, **kwargs)
    with _switched(state, on=False), _outside(state):
        return function(*args, **kwargs)


def as_outside(function: Callable[..., Result], *args: Any) -> Result:
    """Return what a function of the caller returns, with autocast as the caller has it."""
    if not _OUTSIDE.state:
        return function(*args)
    with _switched(_OUTSIDE.state, on=True), _outside(None):
        return function(*args)


@contextmanager
def _outside(state: State | None) -> Iterator[None]:
    before, _OUTSIDE.state = _OUTSIDE.state, state
    try:
        yield
    finally:
        _OUTSIDE.state = before


@contextmanager
def _switched(state: State, *, on: bool) -> Iterator[None]:
    """Switch autocast on or off where a state has it, without remembering casts."""
    before = [(device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device, _ in state]
    remembers = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    for device, dtype in state:
        torch.set_autocast_enabled(device, on)
        torch.set_autocast_dtype(device, dtype)
    try:
        yield
    finally:
        for device, enabled, dtype in before:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_autocast_cache_enabled(remembers)
