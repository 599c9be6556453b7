"""Huber loss: the public face."""

from typing import Any

from torch import Tensor

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
        target: t, of the shape, dtype and device of input.
        reduction: "none", "sum" or "mean"; with a weight w, "mean" divides Σ w h by the number of elements.
        delta: δ, positive.
        weight: A factor of each element, of the shape, dtype and device of input.

    Returns:
        The loss: a scalar, or of the shape of input without reduction.

    Raises:
        TypeError: If an argument is not of its type, or dtypes differ or are none of those above.
        ValueError: If shapes or devices differ, reduction is another string, or delta <= 0.

    Source: Huber (1964), Robust Estimation of a Location Parameter.
    """
    way = standing(input, target)
    native = weight is None and way in FIRST_ORDER  # and so dense tensors of one dtype on one device
    if not native or target is None or input.shape != target.shape or reduction not in _REDUCTIONS:
        losses.check_operands("huber_loss", input, target, reduction, _REDUCTIONS, weight)
    _check_delta(delta)
    if native:
        y = losses.native_huber(input, target, reduction, float(delta))
        return losses.watched_huber(y, reduction, float(delta)) if way == RECORDED else y
    if weight is None:
        return losses.reduced(losses.huber, input, target, reduction, float(delta))
    terms = losses.reduced(losses.huber, input, target, "none", float(delta)) * weight
    return terms if reduction == "none" else terms.sum() if reduction == "sum" else terms.mean()


def _check_delta(delta: Any) -> None:
    if isinstance(delta, bool) or not isinstance(delta, float | int):
        raise TypeError(f"huber_loss: delta must be a positive number, got {type(delta).__name__}.")
    if not delta > 0:
        raise ValueError(f"huber_loss: delta must be positive, got {delta}.")
