"""Local derivatives of the largest and the smallest entry, which scatter an indicator of where it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..structure import Values
from .arguments import Arguments, for_active
from .entrywise import multiple
from .reductions import reduced_dims, weighted_sum
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


@local_rule(_aten.amax.default, _aten.amin.default, _aten.max.default, _aten.min.default)
def _shared(call: Call) -> Mapping[int, Local]:
    # entries that tie share the derivative evenly
    dims = sorted(reduced_dims(call, call.operands[0].shape))

    def weights(a: Arguments, y: Tensor) -> Tensor:
        ties = (a["self"] == y).to(y.dtype)
        return ties / ties.sum(dims, keepdim=True)

    return for_active(call, self=lambda position: weighted_sum(call, position, weights))


@local_rule(
    _aten.max.dim, _aten.min.dim, _aten.median.dim, _aten.nanmedian.dim, _aten.kthvalue.default, _aten.mode.default
)
def _chosen(call: Call) -> Mapping[int, Local]:
    # the second output says which entry was taken
    shape, dtype = call.operands[0].shape, call.output.dtype
    if not shape:
        return for_active(call, self=lambda position: multiple(call, position, 1))
    (dim,) = reduced_dims(call, shape)
    kept = (*shape[:dim], 1, *shape[dim + 1 :])
    along = (-1, *(1,) * (len(shape) - dim - 1))

    def local(position: int) -> Local:
        structure = weighted_sum(call, position, lambda a, y: y).structure

        def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
            taken = outputs[1].reshape(kept)
            places = torch.arange(shape[dim], device=taken.device).reshape(along)
            return (taken == places).to(dtype).reshape(structure.value_shape())

        return Local(structure, 0, values)

    return for_active(call, self=local)
