"""One row of the case table, and the tensors that its samples are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp
from ..case import Sample


@dataclass(frozen=True)
class OpCase:
    """One row.

    Attributes:
        function: The public function.
        op: The differentiable op behind it.
        reference: Plain PyTorch with the arguments of the function; wherever it can be, not the formula of the op.
        samples: What it is checked on; the first two differ in sizes only.
        interpreted: Names of the samples that reach different kernels, for Triton's interpreter, which is slow.
    """

    function: Callable[..., Any]
    op: DifferentiableOp
    reference: Callable[..., Any]
    samples: Sequence[Sample]
    interpreted: Sequence[str]


def tensor(*shape: int) -> Tensor:
    """Normally distributed, the same in every process.

    Args:
        *shape: Its sizes.

    Returns:
        A float64 tensor.
    """
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(sum(shape) + 10 * len(shape)), dtype=torch.float64
    )
