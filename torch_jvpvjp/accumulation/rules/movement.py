"""Local derivatives of ops that only move entries: views, slices, permutations, joins, pads, masks.

The op is run on the numbers of the entries, from 1, with 0 in the place of whatever is no entry of the operand: row r
of the Jacobian has its single 1 in the column whose number comes out at r.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..structure import Diagonal, Gather, Identity, Scatter, Values, WeightedGather, Zero
from .arguments import arguments, for_every_active, rerun
from .entrywise import no_values, zero
from .indexing import MOST_INDICES, Index, check_indices, unrecorded
from .registry import Call, Local, Through, local_rule

_aten = torch.ops.aten


RESHAPES = (
    _aten._reshape_alias.default,
    _aten._reshape_copy.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.squeeze_copy.default,
    _aten.squeeze_copy.dim,
    _aten.squeeze_copy.dims,
    _aten.unsqueeze.default,
    _aten.unsqueeze_copy.default,
    _aten.view.default,
    _aten.view_copy.default,
)


@local_rule(*RESHAPES)
def _reshape(call: Call) -> Mapping[int, Local]:
    # entries keep their order
    return {position: Local(Identity(call.output.numel), 0, no_values) for position in call.active}


MOVEMENTS = (
    _aten.as_strided_scatter.default,
    _aten.cat.default,
    _aten.channel_shuffle.default,
    _aten.constant_pad_nd.default,
    _aten.diag_embed.default,
    _aten.diagonal.default,
    _aten.diagonal_copy.default,
    _aten.diagonal_scatter.default,
    _aten.expand.default,
    _aten.expand_copy.default,
    _aten.flip.default,
    _aten.im2col.default,
    _aten.permute.default,
    _aten.permute_copy.default,
    _aten.pixel_shuffle.default,
    _aten.pixel_unshuffle.default,
    _aten.reflection_pad1d.default,
    _aten.reflection_pad2d.default,
    _aten.reflection_pad3d.default,
    _aten.repeat.default,
    _aten.replication_pad1d.default,
    _aten.replication_pad2d.default,
    _aten.replication_pad3d.default,
    _aten.roll.default,
    _aten.rot90.default,
    _aten.select.int,
    _aten.select_copy.int,
    _aten.select_scatter.default,
    _aten.slice.Tensor,
    _aten.slice_copy.Tensor,
    _aten.stack.default,
    _aten.t.default,
    _aten.t_copy.default,
    _aten.transpose.int,
    _aten.transpose_copy.int,
    _aten.tril.default,
    _aten.triu.default,
    _aten.unfold.default,
    _aten.unfold_copy.default,
)

PIECES = (
    _aten.split.Tensor,
    _aten.split_copy.Tensor,
    _aten.split_with_sizes.default,
    _aten.split_with_sizes_copy.default,
    _aten.unbind.int,
    _aten.unbind_copy.int,
    _aten.unsafe_split.Tensor,
    _aten.unsafe_split_with_sizes.default,
    _aten.unsafe_chunk.default,
    _aten.chunk.default,
)


@local_rule(*MOVEMENTS)
@local_rule(*PIECES, every_output=True)
def _movement(call: Call) -> Mapping[int, Local] | None:
    if sum(meta.numel for meta in call.operands) > MOST_INDICES or call.output.numel > MOST_INDICES:
        return None
    return for_every_active(call, lambda position: _moved(call, position))


@local_rule(_aten.slice_scatter.default)
def _written_slice(call: Call) -> Mapping[int, Local] | None:
    # y = x, but v in a slice of it; PyTorch's batched derivatives of that go vector by vector
    found = _movement(call)
    if found is None:
        return None
    named, (whole, written) = arguments(call), call.operands
    place = named["dim"] % len(whole.shape) + 1, named["start"], named["end"], named["step"]

    def put(vectors: Tensor, into: Tensor) -> Tensor:
        return _aten.slice_scatter.default(into, vectors.reshape(-1, *written.shape), *place).reshape(-1, whole.numel)

    def emptied(operands: Sequence[Tensor], outputs: Sequence[Tensor], vectors: Tensor) -> Tensor:
        nothing = vectors.new_zeros(vectors.shape[0], written.numel)
        return put(nothing, vectors.reshape(-1, *whole.shape))

    def placed(operands: Sequence[Tensor], outputs: Sequence[Tensor], vectors: Tensor) -> Tensor:
        return put(vectors, vectors.new_zeros(vectors.shape[0], *whole.shape))

    def read(operands: Sequence[Tensor], outputs: Sequence[Tensor], vectors: Tensor) -> Tensor:
        sliced = _aten.slice.Tensor(vectors.reshape(-1, *whole.shape), *place)
        return sliced.reshape(-1, written.numel)

    ways = {"self": Through(0, emptied, emptied), "src": Through(0, placed, read)}
    through = {named[name].position: way for name, way in ways.items()}
    return {
        position: local if isinstance(local.structure, (Zero, Identity)) else local._replace(through=through[position])
        for position, local in found.items()
    }


def _moved(call: Call, position: int) -> Local:
    index, n = _numbers(call, position), call.operands[position].numel
    present = index >= 0
    if present.all():
        same = index.size == n and np.array_equal(index, np.arange(n))
        return Local(Identity(n) if same else Gather(n, index), 0, no_values)
    if not present.any():
        return zero(call, position)
    rows = np.flatnonzero(present)
    if rows.size == n and np.unique(index[rows]).size == n:  # every entry goes to one place of its own
        places = np.empty(n, dtype=np.int64)
        places[index[rows]] = rows
        return Local(Scatter(index.size, places), 0, no_values)
    return _masked(call, position, index)


def _masked(call: Call, position: int, index: Index) -> Local:
    """Return the derivative where entries are lost and places filled: the op itself, run on ones, marks its rows."""
    n = call.operands[position].numel
    rows = np.flatnonzero(index >= 0)
    structure = (
        Diagonal(n)
        if index.size == n and np.array_equal(index[rows], rows)
        else WeightedGather(n, np.maximum(index, 0))
    )

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        marked = [
            torch.ones_like(operand) if place == position else torch.zeros_like(operand)
            for place, operand in enumerate(operands)
        ]
        return rerun(call, marked, **_fill_with_zero(call)).reshape(-1)

    return Local(structure, 0, values)


def _numbers(call: Call, position: int) -> Index:
    """Return which entry of an operand comes out at each place of the output, and -1 where none does."""
    check_indices(call.output.numel)
    with unrecorded():
        tensors = [torch.zeros(meta.shape, dtype=torch.float64, device="cpu") for meta in call.operands]
        shape = call.operands[position].shape
        tensors[position] = torch.arange(1, shape.numel() + 1, dtype=torch.float64, device="cpu").reshape(shape)
        out = rerun(call, tensors, **_fill_with_zero(call))
        return out.reshape(-1).long().numpy() - 1


def _fill_with_zero(call: Call) -> dict[str, int]:
    return {"value": 0} if "value" in arguments(call) else {}
