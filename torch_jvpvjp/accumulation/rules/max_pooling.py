"""Local derivatives of max pooling: of the entries of each window, the indicator of the one that was taken.

The pattern, all the windows, is known before any run; which entry of each is 1 stands in the second output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..structure import Pattern, Structure, Values, WeightedScatter
from ..structures.index import frozen
from .arguments import arguments, for_active
from .indexing import MOST_PATTERN, check_values
from .registry import Call, Local, local_rule
from .resampling import each_dimension

_aten = torch.ops.aten


def _windows(call: Call, axis: int, size: int, count: int) -> sparse.csr_array:
    """Return which positions (columns) the windows (rows) of one dimension cover."""
    a = arguments(call)
    kernel = each_dimension(a["kernel_size"], axis)
    stride = each_dimension(a["stride"], axis) if len(a["stride"]) else kernel
    p, t = np.arange(count)[:, None], np.arange(kernel)[None, :]
    c = p * stride - each_dimension(a["padding"], axis) + t * each_dimension(a["dilation"], axis)
    inside = (c >= 0) & (c < size)
    rows = np.broadcast_to(p, c.shape)[inside]
    return sparse.csr_array((np.ones(rows.size), (rows, c[inside])), shape=(count, size))


@local_rule(_aten.max_pool2d_with_indices.default, _aten.max_pool3d_with_indices.default)
def _max_pool(call: Call) -> Mapping[int, Local]:
    return for_active(call, self=lambda position: _local(call, position))


def _local(call: Call, position: int) -> Local:
    spatial = 2 if call.target == _aten.max_pool2d_with_indices.default else 3
    before, after = call.operands[position].shape[-spatial:], call.output.shape[-spatial:]
    factors = [_windows(call, axis, before[axis], after[axis]) for axis in range(spatial)]
    channels = call.output.numel // after.numel()
    check_values(channels * int(np.prod([factor.nnz for factor in factors])), MOST_PATTERN)
    full = reduce(lambda left, right: sparse.kron(left, right, format="csr"), factors, sparse.eye_array(channels))
    matrix = sparse.csr_array(full)
    matrix.sort_indices()
    columns, counts = matrix.indices.astype(np.int64), np.diff(matrix.indptr)
    m, n = call.output.numel, call.operands[position].numel
    rows = np.repeat(np.arange(m), counts)
    structure: Structure = Pattern(m, n, frozen(matrix.indptr), frozen(columns))
    if columns.size == n and np.unique(columns).size == n:  # windows that do not overlap
        order = np.argsort(columns)
        rows, columns = rows[order], columns[order]
        structure = WeightedScatter(m, frozen(rows))
    of_entry, place, dtype = frozen(rows), frozen(columns % before.numel()), call.output.dtype

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        taken = of_entry.take(outputs[1].reshape(-1), 0)
        return (taken == place.tensor(taken.device)).to(dtype)

    return Local(structure, 0, values)
