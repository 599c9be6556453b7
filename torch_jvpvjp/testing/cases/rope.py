"""The row of rope."""

import torch
from torch import Tensor

from ... import ops
from ...ops.rope import op as rope_op
from ..case import Sample
from .case_row import OpCase, tensor


def _rope(
    q: Tensor,
    k: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    position_ids: Tensor | None = None,
    head_axis: int = -3,
) -> tuple[Tensor, Tensor]:
    """x · cos + rotated(x) · sin with every column of the tables twice, the definition that model libraries share."""
    if position_ids is not None:
        cos, sin = cos[position_ids], sin[position_ids]
    r = 2 * cos.shape[-1]
    double = (lambda t: t.repeat_interleave(2, -1)) if interleaved else lambda t: torch.cat((t, t), -1)
    cos, sin = double(cos).unsqueeze(head_axis), double(sin).unsqueeze(head_axis)

    def rotated(x: Tensor) -> Tensor:
        if interleaved:
            return torch.stack((-x[..., 1::2], x[..., ::2]), -1).reshape(x.shape)
        return torch.cat((-x[..., r // 2 :], x[..., : r // 2]), -1)

    def turned(x: Tensor) -> Tensor:
        return torch.cat((x[..., :r] * cos + rotated(x[..., :r]) * sin, x[..., r:]), -1).to(x.dtype)

    return turned(q), turned(k)


_OF_A_TABLE = {"position_ids": torch.tensor([[2, 2], [0, 2]]), "head_axis": -2}

CASES: dict[str, OpCase] = {
    "rope": OpCase(
        ops.rope,
        rope_op,
        _rope,
        [
            # Both kinds of pairs; all, some and odd elements turning; angles of all, of each batch entry, of a table.
            Sample((tensor(1, 2, 2, 2), tensor(1, 1, 2, 2), tensor(2, 1), tensor(2, 1) + 1), name="half"),
            Sample((tensor(1, 3, 3, 2), tensor(1, 1, 3, 2), tensor(3, 1), tensor(3, 1) + 1), name="half, other sizes"),
            Sample(
                (tensor(2, 1, 1, 3), tensor(2, 1, 1, 3) - 1, tensor(2, 1, 1), tensor(2, 1, 1) + 1),
                {"interleaved": True},
                name="interleaved, angles of each batch entry",
            ),
            Sample(
                (tensor(2, 2, 1, 2), tensor(2, 2, 1, 2), tensor(3, 1), tensor(3, 1) + 1),
                _OF_A_TABLE,
                name="positions, heads last",
            ),
        ],
        interpreted=(),  # all compositions of four inputs take minutes there; tests/ops/test_rope.py has a selection
    ),
}
