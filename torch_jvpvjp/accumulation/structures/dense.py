"""Full, diagonal and constant matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Structure, Values, require_sizes
from .counts import Counts, constant
from .index import Integers


@dataclass(frozen=True)
class Dense(Structure):
    """No structure: every entry is stored, values of shape (m, n)."""

    name: ClassVar[str] = "dense"
    listed: ClassVar[bool] = True
    m: int
    n: int

    def __post_init__(self) -> None:
        require_sizes("Dense", m=self.m, n=self.n)

    @property
    def entries(self) -> int:
        """The number of entries that are stored, m · n."""
        return self.m * self.n

    def value_shape(self) -> tuple[int, ...]:
        """The shape (m, n)."""
        return (self.m, self.n)

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The matrix itself."""
        return values

    def gather_values(self, dense: Tensor) -> Values:
        """The matrix itself."""
        self._check_shape("gather_values", "dense", dense, self.n)
        return dense

    @property
    def colours(self) -> int:
        """The number of colours, n: a full row tells all columns apart."""
        return self.n if self.m else min(self.n, 1)

    def colouring(self) -> Integers:
        """A colour for every column."""
        return np.arange(self.n) if self.m else np.zeros(self.n, np.int64)

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return Dense(self.n, self.m)

    def transpose_values(self, values: Any) -> Values:
        """The transpose."""
        return values.mT


def has_columns_in_front(matrix: Tensor) -> bool:
    """Whether the entries of a column follow one another in memory, as where vectors were pushed through an op."""
    return matrix.shape[1] > 1 and matrix.stride(0) == 1 and matrix.stride(1) >= matrix.shape[0] > 1


class _Square:
    """What the multiples of the identity and the diagonal matrices share: n rows, one entry in each."""

    n: int

    @property
    def m(self) -> int:
        """The number of rows, which is n."""
        return self.n

    def row_profile(self) -> Counts:
        """One entry in each row."""
        return constant(self.n, 1)

    def column_profile(self) -> Counts:
        """One entry in each column."""
        return constant(self.n, 1)

    def row_intervals(self) -> tuple[Integers, Integers]:
        """Row r holds column r."""
        return np.arange(self.n), np.arange(1, self.n + 1)

    @property
    def colours(self) -> int:
        """The number of colours, 1."""
        return min(self.n, 1)

    def colouring(self) -> Integers:
        """One colour for all columns."""
        return np.zeros(self.n, np.int64)

    def transposed(self) -> Any:
        """The structure itself."""
        return self


@dataclass(frozen=True)
class Diagonal(_Square, Structure):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A square diagonal matrix, diag(d), values d of shape (n,)."""

    name: ClassVar[str] = "diagonal"
    kind: ClassVar[str] = "diag"
    listed: ClassVar[bool] = True
    n: int

    def __post_init__(self) -> None:
        require_sizes("Diagonal", n=self.n)

    @property
    def entries(self) -> int:
        """The number of entries that are stored, n."""
        return self.n

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The matrix diag(d)."""
        return torch.diag_embed(values)

    def gather_values(self, dense: Tensor) -> Values:
        """The diagonal."""
        self._check_shape("gather_values", "dense", dense, self.n)
        return dense.diagonal(dim1=-2, dim2=-1)


@dataclass(frozen=True)
class Identity(_Square, Structure):  # pyright: ignore[reportIncompatibleVariableOverride]
    """The identity, values ()."""

    name: ClassVar[str] = "identity"
    precedence: ClassVar[int] = 6
    constant: ClassVar[bool] = True
    n: int

    def __post_init__(self) -> None:
        require_sizes("Identity", n=self.n)

    @property
    def entries(self) -> int:
        """The number of entries that are stored, none."""
        return 0

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The matrix I."""
        return torch.eye(self.n) if like is None else torch.eye(self.n, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class ScaledIdentity(_Square, Structure):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A multiple of the identity, s I, values s of shape ()."""

    name: ClassVar[str] = "scaled-identity"
    listed: ClassVar[bool] = True
    n: int

    def __post_init__(self) -> None:
        require_sizes("ScaledIdentity", n=self.n)

    @property
    def entries(self) -> int:
        """The number of entries that are stored, the scalar s."""
        return 1

    def csr_values(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The scalar, n times."""
        return values.expand(self.n)

    def from_csr(self, entries: Tensor) -> Values:
        """The scalar of n equal entries."""
        return entries[0] if self.n else entries.sum()

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The matrix s I."""
        return torch.diag_embed(values.expand(self.n))

    def gather_values(self, dense: Tensor) -> Values:
        """The first diagonal entry, which all are equal to."""
        self._check_shape("gather_values", "dense", dense, self.n)
        return self.from_csr(dense.diagonal(dim1=-2, dim2=-1))


@dataclass(frozen=True)
class Zero(Structure):
    """The zero matrix, values ()."""

    name: ClassVar[str] = "zero"
    precedence: ClassVar[int] = 7
    constant: ClassVar[bool] = True
    m: int
    n: int

    def __post_init__(self) -> None:
        require_sizes("Zero", m=self.m, n=self.n)

    @property
    def entries(self) -> int:
        """The number of entries that are stored, none."""
        return 0

    def row_profile(self) -> Counts:
        """No entry in any row."""
        return constant(self.m, 0)

    def column_profile(self) -> Counts:
        """No entry in any column."""
        return constant(self.n, 0)

    def row_intervals(self) -> tuple[Integers, Integers]:
        """No columns."""
        return np.zeros(self.m, np.int64), np.zeros(self.m, np.int64)

    @property
    def colours(self) -> int:
        """The number of colours, 1."""
        return min(self.n, 1)

    def colouring(self) -> Integers:
        """One colour for all columns."""
        return np.zeros(self.n, np.int64)

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The matrix 0."""
        dtype, device = (None, None) if like is None else (like.dtype, like.device)
        return torch.zeros(self.m, self.n, dtype=dtype, device=device)

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return Zero(self.n, self.m)
