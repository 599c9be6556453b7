"""Products with the Jacobian of X Wᵀ with respect to W, and with transposes that have no kind of their own."""

from __future__ import annotations

from typing import Any

from .base import Structure, Transposed, Values
from .blocks import BlockDiagonal
from .canonical import valued
from .dense import Dense, Identity, ScaledIdentity
from .factored import Kronecker, RowKronecker
from .plain import is_plain
from .product import Product, plain_product, product, product_rule


@product_rule(Dense, RowKronecker)
def _dense_row_kronecker(left: Dense, right: RowKronecker) -> Product:
    # Σ_s A_r,si x_sj
    r, b, o, k = left.m, right.b, right.o, right.k

    def values(a: Any, x: Any) -> Values:
        return (a.reshape(r, b, o).transpose(1, 2).reshape(r * o, b) @ x).reshape(r, o * k)

    return Product(Dense(r, o * k), r * b * o * k, values)


@product_rule(RowKronecker, Dense)
def _row_kronecker_dense(left: RowKronecker, right: Dense) -> Product:
    # Σ_j x_sj B_ij,c
    b, o, k, columns = left.b, left.o, left.k, right.n

    def values(x: Any, matrix: Any) -> Values:
        flat = matrix.reshape(o, k, columns).transpose(0, 1).reshape(k, o * columns)
        return (x @ flat).reshape(b * o, columns)

    return Product(Dense(b * o, columns), b * o * k * columns, values)


@product_rule(BlockDiagonal, RowKronecker)
def _blocks_row_kronecker(left: BlockDiagonal, right: RowKronecker) -> Product:
    # diag(A_1 … A_b) with rows x_s: row (s, p) holds (A_s)_pi x_s in the columns (i, :)
    whole = plain_product(left, right)
    b, o, k = right.b, right.o, right.k
    if left.b != b or type(whole.result) is not Dense:
        return whole
    m = left.m
    return Product(whole.result, whole.fma, lambda a, x: (a[..., None] * x[:, None, None, :]).reshape(m, o * k))


@product_rule(ScaledIdentity, RowKronecker)
def _scaled_row_kronecker(left: ScaledIdentity, right: RowKronecker) -> Product:
    return Product(right, right.entries, lambda s, x: s * x)


@product_rule(RowKronecker, ScaledIdentity)
def _row_kronecker_scaled(left: RowKronecker, right: ScaledIdentity) -> Product:
    return Product(left, left.entries, lambda x, s: x * s)


@product_rule(RowKronecker, Transposed)
def _row_kronecker_gram(left: RowKronecker, right: Transposed) -> Product:
    # Σ_ij (x_s)_j [i = p] (y_t)_j [i = q] = ⟨x_s, y_t⟩ [p = q] : X Yᵀ ⊗ I
    other = right.inner
    if not isinstance(other, RowKronecker) or other.o != left.o:
        return _through_transpose(left, right)
    result = Kronecker(Dense(left.b, other.b), Identity(left.o))
    return Product(result, left.b * left.k * other.b, lambda x, y: (x @ y.mT, ()))


@product_rule(Transposed, RowKronecker)
def _gram_row_kronecker(left: Transposed, right: RowKronecker) -> Product:
    # Σ_si (x_s)_j [i = p] (y_s)_k [i = q] = Σ_s (x_s)_j (y_s)_k [p = q] : I ⊗ Xᵀ Y
    other = left.inner
    if not isinstance(other, RowKronecker) or other.o != right.o:
        return _through_transpose(left, right)
    result = Kronecker(Identity(right.o), Dense(other.k, right.k))
    return Product(result, other.k * right.b * right.k, lambda x, y: ((), x.mT @ y))


@product_rule(Transposed, Structure)
def _transposed_times(left: Transposed, right: Structure) -> Product:
    return _through_transpose(left, right)


@product_rule(Structure, Transposed)
def _times_transposed(left: Structure, right: Transposed) -> Product:
    return _through_transpose(left, right)


def _through_transpose(left: Structure, right: Structure) -> Product:
    # A B = (Bᵀ Aᵀ)ᵀ, unless that has a transpose without a kind again
    first, second = right.transposed(), left.transposed()
    if isinstance(first, Transposed) or isinstance(second, Transposed):
        return plain_product(left, right)
    rule = product(first, second)
    flipped = rule.result.transposed()
    result = valued(flipped) if is_plain(flipped) and not flipped.constant else flipped

    def values(a: Any, b: Any) -> Values:
        product_values = rule.apply(right.transpose_values(b), left.transpose_values(a))
        entries: Any = rule.result.transpose_values(product_values)
        return entries if result is flipped else result.from_csr(flipped.csr_values(entries))

    return Product(result, rule.fma, values)


@product_rule(RowKronecker, Structure)
def _row_kronecker_times(left: RowKronecker, right: Structure) -> Product:
    return plain_product(left, right)
