"""The row of the linear layer."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ... import ops
from ...ops.linear import op as linear_op
from ..case import Sample
from .case_row import OpCase, tensor

# PyTorch's own silu and mish fail in some compositions; these are their definitions.
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": lambda z: z * torch.sigmoid(z),
    "tanh": torch.tanh,
}


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None) -> Tensor:  # noqa: A002
    """PyTorch's linear layer and activation."""
    z = F.linear(input, weight, bias)
    return z if activation is None else _ACTIVATIONS[activation](z)


CASES: dict[str, OpCase] = {
    "linear": OpCase(
        ops.linear,
        linear_op,
        _linear,
        [
            # Batch axes none, one, two; with and without bias and activation; few rows, which stack, and many.
            Sample((tensor(2, 2), tensor(2, 2), tensor(2), "gelu"), name="gelu"),
            Sample((tensor(3, 2), tensor(3, 2), tensor(3), "gelu"), name="gelu, other sizes"),
            Sample((tensor(2, 1, 3), tensor(1, 3), tensor(1)), name="identity, two batch axes"),
            Sample((tensor(3), tensor(2, 3), None, "silu"), name="no bias, no batch axis"),
            Sample((tensor(2, 1), tensor(8, 1), tensor(8), "tanh"), name="stacked"),
        ],
        interpreted=("gelu", "stacked"),
    ),
}
