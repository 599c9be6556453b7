"""Local derivatives of average pooling and upsampling: a constant sparse matrix for each spatial dimension.

These ops are linear and work dimension by dimension on every channel alike, so that  J = I ⊗ A₁ ⊗ … ⊗ A_d.  Each small
A_i is read off the op itself, run on the unit vectors of one dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ..structure import Gather, Pattern, Structure, Values, WeightedScatter
from ..structures.index import frozen
from .arguments import arguments, for_active
from .entrywise import no_values
from .indexing import MOST_PATTERN, Index, check_values, unrecorded
from .registry import Call, Local, local_rule

_aten = torch.ops.aten

_OneDimension = Callable[[Tensor, int], Tensor]  # (unit vectors (n, 1, n), dimension) -> their images (n, 1, m)


def _local(call: Call, position: int, spatial: int, run: _OneDimension, scale: float = 1.0) -> Local:
    sizes = call.operands[position].shape[-spatial:]
    with unrecorded():
        factors = [_matrix(run, size, dimension) for dimension, size in enumerate(sizes)]
    channels = call.output.numel // call.output.shape[-spatial:].numel()
    check_values(channels * math.prod(factor.nnz for factor in factors), MOST_PATTERN)
    full = reduce(lambda left, right: sparse.kron(left, right, format="csr"), factors, sparse.eye_array(channels))
    return _constant_matrix(call, position, sparse.csr_array(full) * scale)


def _matrix(run: _OneDimension, size: int, dimension: int) -> sparse.csr_array:
    units = torch.eye(size, dtype=torch.float64, device="cpu").unsqueeze(1)
    return sparse.csr_array(run(units, dimension).squeeze(1).numpy().T)


def _constant_matrix(call: Call, position: int, matrix: sparse.csr_array) -> Local:
    """Return the derivative of a linear op, a constant sparse matrix, in the simplest structure that holds it."""
    matrix.sort_indices()
    m, n = call.output.numel, call.operands[position].numel
    indptr, columns, entries = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data
    each_row_one = matrix.nnz == m and bool((np.diff(indptr) == 1).all())
    if each_row_one and bool((entries == 1).all()):
        return Local(Gather(n, frozen(columns)), 0, no_values)
    structure: Structure = Pattern(m, n, frozen(indptr), frozen(columns))
    if matrix.nnz == n and np.unique(columns).size == n:  # windows that do not overlap
        order = np.argsort(columns)
        structure, entries = WeightedScatter(m, frozen(_rows(indptr)[order])), entries[order]
    return Local(structure, 0, _constant_values(call, entries))


def _rows(indptr: Index) -> Index:
    return np.repeat(np.arange(indptr.size - 1), np.diff(indptr))


def _constant_values(
    call: Call, entries: np.ndarray[Any, Any]
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Values]:
    dtype, first, count = call.output.dtype, float(entries[0]), entries.size
    if bool((entries == first).all()):
        return lambda operands, outputs: outputs[0].new_full((count,), first)
    made: dict[torch.device, Tensor] = {}

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        device = outputs[0].device
        constant = made.get(device)
        if constant is None:
            constant = torch.from_numpy(entries).to(device=device, dtype=dtype)
            if type(constant) is Tensor and not is_functorch_wrapped_tensor(constant):  # one that outlives its mode
                made[device] = constant
        return constant

    return values


def each_dimension(value: int | Sequence[int], dimension: int) -> int:
    """Return what a parameter says of one dimension: one entry stands for all."""
    if isinstance(value, int):
        return value
    return value[dimension] if len(value) > 1 else value[0]


@local_rule(_aten.avg_pool1d.default, _aten.avg_pool2d.default, _aten.avg_pool3d.default)
def _average_pool(call: Call) -> Mapping[int, Local]:
    a = arguments(call)
    spatial = int(call.target._schema.name[-2])
    divisor = a.get("divisor_override")

    def run(units: Tensor, dimension: int) -> Tensor:
        size = each_dimension(a["kernel_size"], dimension)
        stride = each_dimension(a["stride"], dimension) if len(a["stride"]) else size
        pads, ceil = each_dimension(a["padding"], dimension), a["ceil_mode"]
        out = _aten.avg_pool1d(units, [size], [stride], [pads], ceil, a["count_include_pad"])
        return out if divisor is None else (out != 0).to(out.dtype)  # the sum, which one divisor divides

    scale = 1.0 if divisor is None else 1 / divisor
    return for_active(call, self=lambda position: _local(call, position, spatial, run, scale))


@local_rule(
    _aten._adaptive_avg_pool2d.default,
    _aten._adaptive_avg_pool3d.default,
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool2d.default,
    _aten.adaptive_avg_pool3d.default,
)
def _adaptive_average_pool(call: Call) -> Mapping[int, Local]:
    spatial = len(arguments(call)["output_size"])
    sizes = call.output.shape[-spatial:]
    return for_active(
        call,
        self=lambda position: _local(
            call, position, spatial, lambda units, dimension: _aten.adaptive_avg_pool1d(units, [sizes[dimension]])
        ),
    )


_INTERPOLATIONS: dict[str, Callable[[Tensor, int, float | None, bool], Tensor]] = {
    "nearest": lambda x, size, scale, corners: _aten.upsample_nearest1d(x, [size], scale),
    "nearest_exact": lambda x, size, scale, corners: _aten._upsample_nearest_exact1d(x, [size], scale),
    "linear": lambda x, size, scale, corners: _aten.upsample_linear1d(x, [size], corners, scale),
    "cubic": lambda x, size, scale, corners: _aten.upsample_bicubic2d(
        x.unsqueeze(3), [size, 1], corners, scale, 1.0
    ).squeeze(3),
}


def _upsampling(kind: str, spatial: int) -> Callable[[Call], Mapping[int, Local]]:
    interpolate = _INTERPOLATIONS[kind]

    def rule(call: Call) -> Mapping[int, Local]:
        a = arguments(call)
        scales = [a["scales"]] if spatial == 1 else [a[f"scales_{axis}"] for axis in "dhw"[3 - spatial :]]
        sizes = call.output.shape[-spatial:]

        def run(units: Tensor, dimension: int) -> Tensor:
            return interpolate(units, sizes[dimension], scales[dimension], a.get("align_corners", False))

        return for_active(call, self=lambda position: _local(call, position, spatial, run))

    return rule


for _target, _kind, _spatial in (
    (_aten.upsample_nearest1d.default, "nearest", 1),
    (_aten.upsample_nearest2d.default, "nearest", 2),
    (_aten.upsample_nearest3d.default, "nearest", 3),
    (_aten._upsample_nearest_exact1d.default, "nearest_exact", 1),
    (_aten._upsample_nearest_exact2d.default, "nearest_exact", 2),
    (_aten._upsample_nearest_exact3d.default, "nearest_exact", 3),
    (_aten.upsample_linear1d.default, "linear", 1),
    (_aten.upsample_bilinear2d.default, "linear", 2),
    (_aten.upsample_trilinear3d.default, "linear", 3),
    (_aten.upsample_bicubic2d.default, "cubic", 2),
):
    local_rule(_target)(_upsampling(_kind, _spatial))
