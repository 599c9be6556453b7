"""Rows of the normalisations."""

import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so

from ... import ops
from ...ops.rms_norm import op as rms_norm_op
from ..case import Sample
from .case_row import OpCase, tensor

CASES: dict[str, OpCase] = {
    "rms_norm": OpCase(
        ops.rms_norm,
        rms_norm_op,
        F.rms_norm,
        [
            # Batch axes none, one, several; one and two normalised axes; sizes 1, odd and even; eps given and default.
            Sample((tensor(2, 3), (3,), tensor(3), 1e-3), name="weight"),
            Sample((tensor(5, 3), (3,), tensor(3), 1e-3), name="weight, another batch"),
            Sample((tensor(2, 3, 4), (4,), tensor(4), 1e-3), name="two batch axes"),
            Sample((tensor(2, 5), (5,)), name="no weight, default eps"),
            Sample((tensor(2, 2, 3), (2, 3), tensor(2, 3), 0.5), name="two normalised axes"),
            Sample((tensor(4), (4,), tensor(4)), name="no batch axis"),
            Sample((tensor(3, 1), (1,), tensor(1), 1e-2), name="rows of one"),
            Sample((tensor(0, 3), (3,), tensor(3)), name="no rows"),
            Sample((tensor(2, 0), (0,), tensor(0)), name="empty rows"),
        ],
        interpreted=("weight", "no weight, default eps", "no rows", "empty rows"),
    ),
}
