"""Local derivatives of batch normalisation with the statistics that training left: an affine map of each channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..structure import Diagonal, Gather, Values, WeightedGather
from .arguments import Arguments, arguments, for_active, reader
from .entrywise import no_values
from .indexing import Index, check_indices
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


def channel_index(shape: torch.Size) -> Index:
    """Return the channel, dimension 1, of each entry."""
    check_indices(shape.numel())
    channels = np.arange(shape[1]).reshape((1, shape[1]) + (1,) * (len(shape) - 2))
    return np.broadcast_to(channels, tuple(shape)).reshape(-1)


@local_rule(
    _aten._native_batch_norm_legit_no_training.default,
    _aten.cudnn_batch_norm.default,
    _aten.miopen_batch_norm.default,
    _aten.native_batch_norm.default,
)
def _batch_norm(call: Call) -> Mapping[int, Local] | None:
    # y = w (x − μ) r + b  with  r = (σ² + ε)^(-1/2), and μ, σ² constant
    named = arguments(call)
    if named.get("training"):
        return None
    shape, n, dtype = call.output.shape, call.output.numel, call.output.dtype
    size = (1, shape[1]) + (1,) * (len(shape) - 2)
    eps = named["eps"] if "eps" in named else named["epsilon"]
    read = reader(call)

    def factor(a: Arguments) -> Tensor:
        return (a["running_var"] + eps).rsqrt()

    def in_input(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        a = read(operands)
        slope = factor(a) if a["weight"] is None else a["weight"] * factor(a)
        return slope.to(dtype).reshape(size).expand(shape).reshape(-1)

    def in_weight(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        a = read(operands)
        centred = a["input"] - a["running_mean"].reshape(size)
        return (centred * factor(a).reshape(size)).to(dtype).reshape(-1)

    return for_active(
        call,
        input=lambda position: Local(Diagonal(n), shape[1], in_input),
        weight=lambda position: Local(WeightedGather(shape[1], channel_index(shape)), n, in_weight),
        bias=lambda position: Local(Gather(shape[1], channel_index(shape)), 0, no_values),
    )
