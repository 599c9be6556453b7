"""Rows of the normalisations over last axes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ... import ops
from ...ops._norms import op as norm_op
from ...ops.add_rms_norm import op as add_op
from ...ops.qk_rms_norm import op as qk_op
from ..case import Sample
from .case_row import OpCase, tensor


def _rms_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
) -> Tensor:
    """PyTorch's, with the gain that is meant."""
    shape = list(normalized_shape)
    if weight is None or not weight_offset:
        return F.rms_norm(input, shape, weight, eps)
    wide = torch.promote_types(input.dtype, torch.float32)
    return F.rms_norm(input.to(wide), shape, weight.to(wide) + weight_offset, eps).to(input.dtype)


def _layer_norm(
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """By a division, since PyTorch's own is wrong where forward mode is differentiated."""
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    axes = list(range(-len(normalized_shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    y = centred / ((centred * centred).mean(axes, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(input.dtype)


def _along(t: Tensor, x: Tensor) -> Tensor:
    """A shift or scale of each sample, along x."""
    return t if t.dim() == x.dim() else t.reshape(*t.shape[:-1], *(1,) * (x.dim() - t.dim()), t.shape[-1])


def _modulated_layer_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (_layer_norm(wide, x.shape[-1:], eps=eps) * (1 + _along(scale, x)) + _along(shift, x)).to(x.dtype)


def _modulated_rms_norm(x: Tensor, shift: Tensor | None, scale: Tensor, eps: float = 1e-6) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    y = F.rms_norm(wide, x.shape[-1:], None, eps) * (1 + _along(scale, x).to(wide.dtype))
    return (y if shift is None else y + _along(shift, x)).to(x.dtype)


def _add_rms_norm(
    input: Tensor,  # noqa: A002
    residual: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    total = input + residual
    return _rms_norm(total, normalized_shape, weight, eps, weight_offset=weight_offset), total


def _qk_rms_norm(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    return (
        _rms_norm(q, q.shape[-1:], q_weight, eps, weight_offset=weight_offset),
        _rms_norm(k, k.shape[-1:], k_weight, eps, weight_offset=weight_offset),
    )


CASES: dict[str, OpCase] = {
    "rms_norm": OpCase(
        ops.rms_norm,
        norm_op,
        _rms_norm,
        [
            # Batch axes none, one, several; one and two normalised axes; sizes 1, odd and even; eps given and default.
            Sample((tensor(2, 3), (3,), tensor(3), 1e-3), name="weight"),
            Sample((tensor(5, 3), (3,), tensor(3), 1e-3), name="weight, another batch"),
            Sample((tensor(2, 5), (5,)), name="no weight, default eps"),
            Sample((tensor(2, 2, 3), (2, 3), tensor(2, 3), 0.5), {"weight_offset": 1.0}, "two normalised axes, offset"),
            Sample((tensor(4), (4,), tensor(4)), name="no batch axis"),
            Sample((tensor(3, 1), (1,), tensor(1), 1e-2), name="rows of one"),
            Sample((tensor(0, 3), (3,), tensor(3)), name="no rows"),
            Sample((tensor(2, 0), (0,), tensor(0)), name="empty rows"),
        ],
        interpreted=("weight", "no rows"),
    ),
    "layer_norm": OpCase(
        ops.layer_norm,
        norm_op,
        _layer_norm,
        [
            Sample((tensor(2, 3), (3,), tensor(3), tensor(3).flip(0), 1e-3), name="weight and bias"),
            Sample((tensor(4, 3), (3,), tensor(3), tensor(3).flip(0), 1e-3), name="weight and bias, another batch"),
            Sample((tensor(2, 2, 2), (2, 2)), name="two normalised axes, default eps"),
            Sample((tensor(2, 1), (1,), None, tensor(1), 0.5), name="rows of one, bias only"),
            Sample((tensor(0, 3), (3,), tensor(3), tensor(3).flip(0)), name="no rows"),
        ],
        interpreted=("weight and bias",),
    ),
    "modulated_layer_norm": OpCase(
        ops.modulated_layer_norm,
        norm_op,
        _modulated_layer_norm,
        [
            Sample((tensor(2, 2, 3), tensor(2, 3), tensor(2, 1, 3), 1e-3), name="of each sample"),
            Sample((tensor(3, 2, 3), tensor(3, 3), tensor(3, 1, 3), 1e-3), name="of each sample, another batch"),
            Sample((tensor(2, 3), tensor(3), tensor(2, 3)), name="shared and full"),
        ],
        interpreted=("of each sample",),
    ),
    "modulated_rms_norm": OpCase(
        ops.modulated_rms_norm,
        norm_op,
        _modulated_rms_norm,
        [
            Sample((tensor(2, 2, 3), tensor(2, 3), tensor(2, 1, 3), 1e-3), name="of each sample"),
            Sample((tensor(3, 2, 3), tensor(3, 3), tensor(3, 1, 3), 1e-3), name="of each sample, another batch"),
            Sample((tensor(2, 3), None, tensor(2, 3)), name="no shift, full"),
        ],
        interpreted=(),  # its kernels are those of the norms above
    ),
    "add_rms_norm": OpCase(
        ops.add_rms_norm,
        add_op,
        _add_rms_norm,
        [
            Sample((tensor(2, 3), tensor(2, 3).flip(1), (3,), tensor(3), 1e-3), name="weight"),
            Sample((tensor(4, 3), tensor(4, 3).flip(1), (3,), tensor(3), 1e-3), name="weight, another batch"),
            Sample((tensor(3), tensor(3).flip(0), (3,)), name="no weight, no batch axis"),
        ],
        interpreted=("no weight, no batch axis",),
    ),
    "qk_rms_norm": OpCase(
        ops.qk_rms_norm,
        qk_op,
        _qk_rms_norm,
        [
            Sample((tensor(2, 2, 2), tensor(2, 1, 2), tensor(2), tensor(2).flip(0), 1e-3), name="weights"),
            Sample((tensor(2, 3, 2), tensor(2, 1, 2), tensor(2), tensor(2).flip(0), 1e-3), name="weights, more heads"),
            Sample((tensor(2, 2), tensor(2), None, tensor(2)), {"weight_offset": 1.0}, "one weight, one batch"),
        ],
        interpreted=("one weight, one batch",),
    ),
}
