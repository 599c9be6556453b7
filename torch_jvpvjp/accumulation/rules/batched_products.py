"""Local derivatives of batched matrix products: Y_s = X_s W_s for each sample s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..structure import BlockDiagonal, Pattern, Structure, Values
from .arguments import arguments, for_active, reader
from .entrywise import multiple
from .indexing import check_values
from .products import by_left, by_right, shape_of
from .registry import Call, Local, Through, local_rule

_aten = torch.ops.aten


def _by_left(call: Call, left: str, right: str, alpha: float) -> Local:
    """Return the derivative in X: in row (s, i) of it, α W_sᵀ, so a block for each row of each sample."""
    (b, rows, n), (_, _, m) = shape_of(call, left), shape_of(call, right)
    if b == 1:
        return by_left(call, rows, n, m, lambda a: a[right].reshape(n, m).t(), alpha)
    check_values(b * rows * m * n)
    read = reader(call)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        blocks = read(operands)[right].mT
        blocks = blocks if alpha == 1 else alpha * blocks
        return blocks if rows == 1 else blocks.unsqueeze(1).expand(b, rows, m, n).reshape(b * rows, m, n)

    def carried(vectors: Tensor, matrices: Tensor) -> Tensor:
        # One product for each sample, with the rows of all vectors under one another.
        inner, outer = matrices.shape[1:]
        stacked = vectors.reshape(-1, b, rows, inner).transpose(0, 1).reshape(b, -1, inner)
        product = torch.bmm(stacked, matrices if alpha == 1 else alpha * matrices)
        return product.reshape(b, -1, rows, outer).transpose(0, 1).reshape(-1, b * rows * outer)

    def push(operands: Sequence[Tensor], outputs: Sequence[Tensor], x_dots: Tensor) -> Tensor:
        return carried(x_dots, read(operands)[right])  # Ẏ = α Ẋ W

    def pull(operands: Sequence[Tensor], outputs: Sequence[Tensor], y_bars: Tensor) -> Tensor:
        return carried(y_bars, read(operands)[right].mT)  # X̄ = α Ȳ Wᵀ

    fma = 0 if alpha == 1 else b * m * n
    through = Through(b * rows * m * n, push, pull) if rows > 1 else None
    return Local(BlockDiagonal(b * rows, b * rows * m, b * rows * n), fma, values, through)


def _by_right(call: Call, left: str, right: str, alpha: float) -> Local:
    """Return the derivative in W: row (s, i, j) holds α X_s[i, k] in column (s, k, j)."""
    (b, rows, n), (_, _, m) = shape_of(call, left), shape_of(call, right)
    if b == 1:
        return by_right(call, rows, n, m, lambda a: a[left].reshape(rows, n), alpha)
    check_values(b * rows * m * n)
    read = reader(call)
    structure: Structure = BlockDiagonal(b, b * rows, b * n) if m == 1 else _columns_of_samples(b, rows, n, m)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        x = read(operands)[left]
        x = x if alpha == 1 else alpha * x
        return x if m == 1 else x.unsqueeze(2).expand(b, rows, m, n).reshape(-1)

    return Local(structure, 0 if alpha == 1 else b * rows * n, values)


def _columns_of_samples(b: int, rows: int, n: int, m: int) -> Pattern:
    s, _, j, k = np.ix_(np.arange(b), np.arange(rows), np.arange(m), np.arange(n))
    columns = np.broadcast_to((s * n + k) * m + j, (b, rows, m, n))
    return Pattern(b * rows * m, b * n * m, np.arange(b * rows * m + 1) * n, columns.reshape(-1))


@local_rule(_aten.bmm.default)
def _bmm(call: Call) -> Mapping[int, Local]:
    return for_active(
        call,
        self=lambda position: _by_left(call, "self", "mat2", 1),
        mat2=lambda position: _by_right(call, "self", "mat2", 1),
    )


@local_rule(_aten.baddbmm.default)
def _baddbmm(call: Call) -> Mapping[int, Local]:
    # Y = β B + α X W
    alpha, beta = arguments(call)["alpha"], arguments(call)["beta"]
    return for_active(
        call,
        self=lambda position: multiple(call, position, beta),
        batch1=lambda position: _by_left(call, "batch1", "batch2", alpha),
        batch2=lambda position: _by_right(call, "batch1", "batch2", alpha),
    )
