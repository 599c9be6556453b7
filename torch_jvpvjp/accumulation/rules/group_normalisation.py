"""Local derivatives of group normalisation: a layer norm of each group of channels, which lie next to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..structure import Gather, Values, WeightedGather
from .arguments import Arguments, arguments, for_active, reader
from .batch_normalisation import channel_index
from .entrywise import no_values
from .normalisation import Rows, in_input, normalise_rows
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


@local_rule(_aten.native_group_norm.default)
def _group_norm(call: Call) -> Mapping[int, Local]:
    # rows are (sample, group), w and b stand for a channel
    a = arguments(call)
    samples, channels, positions, groups = a["N"], a["C"], a["HxW"], a["group"]
    rows, n = samples * groups, channels // groups * positions
    read = reader(call)

    def normalise(a: Arguments) -> Rows:
        return normalise_rows(a["input"].reshape(rows, n), a["eps"], centred=True)

    def weight(w: Tensor) -> Tensor:
        return w.reshape(1, channels, 1).expand(samples, channels, positions).reshape(rows, n)

    def in_weight(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        return normalise(read(operands)).normalised.reshape(-1)

    shape, size = call.output.shape, call.output.numel
    return for_active(
        call,
        input=lambda position: in_input(call, normalise, rows, n, centred=True, weight=weight),
        weight=lambda position: Local(WeightedGather(channels, channel_index(shape)), 4 * size, in_weight),
        bias=lambda position: Local(Gather(channels, channel_index(shape)), 0, no_values),
    )
