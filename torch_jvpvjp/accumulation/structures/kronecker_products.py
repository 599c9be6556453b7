"""Products with Kronecker products: factor by factor where the inner sizes match."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from .algebra import product_structure, zero_of
from .base import Structure, Values, coordinates
from .blocks import BlockDiagonal
from .dense import Dense, Diagonal, Identity, ScaledIdentity, Zero
from .factored import Kronecker, first_tensor, typed
from .index import Index, frozen
from .plain import is_plain, plain
from .product import Product, plain_product, product, product_rule, work


@product_rule(Kronecker, Kronecker)
def _kronecker_kronecker(left: Kronecker, right: Kronecker) -> Product:
    # (A ⊗ B)(C ⊗ D) = A C ⊗ B D
    if left.left.n != right.left.m:
        return _multiplied_out(left, right)
    one, two = product(left.left, right.left), product(left.right, right.right)
    fma = work(left.left, right.left) + work(left.right, right.right)
    if isinstance(one.result, Zero) or isinstance(two.result, Zero):
        return Product(zero_of(left.m, right.n), 0, lambda a, b: ())

    def values(a: Any, b: Any) -> Values:
        return typed((one.apply(a[0], b[0]), two.apply(a[1], b[1])), first_tensor((a, b)))

    return Product(Kronecker(one.result, two.result), fma, values)


@product_rule(ScaledIdentity, Kronecker)
def _scaled_kronecker(left: ScaledIdentity, right: Kronecker) -> Product:
    # s (A ⊗ B) = A ⊗ s B
    inner = product(ScaledIdentity(right.right.m), right.right)
    return Product(Kronecker(right.left, inner.result), inner.fma, lambda a, b: (b[0], inner.apply(a, b[1])))


@product_rule(Kronecker, ScaledIdentity)
def _kronecker_scaled(left: Kronecker, right: ScaledIdentity) -> Product:
    inner = product(left.right, ScaledIdentity(left.right.n))
    return Product(Kronecker(left.left, inner.result), inner.fma, lambda a, b: (a[0], inner.apply(a[1], b)))


@product_rule(Kronecker, Dense)
def _kronecker_dense(left: Kronecker, right: Dense) -> Product:
    # (A ⊗ B) X is A X_c Bᵀ for every column X_c read as a matrix: first B or first A, whichever is cheaper
    a, b, columns = left.left, left.right, right.n
    b_first = work(b, Dense(b.n, a.n * columns)) + work(a, Dense(a.n, b.m * columns))
    a_first = work(a, Dense(a.n, b.n * columns)) + work(b, Dense(b.n, a.m * columns))
    full = a.row_profile().least * b.row_profile().least > 0
    result = Dense(left.m, columns) if full else product_structure(plain(left), right)

    def values(factors: Any, x: Any) -> Values:
        first, second = factors
        if _is_shared(left):  # one product with the columns in front, rather than one for each of the blocks
            front = x.T.reshape(columns * a.n, b.n) @ second.T
            x = front.reshape(columns, left.m).T
        elif b_first <= a_first:
            x = _on_columns(b, second, x.reshape(a.n, b.n, columns))
            x = _times(a, first, x.reshape(a.n, b.m * columns))
        else:
            x = _times(a, first, x.reshape(a.n, b.n * columns))
            x = _on_columns(b, second, x.reshape(a.m, b.n, columns))
        x = x.reshape(left.m, columns)  # a view of what has its columns in front
        return x if isinstance(result, Dense) else result.gather_values(x)

    return Product(result, min(b_first, a_first), values)


@product_rule(Dense, Kronecker)
def _dense_kronecker(left: Dense, right: Kronecker) -> Product:
    # X (A ⊗ B) is Aᵀ X_r B for every row X_r read as a matrix
    a, b, rows = right.left, right.right, left.m
    b_first = work(Dense(rows * a.m, b.m), b) + work(Dense(rows * b.n, a.m), a)
    a_first = work(Dense(rows * b.m, a.m), a) + work(Dense(rows * a.n, b.m), b)
    full = a.column_profile().least * b.column_profile().least > 0
    result = Dense(rows, right.n) if full else product_structure(left, plain(right))

    def values(x: Any, factors: Any) -> Values:
        first, second = factors
        if b_first <= a_first:
            x = _times_right(x.reshape(rows * a.m, b.m), b, second).reshape(rows, a.m, b.n)
            x = _on_rows(x, a, first)
        else:
            x = _on_rows(x.reshape(rows, a.m, b.m), a, first)
            x = _times_right(x.reshape(rows * a.n, b.m), b, second)
        x = x.reshape(rows, right.n)
        return x if isinstance(result, Dense) else result.gather_values(x)

    return Product(result, min(b_first, a_first), values)


@product_rule(BlockDiagonal, Kronecker)
def _blocks_shared(left: BlockDiagonal, right: Kronecker) -> Product:
    # diag(A_1 … A_b) (I_b ⊗ W) = diag(A_1 W … A_b W): one weight, which is not copied for each block
    whole = _multiplied_out(left, right)
    if not (_is_shared(right) and isinstance(whole.result, BlockDiagonal) and left.b == right.left.n == whole.result.b):
        return whole
    return Product(whole.result, whole.fma, lambda a, b: a @ b[1])


@product_rule(Kronecker, BlockDiagonal)
def _shared_blocks(left: Kronecker, right: BlockDiagonal) -> Product:
    whole = _multiplied_out(left, right)
    if not (_is_shared(left) and isinstance(whole.result, BlockDiagonal) and right.b == left.left.n == whole.result.b):
        return whole
    return Product(whole.result, whole.fma, lambda a, b: a[1] @ b)


@product_rule(Kronecker, Diagonal)
def _shared_diagonal(left: Kronecker, right: Diagonal) -> Product:
    # (I_b ⊗ W) diag(d_1 … d_b) = diag(W diag(d_1) … W diag(d_b))
    whole = _multiplied_out(left, right)
    if not (_is_shared(left) and isinstance(whole.result, BlockDiagonal) and left.left.n == whole.result.b):
        return whole
    b, n = left.left.n, left.right.n
    return Product(whole.result, whole.fma, lambda a, d: a[1] * d.reshape(b, 1, n))


@product_rule(Diagonal, Kronecker)
def _diagonal_shared(left: Diagonal, right: Kronecker) -> Product:
    whole = _multiplied_out(left, right)
    if not (_is_shared(right) and isinstance(whole.result, BlockDiagonal) and right.left.n == whole.result.b):
        return whole
    b, m = right.left.n, right.right.m
    return Product(whole.result, whole.fma, lambda d, b_: d.reshape(b, m, 1) * b_[1])


def _is_shared(structure: Kronecker) -> bool:
    """Return whether a structure is I ⊗ W with a dense W."""
    return isinstance(structure.left, Identity) and isinstance(structure.right, Dense)


@product_rule(Kronecker, Structure)
def _kronecker_times(left: Kronecker, right: Structure) -> Product:
    return _multiplied_out(left, right)


@product_rule(Structure, Kronecker)
def _times_kronecker(left: Structure, right: Kronecker) -> Product:
    # A (I ⊗ W), A sparse: where no row of A has two entries in one block, entry A_i,sk gives A_i,sk W_k,: by itself
    whole = _multiplied_out(left, right)
    if not (_is_shared(right) and is_plain(left) and 0 < left.nnz <= left.m * right.left.n):
        return whole

    def values(a: Any, b: Any) -> Values:
        rows = _rows_met(left, right)
        if rows is None:
            return whole.apply(a, b)
        taken = rows.take(b[1], 0)
        parts = taken if left.constant else left.csr_values(a).unsqueeze(1) * taken
        return whole.result.from_csr(parts.reshape(-1))

    return Product(whole.result, whole.fma, values)


@lru_cache(maxsize=256)
def _rows_met(left: Structure, right: Kronecker) -> Index | None:
    """The row k of W that each entry A_i,sk meets; None if a row of A has two entries in one block."""
    rows, columns = (index.array for index in coordinates(left))
    block, row = np.divmod(columns, right.right.m)
    meets = rows * right.left.n + block  # which ascends, A being listed row by row
    return None if (np.diff(meets) == 0).any() else frozen(row)


def _multiplied_out(left: Structure, right: Structure) -> Product:
    return plain_product(left, right, _unfolding(left) + _unfolding(right))


def _unfolding(structure: Structure) -> int:
    """The multiplications that form the entries of A ⊗ B, none if A or B is all ones."""
    if not isinstance(structure, Kronecker) or structure.left.constant or structure.right.constant:
        return 0
    return structure.nnz


def _times(structure: Structure, values: Any, matrix: Tensor) -> Tensor:
    """A X as a full matrix."""
    if isinstance(structure, Identity):
        return matrix
    rule = product(structure, Dense(structure.n, matrix.shape[1]))
    return rule.result.dense(rule.apply(values, matrix), first_tensor(values, matrix))


def _times_right(matrix: Tensor, structure: Structure, values: Any) -> Tensor:
    """X B as a full matrix."""
    if isinstance(structure, Identity):
        return matrix
    rule = product(Dense(matrix.shape[0], structure.m), structure)
    return rule.result.dense(rule.apply(matrix, values), first_tensor(values, matrix))


def _on_columns(b: Structure, values: Any, x: Tensor) -> Tensor:
    """B applied to the middle axis of x (p, k, c)."""
    if isinstance(b, Identity):
        return x
    if isinstance(b, Dense):
        return values @ x
    p, k, c = x.shape
    return _times(b, values, x.transpose(0, 1).reshape(k, p * c)).reshape(b.m, p, c).transpose(0, 1)


def _on_rows(x: Tensor, a: Structure, values: Any) -> Tensor:
    """x (r, k, c) with its middle axis multiplied by A from the right."""
    if isinstance(a, Identity):
        return x
    r, k, c = x.shape
    return _times_right(x.transpose(1, 2).reshape(r * c, k), a, values).reshape(r, c, a.n).transpose(1, 2)
