"""How the product of two plain structures is computed: differentiable PyTorch ops on the values."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from .algebra import cost
from .base import Structure, Values, coordinates, csr, entry_positions
from .blocks import BlockDiagonal, Pool, Stacked
from .canonical import block_count, nested
from .dense import Dense, Diagonal, ScaledIdentity, has_columns_in_front
from .factored import first_tensor
from .index import Index, frozen
from .selection import Gather, Scatter, WeightedGather, WeightedScatter

Apply = Callable[[Any, Any], Values]

DENSE_IS_FASTER = 32
"""A GEMM does so many multiply-adds in the time in which indexed entries are multiplied and added once."""

PAIRS_HELD = 2**25
"""The most pairs of entries of which the positions are kept; a product with more goes through dense matrices."""


def apply_product(left: Structure, right: Structure, result: Structure) -> Apply:
    """The function from the values of A and B to those of A B.

    Args:
        left: Plain structure of A.
        right: Plain structure of B.
        result: Structure of A B.

    Returns:
        The function.
    """
    if result.constant:
        return lambda a, b: ()
    match left, right:
        case (ScaledIdentity(), ScaledIdentity()):
            return lambda a, b: a * b
        case (Diagonal() | ScaledIdentity(), _):
            return lambda a, b: _scale_rows(a, right, b, result)
        case (_, Diagonal() | ScaledIdentity()):
            return lambda a, b: _scale_columns(left, a, b, result)
        case (_, Stacked()) if block_count(left) is not None and right.b % (block_count(left) or 1) == 0:
            return lambda a, b: _times_stacked(left, a, right, b)
        case _ if nested(left, right):
            return lambda a, b: _blocks(left, a, right, b).reshape(result.value_shape())
        case (_, Dense()):
            return lambda a, b: _narrowed(result, times_dense(left, a, b))
        case (Dense(), _):
            return lambda a, b: _narrowed(result, dense_times(a, right, b))
        case _:
            return _sparse(left, right, result)


def _narrowed(result: Structure, matrix: Tensor) -> Values:
    return matrix if isinstance(result, Dense) else result.gather_values(matrix)


def _scale_rows(d: Any, right: Structure, b: Any, result: Structure) -> Values:
    # (diag(d) B)_rc = d_r B_rc
    if isinstance(right, Dense):
        return (d if d.dim() == 0 else d[:, None]) * b  # in memory as B is
    if d.dim() == 0:
        return result.from_csr(d * right.csr_values(b, d))
    match right:
        case BlockDiagonal():
            scaled = d.reshape(*b.shape[:2], 1) * b
        case Pool():
            scaled = d[:, None] * b.reshape(right.m, -1)
        case Stacked():
            scaled = d.reshape(right.b, right.o, 1) * b
        case Diagonal() | ScaledIdentity():
            scaled = d * b
        case _:
            scaled = coordinates(right)[0].take(d, 0) * right.csr_values(b, d)
    return result.from_csr(scaled.reshape(-1))


def _scale_columns(left: Structure, a: Any, d: Any, result: Structure) -> Values:
    # (A diag(d))_rc = A_rc d_c
    if isinstance(left, Dense):
        return a * d
    if d.dim() == 0:
        return result.from_csr(left.csr_values(a, d) * d)
    match left:
        case Pool():
            scaled = a * d
        case BlockDiagonal():
            scaled = a * d.reshape(left.b, 1, -1)
        case Stacked():
            scaled = a * d.reshape(left.o, left.k)
        case _:
            scaled = left.csr_values(a, d) * coordinates(left)[1].take(d, 0)
    return result.from_csr(scaled.reshape(-1))


def _as_blocks(structure: Structure, values: Any) -> Tensor:
    """The blocks along the diagonal, (b, p, q)."""
    b = block_count(structure) or 1
    return values.reshape(b, structure.m // b, structure.n // b)


def _blocks(left: Structure, a: Any, right: Structure, b: Any) -> Tensor:
    """The blocks of A B, of which the larger of the nested blocks remain."""
    if isinstance(left, Dense) and isinstance(right, Dense):
        return a @ b
    if isinstance(right, Dense) and has_columns_in_front(b):  # (A B)ᵀ = Bᵀ Aᵀ, in memory as B is
        return _blocks(right.transposed(), b.T, left.transposed(), left.transpose_values(a)).reshape(-1, left.m).T
    a, b = _as_blocks(left, a), _as_blocks(right, b)
    wide, narrow = min(a.shape[0], b.shape[0]), max(a.shape[0], b.shape[0])
    inner = narrow // wide
    if b.shape[0] == narrow:
        # A_s = [A_s1 … A_st] meets the blocks B_s1 … B_st one by one: (wide, t, p, q) → (wide, p, t, q)
        columns = a.reshape(wide, a.shape[1], inner, b.shape[1]).transpose(1, 2)
        blocks = (columns @ b.reshape(wide, inner, *b.shape[1:])).transpose(1, 2)
    else:
        blocks = a.reshape(wide, inner, *a.shape[1:]) @ b.reshape(wide, inner, a.shape[2], b.shape[2])
    return blocks.reshape(wide, left.m // wide, right.n // wide)


def _times_stacked(left: Structure, a: Any, right: Stacked, x: Any) -> Tensor:
    """A times stacked vectors, A made of blocks that span whole samples: Σ_s A_r,si v_si in the columns (i, :)."""
    blocks = _as_blocks(left, a)
    count, rows, samples = blocks.shape[0], blocks.shape[1], right.b // blocks.shape[0]
    # (count, samples, rows, o, ·) against (count, samples, o, k): a product over samples, one for each (count, o)
    weights = blocks.reshape(count, rows, samples, right.o).permute(0, 3, 1, 2)
    vectors = x.reshape(count, samples, right.o, right.k).transpose(1, 2)
    return (weights @ vectors).transpose(1, 2).reshape(left.m, right.n)


def times_dense(left: Structure, a: Any, b: Tensor) -> Tensor:
    """A B as a full matrix, B being one.

    Args:
        left: Plain structure of A.
        a: Values of A.
        b: Matrix B.

    Returns:
        The matrix A B.
    """
    match left:
        case Dense():
            return a @ b
        case Gather():
            return left.index.take(b, 0)
        case WeightedGather():
            return a[:, None] * left.index.take(b, 0)
        case Scatter():
            return b.new_zeros(left.m, b.shape[1]).index_add(0, left.index.tensor(b.device), b)
        case WeightedScatter():
            return b.new_zeros(left.m, b.shape[1]).index_add(0, left.index.tensor(b.device), a[:, None] * b)
        case _ if left.nnz * DENSE_IS_FASTER >= left.m * left.n:
            return left.dense(a, b) @ b
        case _:
            rows, columns = coordinates(left)
            parts = left.csr_values(a, b)[:, None] * columns.take(b, 0)
            return b.new_zeros(left.m, b.shape[1]).index_add(0, rows.tensor(b.device), parts)


def dense_times(a: Tensor, right: Structure, b: Any) -> Tensor:
    """A B as a full matrix, A being one.

    Args:
        a: Matrix A.
        right: Plain structure of B.
        b: Values of B.

    Returns:
        The matrix A B.
    """
    m, n = a.shape[0], right.n
    match right:
        case Dense():
            return a @ b
        case Scatter():
            return right.index.take(a, 1)
        case WeightedScatter():
            return right.index.take(a, 1) * b
        case Gather():
            return a.new_zeros(m, n).index_add(1, right.index.tensor(a.device), a)
        case WeightedGather():
            return a.new_zeros(m, n).index_add(1, right.index.tensor(a.device), a * b)
        case _ if right.nnz * DENSE_IS_FASTER >= right.m * n:
            return a @ right.dense(b, a)
        case _:
            rows, columns = coordinates(right)
            parts = rows.take(a, 1) * right.csr_values(b, a)
            return a.new_zeros(m, n).index_add(1, columns.tensor(a.device), parts)


class _Pairs(NamedTuple):
    """Which entries of A and B meet, and where their product goes; ordered and without `to` if each goes alone."""

    left: Index
    right: Index
    to: Index | None


@lru_cache(maxsize=256)
def _pairs(left: Structure, right: Structure, result: Structure) -> _Pairs:
    rows, columns = (index.array for index in coordinates(left))
    pointers, right_columns = csr(right)
    counts = np.diff(pointers)[columns]  # entry (r, l) of A meets row l of B
    p = np.repeat(np.arange(columns.size), counts)
    starts = pointers[columns] - (np.cumsum(counts) - counts)
    q = np.arange(p.size) + np.repeat(starts, counts)
    to = np.searchsorted(entry_positions(result).array, rows[p] * right.n + right_columns[q])
    order = np.argsort(to, kind="stable")
    alone = p.size == result.nnz
    return _Pairs(frozen(p[order]), frozen(q[order]), None if alone else frozen(to[order]))


def _sparse(left: Structure, right: Structure, result: Structure) -> Apply:
    """A B entry by entry, or through dense matrices where there are too many pairs for that to be faster."""
    met = cost(left, right)
    dense = met > PAIRS_HELD or (met > 4096 and met * DENSE_IS_FASTER >= left.m * left.n * right.n)

    def entrywise(a: Any, b: Any) -> Values:
        like = first_tensor((a, b))
        first, second, to = _pairs(left, right, result)
        if left.constant and not right.constant:
            parts = second.take(right.csr_values(b, like), 0)
        elif right.constant and not left.constant:
            parts = first.take(left.csr_values(a, like), 0)
        else:
            parts = first.take(left.csr_values(a, like), 0) * second.take(right.csr_values(b, like), 0)
        if to is not None:
            parts = parts.new_zeros(result.nnz).index_add(0, to.tensor(parts.device), parts)
        return result.from_csr(parts)

    def through_dense(a: Any, b: Any) -> Values:
        like = first_tensor((a, b))
        return _narrowed(result, left.dense(a, like) @ right.dense(b, like))

    return through_dense if dense else entrywise
