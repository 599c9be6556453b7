"""The modulated norms: shift and scale of each sample, brought to axes that broadcast against the input's."""

from typing import Any

import torch
from torch import Tensor

from .._arguments import check_floating
from .._native import WRITTEN, standing
from .arguments import check_device
from .rules import op

_is_compiling = torch.compiler.is_dynamo_compiling


def modulated(function: str, x: Tensor, shift: Tensor | None, scale: Tensor, eps: float, centred: bool) -> Tensor:
    """x̂ ∘ (1 + scale) + shift over the last axis.

    Args:
        function: Name of the public function, for messages.
        x: Input, (*batch, n).
        shift: Shift, see `modulated_layer_norm`; None for zero.
        scale: Scale, likewise.
        eps: ε, checked.
        centred: Whether x is centred: layer norm, else RMS norm.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        ValueError: If x has no axis.
    """
    check_floating(function, "x", x)
    if x.dim() == 0:
        raise ValueError(f"{function}: x must have at least one axis to normalise over, got shape ().")
    scale = _aligned(function, "scale", scale, x)
    shift = None if shift is None else _aligned(function, "shift", shift, x)
    if centred and standing(x, scale, shift) == WRITTEN and x.numel():
        y = torch.layer_norm(x, x.shape[-1:], None, None, eps) * (1 + scale)
        return y if shift is None else y + shift
    arguments = (
        x,
        scale,
        shift,
        1,
        float(eps),
        centred,
        1.0,
        False,
    )
    return op(*arguments) if _is_compiling() else op.call_flat(arguments)[0]


def _aligned(function: str, name: str, t: Any, x: Tensor) -> Tensor:
    """A shift or scale with as many axes as x, ones put between its batch axes and its last."""
    check_floating(function, name, t)
    check_device(function, name, t, "x", x)
    rank, own = x.dim(), t.dim()
    # Not `in`: for Dynamo a size that it does not know is in no tuple of numbers.
    if own == rank and all(s == 1 or s == full for s, full in zip(t.shape[:-1], x.shape[:-1], strict=True)):
        fits = True
    else:
        fits = 0 < own < rank and t.shape[:-1] == x.shape[: own - 1]
    if not fits or t.shape[-1] != x.shape[-1]:
        raise ValueError(
            f"{function}: {name} must have the last size of x, {x.shape[-1]}, after either all batch axes of x (each "
            f"its size or 1) or the first few of them (its own sizes), x being {tuple(x.shape)}; got {tuple(t.shape)}."
        )
    return t if own in (rank, 1) else t.reshape((*t.shape[:-1], *(1,) * (rank - own), t.shape[-1]))
