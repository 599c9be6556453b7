"""The case table: every public op with its reference and samples. A new op adds one row."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from .. import ops
from ..ops.rms_norm import op as rms_norm_op
from ..registration import DifferentiableOp
from .case import Sample


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


def _tensor(*shape: int) -> Tensor:
    """Normally distributed, the same in every process."""
    return torch.randn(
        shape, generator=torch.Generator().manual_seed(sum(shape) + 10 * len(shape)), dtype=torch.float64
    )


CASES: dict[str, OpCase] = {
    "rms_norm": OpCase(
        ops.rms_norm,
        rms_norm_op,
        F.rms_norm,
        [
            # Batch axes none, one, several; one and two normalised axes; sizes 1, odd and even; eps given and default.
            Sample((_tensor(2, 3), (3,), _tensor(3), 1e-3), name="weight"),
            Sample((_tensor(5, 3), (3,), _tensor(3), 1e-3), name="weight, another batch"),
            Sample((_tensor(2, 3, 4), (4,), _tensor(4), 1e-3), name="two batch axes"),
            Sample((_tensor(2, 5), (5,)), name="no weight, default eps"),
            Sample((_tensor(2, 2, 3), (2, 3), _tensor(2, 3), 0.5), name="two normalised axes"),
            Sample((_tensor(4), (4,), _tensor(4)), name="no batch axis"),
            Sample((_tensor(3, 1), (1,), _tensor(1), 1e-2), name="rows of one"),
            Sample((_tensor(0, 3), (3,), _tensor(3)), name="no rows"),
            Sample((_tensor(2, 0), (0,), _tensor(0)), name="empty rows"),
        ],
        interpreted=("weight", "no weight, default eps", "no rows", "empty rows"),
    ),
}
