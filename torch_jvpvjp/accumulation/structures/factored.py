"""Structures whose entries are products of what is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Structure, Values, require, require_sizes
from .counts import Counts, Listed, Runs, constant
from .dense import Identity, Zero
from .index import Integers


@dataclass(frozen=True)
class Kronecker(Structure):
    """The Kronecker product A ⊗ B of two structures, values (values of A, values of B).

    I_b ⊗ W is a weight W that serves b samples; A ⊗ I_n is a matrix A acting on the rows of (·, n) matrices.
    """

    name: ClassVar[str] = "kronecker"
    precedence: ClassVar[int] = 2
    left: Structure
    right: Structure

    @property
    def m(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of rows."""
        return self.left.m * self.right.m

    @property
    def n(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of columns."""
        return self.left.n * self.right.n

    @property
    def entries(self) -> int:
        """The number of entries that the two factors store."""
        return self.left.entries + self.right.entries

    def row_profile(self) -> Counts:
        """Row (r, s) has the entries of row r times those of row s."""
        return _outer(self.left.row_profile(), self.right.row_profile())

    def column_profile(self) -> Counts:
        """Column (c, d) has the entries of column c times those of column d."""
        return _outer(self.left.column_profile(), self.right.column_profile())

    def list_entries(self) -> tuple[Integers, Integers]:
        """The pattern multiplied out."""
        return listed_kronecker(self.left, self.right)[:2]

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The matrix A ⊗ B."""
        a, b = values
        like = first_tensor(values, like)
        product = torch.einsum("ij,kl->ikjl", *promoted(self.left.dense(a, like), self.right.dense(b, like)))
        return product.reshape(self.m, self.n)

    def transposed(self) -> Structure:
        """The Kronecker product of the transposes."""
        return Kronecker(self.left.transposed(), self.right.transposed())

    def transpose_values(self, values: Any) -> Values:
        """The values of the transposes."""
        a, b = values
        return self.left.transpose_values(a), self.right.transpose_values(b)


@dataclass(frozen=True)
class PlusLowRank(Structure):
    """The sum S + U V of a structure and a product of rank r, values (values of S, U (m, r), V (r, n))."""

    name: ClassVar[str] = "low-rank"
    precedence: ClassVar[int] = 5
    base: Structure
    rank: int

    def __post_init__(self) -> None:
        require_sizes("PlusLowRank", rank=self.rank)

    @property
    def m(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of rows."""
        return self.base.m

    @property
    def n(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of columns."""
        return self.base.n

    @property
    def entries(self) -> int:
        """The number of entries that are stored, those of S, U and V."""
        return self.base.entries + self.rank * (self.m + self.n)

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The matrix S + U V."""
        base, u, v = values
        if isinstance(self.base, Zero):
            return u @ v
        return self.base.dense(base, u) + u @ v

    def transposed(self) -> Structure:
        """The transpose Sᵀ + Vᵀ Uᵀ."""
        return PlusLowRank(self.base.transposed(), self.rank)

    def transpose_values(self, values: Any) -> Values:
        """The values of the transpose."""
        base, u, v = values
        return self.base.transpose_values(base), v.mT, u.mT


def LowRank(m: int, n: int, rank: int) -> PlusLowRank:
    """The structure of U V, (m, rank) times (rank, n): values ((), U, V).

    Args:
        m: Rows.
        n: Columns.
        rank: Inner size.

    Returns:
        The structure, `PlusLowRank` over `Zero`.
    """
    return PlusLowRank(Zero(m, n), rank)


@dataclass(frozen=True)
class IdentityPlus(Structure):
    """I + J with J square, values those of J: the Jacobian of a residual block.

    A dense J stays apart, so that (I + J) B = B + J B; with any other J the sum is a structure of its own as soon as
    it is multiplied.
    """

    name: ClassVar[str] = "identity-plus"
    precedence: ClassVar[int] = 4
    inner: Structure

    def __post_init__(self) -> None:
        shape = (self.inner.m, self.inner.n)
        require("IdentityPlus", shape[0] == shape[1], "inner must be square", f"{shape}")

    @property
    def m(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of rows, which is n."""
        return self.inner.n

    @property
    def n(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of columns."""
        return self.inner.n

    @property
    def entries(self) -> int:
        """The number of entries that J stores."""
        return self.inner.entries

    def row_profile(self) -> Counts:
        """The entries of each row of I + J."""
        return self._full_or_listed(self.inner.row_profile(), 1)

    def column_profile(self) -> Counts:
        """The entries of each column of I + J."""
        return self._full_or_listed(self.inner.column_profile(), 0)

    def _full_or_listed(self, profile: Counts, axis: int) -> Counts:
        if profile.least == self.n:
            return constant(self.n, self.n)
        return Listed(np.asarray((_diagonal(self.n) + self.inner.pattern()).sum(axis=axis), np.int64))

    def list_entries(self) -> tuple[Integers, Integers]:
        """The pattern of J, and the diagonal."""
        pattern = (_diagonal(self.n) + self.inner.pattern()).tocsr()
        pattern.sort_indices()
        return pattern.indptr.astype(np.int64), pattern.indices.astype(np.int64)

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The matrix I + J."""
        matrix = self.inner.dense(values, like)
        return matrix + torch.eye(self.n, dtype=matrix.dtype, device=matrix.device)

    def gather_values(self, dense: Tensor) -> Values:
        """The values of J, read out of a matrix less the identity."""
        self._check_shape("gather_values", "dense", dense, self.n)
        return self.inner.gather_values(dense - torch.eye(self.n, dtype=dense.dtype, device=dense.device))

    def transposed(self) -> Structure:
        """I + Jᵀ."""
        return IdentityPlus(self.inner.transposed())

    def transpose_values(self, values: Any) -> Values:
        """The values of Jᵀ."""
        return self.inner.transpose_values(values)


@dataclass(frozen=True)
class RowKronecker(Structure):
    """Shape (b·o, o·k): row (s, i) holds x_s in the columns (i, :); values x (b, k), k is the argument n.

    The Jacobian of X Wᵀ with respect to W: X is (b, k), W is (o, k).
    """

    name: ClassVar[str] = "row-kronecker"
    precedence: ClassVar[int] = 1
    b: int
    o: int
    k: int

    def __post_init__(self) -> None:
        require_sizes("RowKronecker", b=self.b, o=self.o, n=self.k)

    @property
    def m(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of rows, b · o."""
        return self.b * self.o

    @property
    def n(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The number of columns, o · k."""
        return self.o * self.k

    @property
    def entries(self) -> int:
        """The number of entries that are stored, b · k."""
        return self.b * self.k

    def row_profile(self) -> Counts:
        """A row holds one x_s."""
        return constant(self.m, self.k)

    def column_profile(self) -> Counts:
        """A column meets every sample."""
        return constant(self.n, self.b)

    def row_intervals(self) -> tuple[Integers, Integers]:
        """Row (s, i) holds the columns (i, :)."""
        first = np.arange(self.m) % max(self.o, 1) * self.k
        return first, first + self.k

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The (b·o, o·k) matrix."""
        eye = torch.eye(self.o, dtype=values.dtype, device=values.device)
        return torch.einsum("sj,io->sioj", values, eye).reshape(self.m, self.n)

    def gather_values(self, dense: Tensor) -> Values:
        """The rows of x, read out of the rows (s, 0)."""
        self._check_shape("gather_values", "dense", dense, self.n)
        return dense.reshape(self.b, self.o, self.o, self.k)[:, 0, 0]


def listed_kronecker(left: Structure, right: Structure) -> tuple[Integers, Integers, Integers, Integers]:
    """The pattern of A ⊗ B as (indptr, indices) of CSR, and for every entry its positions in A and in B."""
    a, b = left.pattern().tocoo(), right.pattern().tocoo()
    rows = (a.row.astype(np.int64)[:, None] * right.m + b.row).reshape(-1)
    columns = (a.col.astype(np.int64)[:, None] * right.n + b.col).reshape(-1)
    order = np.lexsort((columns, rows))
    counts = np.bincount(rows, minlength=left.m * right.m)
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    return indptr, columns[order], order // max(b.nnz, 1), order % max(b.nnz, 1)


def first_tensor(values: Any, default: Tensor | None = None) -> Tensor | None:
    """The first tensor among nested values, or `default` if there is none."""
    if isinstance(values, Tensor):
        return values
    for part in values:
        found = first_tensor(part)
        if found is not None:
            return found
    return default


def typed(values: Any, like: Tensor | None) -> Any:
    """Nested values in the dtype and on the device of `like`: what was made of ones alone follows its neighbours."""
    if like is None:
        return values
    if isinstance(values, Tensor):
        return values.to(device=like.device, dtype=like.dtype)
    return tuple(typed(part, like) for part in values)


def promoted(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common dtype."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _diagonal(n: int) -> Any:
    return Identity(n).pattern()


def _outer(a: Counts, b: Counts) -> Counts:
    """The counts of the rows (r, s), a_r b_s."""
    if isinstance(a, Runs) and isinstance(b, Runs) and a.least == a.most and b.least == b.most:
        return constant(a.size * b.size, a.most * b.most)
    return Listed(np.kron(a.array(), b.array()))
