"""Rows of the pointwise functions."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...ops import pointwise
from ...ops.pointwise import ops
from ...registration import DifferentiableOp
from ..case import Sample
from .case_row import OpCase, tensor


def _row(function: Callable[[Tensor], Tensor], op: DifferentiableOp, reference: Callable[[Tensor], Tensor]) -> OpCase:
    """A function without options: one generator makes them all, so few samples show what is its own."""
    samples = [
        Sample((tensor(2, 3),), name="two axes"),
        Sample((tensor(3, 2),), name="two axes, other sizes"),
    ]
    # One kernel serves all functions: of these, the pullbacks that read x and y each run interpreted.
    return OpCase(function, op, reference, samples, interpreted=("two axes",) if op in (ops.silu, ops.tanh) else ())


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)  # F.silu raises when backward runs while a dual level is open


CASES: dict[str, OpCase] = {
    "gelu": OpCase(
        pointwise.gelu,
        ops.gelu,
        F.gelu,
        [
            Sample((tensor(2, 3),), name="two axes"),
            Sample((tensor(4, 3),), name="two axes, other sizes"),
            Sample((tensor(5),), {"approximate": "tanh"}, name="tanh"),
            Sample((tensor(),), name="no axis"),
            Sample((tensor(0, 3),), name="empty"),
        ],
        interpreted=("two axes", "empty"),
    ),
    "softplus": OpCase(
        pointwise.softplus,
        ops.softplus,
        F.softplus,
        [
            Sample((tensor(2, 3), 2.0), name="beta"),
            Sample((tensor(4, 3), 2.0), name="beta, other sizes"),
            Sample((tensor(5), 3.0, 1.0), name="some above the threshold"),
            Sample((tensor(3, 2),), name="no options"),
        ],
        interpreted=("some above the threshold",),
    ),
    "silu": _row(pointwise.silu, ops.silu, _silu),
    "tanh": _row(pointwise.tanh, ops.tanh, torch.tanh),
    "sin": _row(pointwise.sin, ops.sin, torch.sin),
    "mish": _row(pointwise.mish, ops.mish, F.mish),
    "sigmoid": _row(pointwise.sigmoid, ops.sigmoid, torch.sigmoid),
    "relu": _row(pointwise.relu, ops.relu, F.relu),
}
