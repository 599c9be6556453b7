"""Local derivatives of cross products and of inverses in a stack: one small block for each vector or matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..structure import BlockDiagonal, Dense, Structure, Values
from .arguments import arguments, for_active, reader
from .indexing import check_values
from .registry import Call, Local, local_rule

_aten = torch.ops.aten


@local_rule(_aten.linalg_cross.default)
def _cross(call: Call) -> Mapping[int, Local] | None:
    # y = a × b = [a]× b = −[b]× a,   of the vectors along the last axis
    shape = call.output.shape
    if arguments(call)["dim"] not in {-1, len(shape) - 1} or any(meta.shape != shape for meta in call.operands):
        return None
    count, read = shape.numel() // 3, reader(call)

    def local(other: str, sign: int) -> Local:
        structure: Structure = Dense(3, 3) if count == 1 else BlockDiagonal(count, 3 * count, 3 * count)

        def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
            return _skew(sign * read(operands)[other].reshape(count, 3)).reshape(structure.value_shape())

        return Local(structure, 0, values)

    return for_active(call, self=lambda position: local("other", -1), other=lambda position: local("self", 1))


def _skew(vectors: Tensor) -> Tensor:
    """Return [v]× of each v in (count, 3), the matrix with [v]× u = v × u."""
    x, y, z = vectors.unbind(-1)
    nothing = torch.zeros_like(x)
    return torch.stack([nothing, -z, y, z, nothing, -x, -y, x, nothing], -1).reshape(-1, 3, 3)


@local_rule(_aten.linalg_inv_ex.default)
def _inverse(call: Call) -> Mapping[int, Local] | None:
    # Y = A⁻¹   ⇒   dY = −Y dA Y,   so   ∂y_ij/∂a_kl = −y_ik y_lj
    n = call.output.shape[-1]
    count = call.output.numel // n**2
    if count == 1:  # of one matrix the op carries vectors with less work than n⁴ entries take
        return None

    def local(position: int) -> Local:
        check_values(count * n**4)

        def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
            y = outputs[0].reshape(count, n, n)
            return -(y[:, :, None, :, None] * y.mT[:, None, :, None, :]).reshape(count, n * n, n * n)

        return Local(BlockDiagonal(count, count * n * n, count * n * n), count * n**4, values)

    return for_active(call, A=local)
