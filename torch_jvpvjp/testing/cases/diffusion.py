"""Rows of group norm and of the small ops of diffusion models."""

from math import prod

import torch
from torch import Tensor

from ... import ops
from ...ops._axis_norm import op as axis_norm_op
from ...ops.dyt import op as dyt_op
from ...ops.fourier_features import op as fourier_features_op
from ...ops.gated_residual import op as gated_residual_op
from ...ops.group_norm import op as group_norm_op
from ...ops.timestep_embedding import op as timestep_embedding_op
from ..case import Sample
from .case_row import OpCase, tensor


def _group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    """Group norm by its definition; PyTorch's own fails or errs in several of its derivatives."""
    rows = x.reshape(x.shape[0], num_groups, x.shape[1] // num_groups, prod(x.shape[2:]))
    axes = (-2, -1)
    variance = (rows - rows.mean(axes, keepdim=True)).pow(2).mean(axes, keepdim=True)
    y = ((rows - rows.mean(axes, keepdim=True)) / (variance + eps).sqrt()).reshape(x.shape)
    channels = (-1, *(1,) * (x.dim() - 2))
    y = y if weight is None else y * weight.reshape(channels)
    y = y if bias is None else y + bias.reshape(channels)
    return y * y.sigmoid() if activation == "silu" else y


def _gated_residual(x: Tensor, gate: Tensor, h: Tensor) -> Tensor:
    return x + (gate.unsqueeze(1) if gate.dim() == 2 else gate) * h


def _timestep_embedding(
    timesteps: Tensor,
    dim: int,
    *,
    max_period: float = 10000.0,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 0,
    scale: float = 1.0,
) -> Tensor:
    half = dim // 2
    steps = torch.arange(half, dtype=timesteps.dtype, device=timesteps.device)
    phase = scale * timesteps.unsqueeze(-1) * torch.pow(max_period, -steps / (half - downscale_freq_shift))
    first, second = (phase.cos(), phase.sin()) if flip_sin_to_cos else (phase.sin(), phase.cos())
    return torch.nn.functional.pad(torch.cat([first, second], -1), (0, dim % 2))


def _fourier_features(x: Tensor, frequencies: Tensor) -> Tensor:
    wide = x.unsqueeze(-1) if frequencies.dim() == 1 else x
    f = frequencies.unsqueeze(-1) if frequencies.dim() == 1 else frequencies
    phase = 2 * torch.pi * (wide.unsqueeze(-2) * f).sum(-1)
    return torch.cat([phase.cos(), phase.sin()], -1)


def _dyt(x: Tensor, alpha: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    y = (alpha * x).tanh()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _l2_norm(x: Tensor, dim: int = -1, eps: float = 1e-12) -> Tensor:
    """By its definition."""
    norm = x.pow(2).sum(dim, keepdim=True).sqrt()
    return x / torch.where(norm < eps, eps, norm)


def _pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    return x / (x.pow(2).sum(dim, keepdim=True) / max(x.shape[dim], 1) + eps).sqrt()


CASES: dict[str, OpCase] = {
    "group_norm": OpCase(
        ops.group_norm,
        group_norm_op,
        _group_norm,
        [
            # One group and several; with and without weight, bias and activation; sites none, one axis, two; odd sizes.
            Sample((tensor(2, 2, 2), 1, tensor(2), tensor(2), 1e-3), name="affine"),
            Sample((tensor(3, 2, 2), 1, tensor(2), tensor(2), 1e-3), name="affine, another batch"),
            Sample((tensor(1, 4, 1, 3), 2), {"activation": "silu"}, name="SiLU on an image, two groups"),
            Sample((tensor(0, 2, 2), 1, tensor(2), tensor(2)), name="no samples"),
        ],
        interpreted=("affine",),
    ),
    "dyt": OpCase(
        ops.dyt,
        dyt_op,
        _dyt,
        [
            Sample((tensor(2, 3), tensor(), tensor(3), tensor(3)), name="weight and bias"),
            Sample((tensor(3, 2), tensor(), tensor(2), tensor(2)), name="weight and bias, other sizes"),
            Sample((tensor(1, 2, 2), tensor(1)), name="neither"),
            Sample((tensor(0, 3), tensor(), tensor(3), None), name="no rows, no bias"),
        ],
        interpreted=("weight and bias",),
    ),
    "gated_residual": OpCase(
        ops.gated_residual,
        gated_residual_op,
        _gated_residual,
        [
            # A gate for each sample and channel in both spellings, one for each sample; one token, and none.
            Sample((tensor(2, 2, 1), tensor(2, 1), tensor(2, 2, 1)), name="one per sample and channel"),
            Sample((tensor(2, 3, 1), tensor(2, 1), tensor(2, 3, 1)), name="one per sample and channel, more tokens"),
            Sample((tensor(1, 2, 3), tensor(1, 1, 1), tensor(1, 2, 3)), name="one per sample"),
            Sample((tensor(2, 0, 3), tensor(2, 1, 3), tensor(2, 0, 3)), name="no tokens"),
        ],
        interpreted=("one per sample and channel",),
    ),
    "l2_norm": OpCase(
        ops.l2_norm,
        axis_norm_op,
        _l2_norm,
        [
            # Vectors along the last axis and an inner one; some shorter than eps; vectors of one element.
            Sample((tensor(2, 3),), name="last axis"),
            Sample((tensor(3, 2),), name="last axis, other sizes"),
            Sample((tensor(1, 3, 2), 1, 1.5), name="middle axis, some below eps"),
            Sample((tensor(0, 3),), name="no vectors"),
        ],
        interpreted=("middle axis, some below eps",),
    ),
    "pixel_norm": OpCase(
        ops.pixel_norm,
        axis_norm_op,
        _pixel_norm,
        [
            Sample((tensor(2, 2, 2),), name="channels"),
            Sample((tensor(2, 3, 2),), name="channels, other sizes"),
            Sample((tensor(2, 3), -1, 0.5), name="last axis"),
            Sample((tensor(2, 0),), name="empty vectors"),
        ],
        interpreted=("channels",),
    ),
    "timestep_embedding": OpCase(
        ops.timestep_embedding,
        timestep_embedding_op,
        _timestep_embedding,
        [
            # Sines first and cosines first; even and odd widths; one axis, two, none.
            Sample((tensor(2), 4), name="even"),
            Sample((tensor(3), 4), name="even, more timesteps"),
            Sample(
                (tensor(1, 2), 5),
                {"max_period": 100.0, "flip_sin_to_cos": True, "downscale_freq_shift": 1, "scale": 0.5},
                name="odd, cosines first",
            ),
            Sample((tensor(0), 2), name="no timesteps"),
        ],
        interpreted=("odd, cosines first",),
    ),
    "fourier_features": OpCase(
        ops.fourier_features,
        fourier_features_op,
        _fourier_features,
        [
            Sample((tensor(2, 2), tensor(2, 2)), name="rows"),
            Sample((tensor(3, 2), tensor(2, 2)), name="rows, other sizes"),
            Sample((tensor(1, 2), tensor(2)), name="numbers"),
            Sample((tensor(0, 3), tensor(2, 3)), name="no rows"),
        ],
        interpreted=("rows",),
    ),
}
