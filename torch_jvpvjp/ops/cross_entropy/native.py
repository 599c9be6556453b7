"""Cross-entropy by PyTorch's own function, where that is as right and as fine as ours."""

import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...registration.fast_path import is_untransformed
from .._native import FIRST_ORDER, WIDE, standing
from .arguments import WrongClassError


def is_native(x: Tensor, others: Tensor | None, weight: Tensor | None) -> bool:
    """Whether it may be called.

    Args:
        x: Logits, or what they are made of.
        others: A tensor that is differentiated too, or None.
        weight: Weights of the classes, or None; one that would be differentiated is not for PyTorch, but to be refused.

    Returns:
        True where a value, any order of backward, or one JVP is asked for in float32 or float64.
    """
    if x.dtype not in WIDE or not x.numel():
        return False
    if weight is not None and (weight.dtype != x.dtype or weight.requires_grad or not is_untransformed()):
        return False
    return standing(x, others) in FIRST_ORDER


def native_loss(
    name: str,
    x: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """The loss.

    Args:
        name: The function that was called, for its error.
        x: Logits.
        target: Classes or probabilities.
        weight: Weights of the classes, or None.
        ignore_index: The class whose rows count for nothing.
        reduction: "none", "mean" or "sum".
        label_smoothing: ε.

    Returns:
        What PyTorch's function returns.

    Raises:
        WrongClassError: If a class does not exist.
    """
    classes = target if target.is_floating_point() else target.long()
    options = {"ignore_index": ignore_index, "reduction": reduction, "label_smoothing": label_smoothing}
    try:
        return F.cross_entropy(x, classes, weight, **options)
    except IndexError as error:
        counts = classes[classes != ignore_index]
        n = x.shape[0 if x.dim() == 1 else 1]
        raise WrongClassError(name, n, int(counts[(counts < 0) | (counts >= n)][0])) from error
