"""What an op is called with, as its schema has it."""

from __future__ import annotations

from typing import Any

import torch


def fits_into(dtype: torch.dtype, target: torch.dtype) -> bool:
    """Return whether an operand does not change the dtype of what an op returns, which writing never does."""
    exact = not dtype.is_floating_point and not dtype.is_complex
    return dtype == target or (exact and target.is_floating_point)


def argument(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """Return what an op is called with under a name, its default if it is not said."""
    place, argument = next((p, a) for p, a in enumerate(func._schema.arguments) if a.name == name)
    return args[place] if place < len(args) else kwargs.get(name, argument.default_value)


def clamped(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments of a slice with its end no more than the size, which 2^63 − 1 stands for."""
    place = SLICES[func]  # of dim
    full = [*args, *(argument.default_value for argument in func._schema.arguments[len(args) : place + 3])]
    size = args[0].shape[full[place]]
    if full[place + 2] is not None:
        full[place + 2] = min(full[place + 2], size)
    return tuple(full)


_aten = torch.ops.aten
SLICES = {_aten.slice.Tensor: 1, _aten.slice_scatter.default: 2}
"""The ops that take a slice, with the place of its axis."""
