"""Rows of softmax, log_softmax and logsumexp."""

import torch
from torch import Tensor

from ... import ops
from ...ops.log_softmax import op as log_softmax_op
from ...ops.logsumexp import op as logsumexp_op
from ...ops.softmax import op as softmax_op
from ..case import Sample
from .case_row import OpCase, tensor


def _powers(x: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """exp(s x) where kept: naive on purpose, for PyTorch's own ops raise under some of the compositions."""
    powers = (x * scale).exp()
    return powers if mask is None else torch.where(mask, powers, 0)


def _softmax(x: Tensor, dim: int, *, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
    powers = _powers(x, scale, mask)
    sums = powers.sum(dim, keepdim=True)
    return powers / torch.where(sums == 0, 1, sums)


def _log_softmax(x: Tensor, dim: int, *, scale: float = 1.0) -> Tensor:
    return x * scale - _powers(x, scale, None).sum(dim, keepdim=True).log()


def _logsumexp(
    x: Tensor, dim: int | tuple[int, ...], keepdim: bool = False, *, scale: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    return _powers(x, scale, mask).sum(dim, keepdim).log()


_MASK = torch.tensor([[True, False, True], [False, False, False]])

CASES: dict[str, OpCase] = {
    "softmax": OpCase(
        ops.softmax,
        softmax_op,
        _softmax,
        [
            Sample((tensor(2, 3), -1), name="rows"),
            Sample((tensor(4, 3), -1), name="rows, another batch"),
            Sample((tensor(2, 3, 2), 1), {"scale": 0.7}, name="middle axis, scale"),
            Sample((tensor(2, 3), 1), {"mask": _MASK}, name="mask, one row without"),
            Sample((tensor(0, 3), -1), name="no rows"),
        ],
        interpreted=("rows", "mask, one row without"),
    ),
    "log_softmax": OpCase(
        ops.log_softmax,
        log_softmax_op,
        _log_softmax,
        [
            Sample((tensor(2, 3), -1), name="rows"),
            Sample((tensor(4, 3), -1), name="rows, another batch"),
            Sample((tensor(3, 2), 0), {"scale": -0.5}, name="first axis, scale"),
            Sample((tensor(2, 0), -1), name="empty rows"),
        ],
        interpreted=("first axis, scale",),
    ),
    "logsumexp": OpCase(
        ops.logsumexp,
        logsumexp_op,
        _logsumexp,
        [
            Sample((tensor(2, 3), -1), name="rows"),
            Sample((tensor(4, 3), -1), name="rows, another batch"),
            Sample((tensor(2, 3, 2), (0, 2), True), {"scale": 0.7}, name="two axes, kept, scale"),
            Sample((tensor(3, 2), 0), {"mask": torch.tensor([[True], [False], [True]])}, name="broadcast mask"),
        ],
        interpreted=("broadcast mask",),
    ),
}
