"""From losses of rows to the loss: a few small ops on one number a row, differentiated by PyTorch."""

import torch
from torch import Tensor

from ...registration.push import push_linear

_is_compiling = torch.compiler.is_dynamo_compiling


def reduced(
    losses: Tensor,
    lse: Tensor,
    dim: int,
    counts: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    reduction: str,
    z_loss: float,
) -> Tensor:
    """Add the z-loss and reduce.

    Args:
        losses: ℓ, (*lead, 1, *inner).
        lse: L, likewise, 0 where ignored.
        dim: The axis of size 1.
        counts: Which rows count, or None for all.
        target: Classes, likewise; not read where all rows count.
        weight: Weights of the classes, (n), or None.
        reduction: "none", "mean" or "sum".
        z_loss: λ.

    Returns:
        The losses without the axis, or a scalar.
    """
    squares = lse * lse if z_loss else None
    if counts is None or reduction != "mean":
        # Not losses + λ · squares: under forward mode PyTorch multiplies squares by the tangent that λ has not, a zero
        # tensor, and takes their size for a constant; compiled with dynamic shapes, every length would be anew.
        terms = losses if squares is None else torch.add(losses, squares, alpha=z_loss)
        return terms.squeeze(dim) if reduction == "none" else terms.sum() if reduction == "sum" else terms.mean()
    number = counts.sum().to(losses.dtype)
    whole = number if weight is None else _weight_sum(counts, target, weight).to(losses.dtype)

    def mean(losses: Tensor, squares: Tensor | None = None) -> Tensor:
        first = losses.sum() / whole
        return first if squares is None else torch.add(first, squares.sum() / number, alpha=z_loss)

    terms = (losses,) if squares is None else (losses, squares)
    return mean(*terms) if _is_compiling() else push_linear(mean, *terms)


def _weight_sum(counts: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Σ w_t over the rows that count."""
    exists = counts & (target >= 0) & (target < weight.shape[0])
    chosen = weight.detach()[torch.where(exists, target, 0).long()]
    return torch.where(exists, chosen, 0).sum(dtype=torch.promote_types(weight.dtype, torch.float32))
