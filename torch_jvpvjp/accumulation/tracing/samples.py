"""Ops that treat the matrices of a batch one by one: a Jacobian without closed form that is block-diagonal.

One tangent carries a column of every sample at once, as the columns of different samples share no row. With b samples
and a block B that keeps to them, of c columns for each,

    J B = blockdiag(J_s B_s):   push (B_1; …; B_b), of c columns in all, and read the blocks off; likewise for rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..rules.registry import Meta
from ..structure import (
    Block,
    BlockDiagonal,
    Dense,
    Diagonal,
    Identity,
    Kronecker,
    ScaledIdentity,
    Structure,
    multiply,
)
from ..structures.base import csr
from .tape import TapeOp

_aten = torch.ops.aten
# Each with the n³ that one tangent takes by PyTorch's formula: Q̇ and Ṙ are four products or solves, and the exponential
# of a matrix has its tangent in that of one twice as large, some six products of (2n)³.
_CUBES_OF_MATRICES = {
    "_linalg_det": 1, "_linalg_eigh": 2, "_linalg_eigvals": 3, "_linalg_slogdet": 1, "_linalg_svd": 4, "cholesky": 3,
    "cholesky_inverse": 3, "linalg_cholesky_ex": 3, "linalg_eig": 3, "linalg_inv_ex": 2, "linalg_lu": 3,
    "linalg_lu_factor_ex": 3, "linalg_matrix_exp": 48, "linalg_qr": 4,
}  # fmt: skip
_OF_MATRICES: dict[Any, int] = {  # 2.15 has no `cholesky` any more
    getattr(_aten, name).default: cubes for name, cubes in _CUBES_OF_MATRICES.items() if hasattr(_aten, name)
}
_OF_PAIRS = frozenset({
    _aten._cdist_forward.default, _aten.bmm.default, _aten.cholesky_solve.default, _aten.linalg_lu_solve.default,
    _aten.linalg_solve_triangular.default, _aten.triangular_solve.default,
})  # fmt: skip
_SOLVES = frozenset({
    _aten._linalg_solve_ex.default, _aten.cholesky_solve.default, _aten.linalg_lu_solve.default,
    _aten.linalg_solve_triangular.default, _aten.triangular_solve.default,
})  # fmt: skip
_MOST_LISTED = 1_000_000  # entries of a pattern that is looked at


def samples_of(op: TapeOp, metas: dict[int, Meta], outputs: Sequence[int]) -> int:
    """Return how many samples an op treats one by one; 1 where it is not known to, or there is one."""
    axes = _batch_axes(op, metas, outputs[0])
    batch = metas[outputs[0]].shape[: max(axes, 0)]
    shared = all(metas[index].shape[:axes] == batch for index in (*op.active, *outputs))
    return batch.numel() if axes > 0 and shared else 1


def _batch_axes(op: TapeOp, metas: dict[int, Meta], output: int) -> int:
    if op.target in _OF_MATRICES:
        return len(metas[op.operands[0]].shape) - 2
    if op.target in _OF_PAIRS:
        return len(metas[output].shape) - 2
    if op.target is _aten._linalg_solve_ex.default:
        matrix, right = (metas[index].shape for index in op.operands[:2])
        of_vectors = len(right) == 1 or (len(right) == len(matrix) - 1 and right == matrix[:-1])
        return len(metas[output].shape) - (1 if of_vectors else 2)
    return 0


def fma_of_tangent(op: TapeOp, metas: dict[int, Meta], output: int) -> int | None:
    """Return the fma of one tangent or cotangent of an op of linear algebra; None for any other.

    Those of solves are a solve and a product with the right sides, of n² each for a column.
    """
    complexity = 4 if metas[output].dtype.is_complex else 1
    shape = metas[op.operands[0]].shape
    if op.target in _OF_MATRICES:
        return complexity * _OF_MATRICES[op.target] * shape.numel() * min(shape[-2:])
    if op.target in _SOLVES:
        return complexity * len(op.active) * metas[output].shape.numel() * metas[op.operands[0]].shape[-1]
    return None


@lru_cache(maxsize=1024)
def keeps_to_samples(structure: Structure, samples: int) -> bool:
    """Return whether a matrix is block-diagonal in so many blocks of one shape."""
    if samples < 2 or structure.m % samples or structure.n % samples or isinstance(structure, Dense):
        return False
    if isinstance(structure, (Identity, ScaledIdentity, Diagonal)):
        return True
    if isinstance(structure, BlockDiagonal):
        return structure.b % samples == 0
    if isinstance(structure, Kronecker):
        return keeps_to_samples(structure.left, samples)
    if not (structure.listed or structure.constant) or structure.entries > _MOST_LISTED:
        return False
    indptr, columns = csr(structure)
    rows = np.repeat(np.arange(structure.m), np.diff(indptr))
    return np.array_equal(rows // (structure.m // samples), columns // (structure.n // samples))


def in_samples(samples: int, m: int, n: int) -> Structure:
    """Return the structure of a matrix that keeps to samples: dense, where there is one."""
    return Dense(m, n) if samples == 1 else BlockDiagonal(samples, m, n)


def columns_of_samples(block: Block, samples: int, like: Tensor) -> Tensor:
    """Return the blocks of a matrix that keeps to samples under one another, (m, columns of one)."""
    count = block.structure.n // samples
    units = torch.eye(count, dtype=like.dtype, device=like.device).repeat(samples, 1)
    return multiply(block, Block(Dense(*units.shape), units)).dense()


def rows_of_samples(block: Block, samples: int, like: Tensor) -> Tensor:
    """Return the blocks of a matrix that keeps to samples beside one another, (rows of one, n)."""
    count = block.structure.m // samples
    units = torch.eye(count, dtype=like.dtype, device=like.device).repeat(1, samples)
    return multiply(Block(Dense(*units.shape), units), block).dense()


def from_columns(columns: Tensor, samples: int) -> Block:
    """Return the matrix whose blocks stand under one another."""
    m, count = columns.shape
    structure = in_samples(samples, m, samples * count)
    return Block(structure, columns if samples == 1 else columns.reshape(samples, m // samples, count))


def from_rows(rows: Tensor, samples: int) -> Block:
    """Return the matrix whose blocks stand beside one another."""
    count, n = rows.shape
    structure = in_samples(samples, samples * count, n)
    return Block(structure, rows if samples == 1 else rows.reshape(count, samples, n // samples).transpose(0, 1))
