"""Equal blocks along the diagonal, and rows of blocks stacked upon each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .base import Structure, Values, require, require_sizes
from .counts import Counts, constant
from .index import Integers


@dataclass(frozen=True)
class BlockDiagonal(Structure):
    """Equal blocks along the diagonal, b of them, each (m/b, n/b); values (b, m/b, n/b).

    The Jacobian of what treats the samples of a batch one by one.
    """

    name: ClassVar[str] = "block-diagonal"
    kind: ClassVar[str] = "block_diag"
    listed: ClassVar[bool] = True
    b: int
    m: int
    n: int

    def __post_init__(self) -> None:
        require_sizes("BlockDiagonal", b=self.b, m=self.m, n=self.n)
        whole = self.b >= 1 and self.m % self.b == 0 and self.n % self.b == 0
        require("BlockDiagonal", whole, "m and n must be multiples of b ≥ 1", f"b={self.b}, m={self.m}, n={self.n}")

    @property
    def block(self) -> tuple[int, int]:
        """The shape of one block, (m/b, n/b)."""
        return self.m // self.b, self.n // self.b

    @property
    def entries(self) -> int:
        """The number of entries that are stored, m · n / b."""
        return self.m * (self.n // self.b)

    def value_shape(self) -> tuple[int, ...]:
        """The shape (b, m/b, n/b)."""
        return (self.b, *self.block)

    def row_profile(self) -> Counts:
        """A row holds a row of its block."""
        return constant(self.m, self.n // self.b)

    def column_profile(self) -> Counts:
        """A column holds a column of its block."""
        return constant(self.n, self.m // self.b)

    def row_intervals(self) -> tuple[Integers, Integers]:
        """Row r holds the columns of its block."""
        rows, columns = self.block
        first = np.arange(self.m) // max(rows, 1) * columns
        return first, first + columns

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The (m, n) matrix with the blocks along the diagonal."""
        # (b, p, q) → (p, q, b, b) → (b, p, b, q)
        return torch.diag_embed(values.permute(1, 2, 0)).permute(2, 0, 3, 1).reshape(self.m, self.n)

    def gather_values(self, dense: Tensor) -> Values:
        """The blocks along the diagonal."""
        self._check_shape("gather_values", "dense", dense, self.n)
        rows, columns = self.block
        return dense.reshape(self.b, rows, self.b, columns).diagonal(dim1=0, dim2=2).permute(2, 0, 1)

    @property
    def colours(self) -> int:
        """The number of colours, n/b: the blocks share them."""
        return self.n // self.b if self.m else min(self.n, 1)

    def colouring(self) -> Integers:
        """A colour for every column: its place in its block."""
        return np.arange(self.n) % max(self.colours, 1)

    def transposed(self) -> Structure:
        """The structure of the transpose."""
        return BlockDiagonal(self.b, self.n, self.m)

    def transpose_values(self, values: Any) -> Values:
        """The transposed blocks."""
        return values.mT


@dataclass(frozen=True)
class Pool(Structure):
    """Row r holds the n/m neighbouring columns of group r, values (n,): sums and means of equal groups."""

    name: ClassVar[str] = "pool"
    listed: ClassVar[bool] = True
    m: int
    n: int

    def __post_init__(self) -> None:
        require_sizes("Pool", m=self.m, n=self.n)
        whole = self.m >= 1 and self.n % self.m == 0
        require("Pool", whole, "n must be a multiple of m ≥ 1", f"m={self.m}, n={self.n}")

    @property
    def entries(self) -> int:
        """The number of entries that are stored, n."""
        return self.n

    def row_profile(self) -> Counts:
        """A row holds a group."""
        return constant(self.m, self.n // self.m)

    def column_profile(self) -> Counts:
        """A column stands in one group."""
        return constant(self.n, 1)

    def row_intervals(self) -> tuple[Integers, Integers]:
        """Row r holds the columns of group r."""
        first = np.arange(self.m) * (self.n // self.m)
        return first, first + self.n // self.m

    @property
    def colours(self) -> int:
        """The number of colours, n/m: the groups share them."""
        return self.n // self.m

    def colouring(self) -> Integers:
        """A colour for every column: its place in its group."""
        return np.arange(self.n) % max(self.colours, 1)

    def transposed(self) -> Structure:
        """Blocks of one column."""
        return BlockDiagonal(self.m, self.n, self.m)

    def transpose_values(self, values: Any) -> Values:
        """The groups, each a column."""
        return values.reshape(self.m, self.n // self.m, 1)


@dataclass(frozen=True)
class Stacked(Structure):
    """Shape (b·o, o·n): row (s, i) holds a vector v_si in the columns (i, :); values v (b, o, n).

    The Jacobian of D X Wᵀ with respect to W, D diagonal: what `RowKronecker` becomes once its rows differ.
    """

    name: ClassVar[str] = "stacked"
    listed: ClassVar[bool] = True
    b: int
    o: int
    k: int

    def __post_init__(self) -> None:
        require_sizes("Stacked", b=self.b, o=self.o, k=self.k)

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
        """The number of entries that are stored, b · o · k."""
        return self.b * self.o * self.k

    def value_shape(self) -> tuple[int, ...]:
        """The shape (b, o, k)."""
        return (self.b, self.o, self.k)

    def row_profile(self) -> Counts:
        """A row holds a vector."""
        return constant(self.m, self.k)

    def column_profile(self) -> Counts:
        """A column meets every one of the b."""
        return constant(self.n, self.b)

    def row_intervals(self) -> tuple[Integers, Integers]:
        """Row (s, i) holds the columns (i, :)."""
        first = np.arange(self.m) % max(self.o, 1) * self.k
        return first, first + self.k

    @property
    def colours(self) -> int:
        """The number of colours, k."""
        return self.k if self.m else min(self.n, 1)

    def colouring(self) -> Integers:
        """A colour for every column: its place in its vector."""
        return np.arange(self.n) % max(self.colours, 1)

    def dense(self, values: Any, like: Tensor | None = None) -> Tensor:
        """The (b·o, o·k) matrix."""
        # (b, o, k) → (b, k, o, o) → (b, o, o, k)
        return torch.diag_embed(values.transpose(1, 2)).permute(0, 2, 3, 1).reshape(self.m, self.n)
