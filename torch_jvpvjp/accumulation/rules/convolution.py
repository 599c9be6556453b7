"""Local derivatives of convolutions: a sparse Toeplitz matrix of the weight, or the unfolded input.

Output position p and tap t of the kernel meet at the input position  c = p · stride − padding + t · dilation;
transposed, input position p and tap t meet at the output position c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from ..structure import Dense, Gather, Identity, Kronecker, Pattern, Values
from ..structures.index import frozen
from .arguments import arguments, for_active, reader
from .batch_normalisation import channel_index
from .entrywise import no_values
from .indexing import MOST_PATTERN, Index, check_values
from .products import shape_of
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Convolution:
    """The sizes of one: `near` is the side whose positions the kernel is laid over, `far` the one it reaches into."""

    samples: int
    groups: int
    near_channels: int  # in a group
    far_channels: int
    near: tuple[int, ...]
    far: tuple[int, ...]
    kernel: tuple[int, ...]

    @property
    def meetings(self) -> int:
        """An upper bound of the entries of J."""
        near, kernel = int(np.prod(self.near)), int(np.prod(self.kernel))
        return self.samples * self.groups * self.near_channels * self.far_channels * near * kernel


def _sizes(call: Call) -> _Convolution:
    x, w, y = shape_of(call, "input"), shape_of(call, "weight"), call.output.shape
    near, far = (x, y) if arguments(call)["transposed"] else (y, x)
    groups = arguments(call)["groups"]
    return _Convolution(
        x[0], groups, near[1] // groups, far[1] // groups, tuple(near[2:]), tuple(far[2:]), tuple(w[2:])
    )


def _per_dimension(values: Sequence[int], count: int) -> list[int]:
    return list(values) if len(values) == count else [values[0]] * count


def _reached(call: Call, sizes: _Convolution) -> tuple[Index, npt.NDArray[np.bool_]]:
    """Return where each (position, tap) reaches on the far side, and whether that is inside; each (near…, kernel…)."""
    a, count = arguments(call), len(sizes.kernel)
    where, inside = np.zeros((1,) * (2 * count), dtype=np.int64), np.ones((1,) * (2 * count), dtype=np.bool_)
    strides = _per_dimension(a["stride"], count)
    pads, dilations = _per_dimension(a["padding"], count), _per_dimension(a["dilation"], count)
    for axis in range(count):
        p, t = np.arange(sizes.near[axis])[:, None], np.arange(sizes.kernel[axis])[None, :]
        c = p * strides[axis] - pads[axis] + t * dilations[axis]
        spread = [1] * (2 * count)
        spread[axis], spread[count + axis] = c.shape
        where = where * sizes.far[axis] + c.reshape(spread)
        inside = inside & ((c >= 0) & (c < sizes.far[axis])).reshape(spread)
    return where, inside


def _toeplitz(call: Call, sizes: _Convolution) -> tuple[Index, Index, Index]:
    """Return the entries of J in CSR order: row pointers, columns, and which entry of the weight each one is."""
    where, inside = _reached(call, sizes)
    near, far, taps = int(np.prod(sizes.near)), int(np.prod(sizes.far)), int(np.prod(sizes.kernel))
    s, g, i, p, j, t = np.ix_(
        *map(np.arange, (sizes.samples, sizes.groups, sizes.near_channels, near, sizes.far_channels, taps))
    )
    reach = where.reshape(near, 1, taps)  # (p, j, t)
    near_entry = ((s * sizes.groups + g) * sizes.near_channels + i) * near + p
    far_entry = ((s * sizes.groups + g) * sizes.far_channels + j) * far + reach
    # the weight is (near channels of all groups, far channels of one, taps) either way round
    weight = ((g * sizes.near_channels + i) * sizes.far_channels + j) * taps + t
    shape = np.broadcast_shapes(near_entry.shape, far_entry.shape)
    kept = np.broadcast_to(inside.reshape(near, 1, taps), shape)
    near_entry, far_entry, weight = (np.broadcast_to(part, shape)[kept] for part in (near_entry, far_entry, weight))
    rows, columns = (far_entry, near_entry) if arguments(call)["transposed"] else (near_entry, far_entry)
    size = (call.output.numel, shape_of(call, "input").numel())
    numbered = sparse.coo_array((weight + 1, (rows, columns)), shape=size).tocsr()  # from 1: a 0 could be dropped
    numbered.sort_indices()
    return numbered.indptr.astype(np.int64), numbered.indices.astype(np.int64), numbered.data.astype(np.int64) - 1


def _in_input(call: Call) -> Local:
    sizes = _sizes(call)
    check_values(sizes.meetings, MOST_PATTERN)
    indptr, columns, weight = _toeplitz(call, sizes)
    index, read = frozen(weight), reader(call)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        return index.take(read(operands)["weight"].reshape(-1), 0)

    structure = Pattern(call.output.numel, shape_of(call, "input").numel(), frozen(indptr), frozen(columns))
    return Local(structure, 0, values)


def _in_weight(call: Call) -> Local | None:
    """Return the derivative in the weight of one sample: each output channel sees the same unfolded input."""
    sizes = _sizes(call)
    if sizes.samples != 1 or sizes.groups != 1 or arguments(call)["transposed"]:
        return None
    where, inside = _reached(call, sizes)
    near, far, taps = int(np.prod(sizes.near)), int(np.prod(sizes.far)), int(np.prod(sizes.kernel))
    check_values(near * sizes.far_channels * taps)
    outside = sizes.far_channels * far  # a zero that is put after the last entry
    channel = np.arange(sizes.far_channels)[None, :, None] * far
    reach = np.where(inside.reshape(near, 1, taps), channel + where.reshape(near, 1, taps), outside)
    index, read, width = frozen(reach.reshape(-1)), reader(call), sizes.far_channels * taps

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        x = torch.nn.functional.pad(read(operands)["input"].reshape(-1), (0, 1))
        unfolded = index.take(x, 0).reshape(near, width)
        return unfolded if sizes.near_channels == 1 else ((), unfolded)

    block = Dense(near, width)
    return Local(block if sizes.near_channels == 1 else Kronecker(Identity(sizes.near_channels), block), 0, values)


@local_rule(_aten.convolution.default)
def _convolution(call: Call) -> Mapping[int, Local]:
    shape = call.output.shape
    return for_active(
        call,
        input=lambda position: _in_input(call),
        weight=lambda position: _in_weight(call),
        bias=lambda position: Local(Gather(shape[1], channel_index(shape)), 0, no_values),
    )
