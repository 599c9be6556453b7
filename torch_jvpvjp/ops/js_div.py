"""Jensen-Shannon divergence: the public face."""

from torch import Tensor

from . import _elementwise_losses as losses

__all__ = ["js_div"]


def js_div(
    input: Tensor,  # noqa: A002 -- as in kl_div
    target: Tensor,
    reduction: str = "batchmean",
    log_target: bool = False,
) -> Tensor:
    """Jensen-Shannon divergence of p = exp(input) and the target, with the arguments of `kl_div`.

    With x the logarithm of p, q the target (or its exponential), m = (p + q)/2, and s as the reduction says:

        y = ½ KL(p ‖ m) + ½ KL(q ‖ m) = s Σ ½ p (x − log m) + ½ q (log q − log m)
        x̄ = s ȳ ½ p (x − log m),    q̄ = s ȳ ½ (log q − log m)

    It is symmetric in p and q and at most log 2 for each distribution. Terms with p = 0 or q = 0 are 0. On a GPU value,
    value with tangent, and pullback are one kernel each and, for long sums, one more that adds their parts in a fixed
    order. It computes in float32, in float64 for float64 input; under autocast it returns float32.

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

    Source: Lin (1991), Divergence Measures Based on the Shannon Entropy.
    """
    input, target = losses.checked_operands("js_div", input, target, reduction, ("none", "sum", "mean", "batchmean"))
    if not isinstance(log_target, bool):
        raise TypeError(f"js_div: log_target must be a bool, got {type(log_target).__name__}.")
    return losses.reduced(losses.js, input, target, reduction, log_target)
