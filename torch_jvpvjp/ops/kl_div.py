"""Kullback-Leibler divergence: the public face."""

import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from . import _elementwise_losses as losses
from ._native import VALUE, standing

__all__ = ["kl_div"]


def kl_div(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    target: Tensor,
    reduction: str = "mean",
    log_target: bool = False,
) -> Tensor:
    """Kullback-Leibler divergence of p = exp(input) from the target; semantics of ``torch.nn.functional.kl_div``.

    With x the logarithm of p, q the target (or its exponential), and s as the reduction says:

        y = s Σ q (log q − x),    ẏ = s Σ q̇ (log q + 1 − x) − q ẋ,    x̄ = −s ȳ q,    q̄ = s ȳ (log q + 1 − x)

    Terms with q = 0 are 0; there the derivative in q is NaN, as in PyTorch. On a GPU value, value with tangent, and
    pullback are one kernel each and, for long sums, one more that adds their parts in a fixed order. It computes in
    float32, in float64 for float64 input; under autocast it returns float32, as PyTorch's does.

    Args:
        input: x, logarithms of probabilities, any shape and strides; float16, bfloat16, float32 or float64.
        target: q, or log q if log_target; of the shape and device of input. Of two dtypes, the loss is of the wider.
        reduction: "none", "sum", "mean" (1/number of elements) or "batchmean" (1/first size), which is the mathematical
            definition.
        log_target: Whether target holds logarithms.

    Returns:
        The divergence: a scalar, or of the shape of input without reduction.

    Raises:
        TypeError: If an argument is not of its type, or a dtype is none of those above.
        ValueError: If shapes or devices differ, or reduction is another string.

    Source: Kullback and Leibler (1951), On Information and Sufficiency.
    """
    input, target = losses.checked_operands("kl_div", input, target, reduction, ("none", "sum", "mean", "batchmean"))
    if not isinstance(log_target, bool):
        raise TypeError(f"kl_div: log_target must be a bool, got {type(log_target).__name__}.")
    if reduction != "mean" and standing(input, target) == VALUE:  # of which PyTorch warns
        return F.kl_div(input, target, reduction=reduction, log_target=log_target)
    return losses.reduced(losses.kl, input, target, reduction, log_target)
