"""Rows of the elementwise losses."""

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...ops import _elementwise_losses as losses
from ...ops.huber_loss import huber_loss
from ...ops.js_div import js_div
from ...ops.kl_div import kl_div
from ...ops.mse_loss import mse_loss
from ..case import Sample
from .case_row import OpCase, tensor


def _huber(x: Tensor, t: Tensor, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """F.huber_loss has no second derivative in forward mode."""
    size = (x - t).abs()
    terms = torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta))
    return {"none": lambda t: t, "sum": torch.sum, "mean": torch.mean}[reduction](terms)


def _mse(x: Tensor, t: Tensor, reduction: str = "mean") -> Tensor:
    return F.mse_loss(x, t, reduction=reduction)


def _kl(x: Tensor, t: Tensor, reduction: str = "mean", log_target: bool = False) -> Tensor:
    return F.kl_div(x, t, reduction=reduction, log_target=log_target)


def _js(x: Tensor, t: Tensor, reduction: str = "batchmean", log_target: bool = False) -> Tensor:
    p, q = x.exp(), t.exp() if log_target else t
    middle = (0.5 * (p + q)).log()
    divergences = F.kl_div(middle, p, reduction="none") + F.kl_div(middle, q, reduction="none")
    terms = 0.5 * divergences
    return terms if reduction == "none" else terms.sum() / (x.shape[0] if reduction == "batchmean" else 1)


def _pair(*shape: int) -> tuple[Tensor, Tensor]:
    """Two log-probabilities."""
    return tensor(*shape).log_softmax(-1), (tensor(*shape).flip(0) * 0.6 + 0.1).log_softmax(-1)


def _mixed(*shape: int) -> tuple[Tensor, Tensor]:
    """A log-probability and a probability."""
    x, t = _pair(*shape)
    return x, t.exp()


CASES: dict[str, OpCase] = {
    "mse_loss": OpCase(
        mse_loss,
        losses.mse,
        _mse,
        [
            Sample(_pair(2, 3), name="mean"),
            Sample(_pair(4, 2), name="mean, other sizes"),
            Sample((*_pair(2, 3), "none"), name="no reduction"),
        ],
        interpreted=("mean",),
    ),
    "huber_loss": OpCase(
        huber_loss,
        losses.huber,
        _huber,
        [
            Sample((*_pair(2, 3), "mean", 0.5), name="mean"),
            Sample((*_pair(4, 2), "mean", 0.5), name="mean, other sizes"),
            Sample((*_pair(3), "none", 0.4), name="no reduction"),
        ],
        interpreted=("no reduction",),
    ),
    "kl_div": OpCase(
        kl_div,
        losses.kl,
        _kl,
        [
            Sample((*_mixed(2, 3), "batchmean"), name="batchmean"),
            Sample((*_mixed(3, 2), "batchmean"), name="batchmean, other sizes"),
            Sample((*_pair(2, 3), "sum", True), name="sum, logarithms"),
        ],
        interpreted=("sum, logarithms",),
    ),
    "js_div": OpCase(
        js_div,
        losses.js,
        _js,
        [
            Sample(_mixed(2, 3), name="batchmean"),
            Sample(_mixed(3, 2), name="batchmean, other sizes"),
            Sample((*_pair(2, 3), "none", True), name="no reduction, logarithms"),
        ],
        interpreted=(),  # slow; its kernel is held to the formula by tests of kernels
    ),
}
