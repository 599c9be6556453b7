"""Huber loss: the public face."""

from typing import Any

import torch
from torch import Tensor

from ..registration.autocast import is_autocast
from . import _elementwise_losses as losses
from ._native import FIRST_ORDER, RECORDED, standing

__all__ = ["huber_loss"]

_REDUCTIONS = ("none", "sum", "mean")


def huber_loss(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Tensor:
    """Huber loss; signature and semantics of ``torch.nn.functional.huber_loss``.

    With d = x − t, h′ = d clamped to ±δ, and s = 1 or, for "mean", 1/number of elements:

        y = s Σ ½ d² where |d| ≤ δ, else δ (|d| − ½ δ),    ẏ = s Σ h′ (ẋ − ṫ),    x̄ = s ȳ h′,    t̄ = −x̄

    On a GPU value, value with tangent, and pullback are one kernel each and, for long sums, one more that adds their
    parts in a fixed order; with a weight, the loss without reduction is. It computes in float32, in float64 for float64
    input; under autocast it returns float32, as PyTorch's does.

    Args:
        input: x, any shape and strides; float16, bfloat16, float32 or float64.
        target: t, of the shape and device of input; of another dtype, the loss is computed in the wider of both.
        reduction: "none", "sum" or "mean"; with a weight w, "mean" divides Σ w h by the number of elements.
        delta: δ, positive.
        weight: A factor of each element, of the shape and device of input; of another dtype, it widens the loss too.

    Returns:
        The loss: a scalar, or of the shape of input without reduction.

    Raises:
        TypeError: If an argument is not of its type, or a dtype is none of those above.
        ValueError: If shapes or devices differ, reduction is another string, or delta <= 0.

    Source: Huber (1964), Robust Estimation of a Location Parameter.
    """
    way = standing(input, target, weight)
    native = way in FIRST_ORDER  # and so dense tensors of one dtype on one device
    x, t = input, target
    if (
        not native
        or target is None
        or input.shape != target.shape
        or weight is not None
        or reduction not in _REDUCTIONS
    ):
        x, t = losses.checked_operands("huber_loss", input, target, reduction, _REDUCTIONS, weight)
    _check_delta(delta)
    own = reduction if weight is None else "none"
    if native:
        y = losses.native_huber(x, t, own, float(delta))
        if way == RECORDED and y.requires_grad:
            y = losses.watched_huber(y, own, float(delta))
    else:
        y = losses.reduced(losses.huber, x, t, own, float(delta))
        if x.dtype != input.dtype:  # PyTorch's loss has the dtype of input, as autocast leaves it
            y = y.to(torch.promote_types(input.dtype, torch.float32) if is_autocast(x.device.type) else input.dtype)
    return y if weight is None else losses.weighted(y, weight, reduction)


def _check_delta(delta: Any) -> None:
    if isinstance(delta, bool) or not isinstance(delta, float | int):
        raise TypeError(f"huber_loss: delta must be a positive number, got {type(delta).__name__}.")
    if not delta > 0:
        raise ValueError(f"huber_loss: delta must be positive, got {delta}.")
