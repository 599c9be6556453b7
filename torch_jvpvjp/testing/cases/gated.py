"""Rows of the gated linear units."""

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...ops import gated
from ..case import Sample
from .case_row import OpCase, tensor


def _swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    if up is None:
        gate, up = gate.chunk(2, -1)
    return gate * torch.sigmoid(gate) * up  # F.silu raises when backward runs while a dual level is open


def _geglu(gate: Tensor, up: Tensor | None = None, approximate: str = "none") -> Tensor:
    if up is None:
        gate, up = gate.chunk(2, -1)
    return F.gelu(gate, approximate=approximate) * up


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    up, gate = x.chunk(2, dim)
    return up * torch.sigmoid(gate)  # F.glu has no reverse over forward


CASES: dict[str, OpCase] = {
    "swiglu": OpCase(
        gated.swiglu,
        gated.ops.swiglu,
        _swiglu,
        [
            Sample((tensor(2, 3), 1 + tensor(2, 3)), name="two tensors"),
            Sample((tensor(3, 2), 1 + tensor(3, 2)), name="two tensors, other sizes"),
            Sample((tensor(2, 4),), name="packed"),
            Sample((tensor(0, 3), tensor(0, 3)), name="empty"),
        ],
        interpreted=("two tensors", "packed"),
    ),
    "geglu": OpCase(
        gated.geglu,
        gated.ops.geglu,
        _geglu,
        [
            Sample((tensor(3, 4),), name="packed"),
            Sample((tensor(2, 6),), name="packed, other sizes"),
            Sample((tensor(3), 1 + tensor(3), "tanh"), name="two tensors, tanh"),
        ],
        interpreted=("two tensors, tanh",),
    ),
    "glu": OpCase(
        gated.glu,
        gated.ops.glu,
        _glu,
        [
            Sample((tensor(2, 4),), name="last axis"),
            Sample((tensor(3, 6),), name="last axis, other sizes"),
            Sample((tensor(2, 3), 0), name="first axis"),
        ],
        interpreted=("last axis",),
    ),
}
