"""Rows of cross_entropy and linear_cross_entropy."""

from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...ops.cross_entropy import op as cross_entropy_op
from ...ops.linear_cross_entropy import op as linear_cross_entropy_op
from ..case import Sample
from .case_row import OpCase, tensor


def _cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Naive on purpose: PyTorch's own raises where value and tangent of a dual are differentiated."""
    axis = min(x.dim() - 1, 1)
    z = x if softcap is None else softcap * torch.tanh(x / softcap)
    lse = z.exp().sum(axis).log()
    n = x.shape[axis]
    w = torch.ones(n, dtype=x.dtype) if weight is None else weight.detach()
    w = w.to(x.device).reshape(n, *(1,) * (x.dim() - axis - 1))
    if target.is_floating_point():
        counts = torch.ones_like(lse, dtype=torch.bool)
        aims = target
        whole = counts.sum()
    else:
        counts = target != ignore_index
        classes = torch.arange(n, device=x.device).reshape(n, *(1,) * (x.dim() - axis - 1))
        aims = ((classes == target.unsqueeze(axis)) & counts.unsqueeze(axis)).to(x.dtype)
        whole = (w * aims).sum()
    aims = w * ((1 - label_smoothing) * aims + label_smoothing / n) * counts.unsqueeze(axis)
    losses = (aims * (lse.unsqueeze(axis) - z)).sum(axis)
    squares = z_loss * torch.where(counts, lse, 0).square()
    if reduction == "none":
        return losses + squares
    if reduction == "sum":
        return (losses + squares).sum()
    return losses.sum() / whole + squares.sum() / counts.sum()


def _linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    chunk_size: int | None = None,
    **options: Any,
) -> Tensor:
    z = torch.nn.functional.linear(x, weight, bias)
    return _cross_entropy(z, target, **options)


_PROBABILITIES = tensor(2, 3).flip(-1).softmax(-1)

CASES: dict[str, OpCase] = {
    "cross_entropy": OpCase(
        ops.cross_entropy,
        cross_entropy_op,
        _cross_entropy,
        [
            Sample((tensor(2, 3), torch.tensor([2, 0])), name="classes"),
            Sample((tensor(2, 4), torch.tensor([2, 0])), name="more classes"),
            Sample(
                (tensor(2, 3, 2), torch.tensor([[2, 7], [0, 1]])),
                {"ignore_index": 7, "reduction": "none", "label_smoothing": 0.2, "z_loss": 0.3, "softcap": 2.0},
                name="one ignored, every option",
            ),
            Sample((tensor(2, 3), _PROBABILITIES), {"label_smoothing": 0.1, "softcap": 3.0}, name="probabilities"),
        ],
        interpreted=("classes",),
    ),
    "linear_cross_entropy": OpCase(
        ops.linear_cross_entropy,
        linear_cross_entropy_op,
        _linear_cross_entropy,
        [
            Sample((tensor(2, 2), tensor(3, 2), torch.tensor([2, 0])), name="one chunk"),
            Sample((tensor(2, 3), tensor(4, 3), torch.tensor([2, 0])), name="one chunk, more classes"),
            Sample(
                (tensor(3, 2), tensor(3, 2), torch.tensor([2, 7, 1]), tensor(3)),
                {
                    "ignore_index": 7,
                    "reduction": "sum",
                    "label_smoothing": 0.2,
                    "z_loss": 0.3,
                    "softcap": 2.0,
                    "chunk_size": 2,
                },
                name="two chunks, bias, every option",
            ),
        ],
        interpreted=("one chunk",),
    ),
}
