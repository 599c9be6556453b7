"""Mean squared error: the public face."""

from torch import Tensor

from . import _elementwise_losses as losses
from ._native import FIRST_ORDER, RECORDED, standing

__all__ = ["mse_loss"]

_REDUCTIONS = ("none", "sum", "mean")


def mse_loss(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    target: Tensor,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """Mean squared error; semantics of ``torch.nn.functional.mse_loss``, without its deprecated arguments.

    With d = x − t, and s = 1 or, for "mean", 1/number of elements:

        y = s Σ d²,    ẏ = 2 s Σ d (ẋ − ṫ),    x̄ = 2 s ȳ d,    t̄ = −x̄

    On a GPU value, value with tangent, and pullback are one kernel each and, for long sums, one more that adds their
    parts in a fixed order; with a weight, the loss without reduction is. It computes in float32, in float64 for float64
    input; under autocast it returns float32, as PyTorch's does.

    Args:
        input: x, any shape and strides; float16, bfloat16, float32 or float64.
        target: t, of the shape and device of input; of two dtypes, the loss is of the wider.
        reduction: "none", "sum" or "mean"; with a weight w, "mean" is Σ w d² / Σ w.
        weight: A factor of each element, of the shape and device of input; of another dtype, it widens the loss too.

    Returns:
        The loss: a scalar, or of the shape of input without reduction.

    Raises:
        TypeError: If an argument is not of its type, or a dtype is none of those above.
        ValueError: If shapes or devices differ, or reduction is another string.
    """  # noqa: DOC502 -- checked_operands raises
    way = standing(input, target, weight)
    native = way in FIRST_ORDER  # and so dense tensors of one dtype on one device
    if (
        not native
        or target is None
        or input.shape != target.shape
        or weight is not None
        or reduction not in _REDUCTIONS
    ):
        input, target = losses.checked_operands("mse_loss", input, target, reduction, _REDUCTIONS, weight)
    own = reduction if weight is None else "none"
    if native:
        y = losses.native_mse(input, target, own)
        if way == RECORDED and y.requires_grad:
            y = losses.watched_mse(y, own)
    else:
        y = losses.reduced(losses.mse, input, target, own)
    return y if weight is None else losses.weighted(y, weight, reduction, by_weight=True)
