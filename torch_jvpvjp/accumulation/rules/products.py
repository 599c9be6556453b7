"""Local derivatives of products of matrices and vectors.

With both sides flattened row by row,  vec(X W) = (I ⊗ Wᵀ) vec(X) = (X ⊗ I) vec(W):  in one factor the Jacobian is the
other, once per row or column, so it costs nothing to form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..structure import Dense, Identity, Kronecker, RowKronecker, Structure, Values
from .arguments import Arguments, arguments, for_active, reader
from .entrywise import multiple
from .registry import Call, Local, Operand, local_rule

_aten = torch.ops.aten

_Matrix = Callable[[Arguments], Tensor]  # named arguments -> the matrix that is stored


def shape_of(call: Call, name: str) -> torch.Size:
    """Return the shape of a named tensor argument."""
    operand = arguments(call)[name]
    assert isinstance(operand, Operand)
    return call.operands[operand.position].shape


def by_left(call: Call, rows: int, n: int, m: int, transposed: _Matrix, alpha: float = 1) -> Local:
    """Return the derivative of α X W in X, (rows, n): α Wᵀ for each row, where `transposed` gives Wᵀ, (m, n)."""
    structure: Structure = Dense(m, n) if rows == 1 else Kronecker(Identity(rows), Dense(m, n))
    read = reader(call)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        matrix = _scaled(transposed(read(operands)), alpha)
        return matrix if rows == 1 else ((), matrix)

    return Local(structure, 0 if alpha == 1 else m * n, values)


def by_right(call: Call, rows: int, n: int, m: int, left: _Matrix, alpha: float = 1) -> Local:
    """Return the derivative of α X W in W, (n, m): α X for each column, where `left` gives X, (rows, n)."""
    structure: Structure = Dense(rows, n) if m == 1 else Kronecker(Dense(rows, n), Identity(m))
    read = reader(call)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        matrix = _scaled(left(read(operands)), alpha)
        return matrix if m == 1 else (matrix, ())

    return Local(structure, 0 if alpha == 1 else rows * n, values)


def _scaled(matrix: Tensor, alpha: float) -> Tensor:
    return matrix if alpha == 1 else alpha * matrix


@local_rule(_aten.mm.default)
def _mm(call: Call) -> Mapping[int, Local]:
    (rows, n), (_, m) = shape_of(call, "self"), shape_of(call, "mat2")
    return for_active(
        call,
        self=lambda position: by_left(call, rows, n, m, lambda a: a["mat2"].t()),
        mat2=lambda position: by_right(call, rows, n, m, lambda a: a["self"]),
    )


@local_rule(_aten.addmm.default)
def _addmm(call: Call) -> Mapping[int, Local]:
    # y = β b + α X W
    (rows, n), (_, m) = shape_of(call, "mat1"), shape_of(call, "mat2")
    alpha, beta = arguments(call)["alpha"], arguments(call)["beta"]
    return for_active(
        call,
        self=lambda position: multiple(call, position, beta),
        mat1=lambda position: by_left(call, rows, n, m, lambda a: a["mat2"].t(), alpha),
        mat2=lambda position: by_right(call, rows, n, m, lambda a: a["mat1"], alpha),
    )


@local_rule(_aten.mv.default)
def _mv(call: Call) -> Mapping[int, Local]:
    # y = A x : a product with a matrix of one column
    m, n = shape_of(call, "self")
    return for_active(
        call,
        self=lambda position: by_left(call, m, n, 1, lambda a: a["vec"].reshape(1, n)),
        vec=lambda position: by_right(call, m, n, 1, lambda a: a["self"]),
    )


@local_rule(_aten.addmv.default)
def _addmv(call: Call) -> Mapping[int, Local]:
    # y = β b + α A x
    m, n = shape_of(call, "mat")
    alpha, beta = arguments(call)["alpha"], arguments(call)["beta"]
    return for_active(
        call,
        self=lambda position: multiple(call, position, beta),
        mat=lambda position: by_left(call, m, n, 1, lambda a: a["vec"].reshape(1, n), alpha),
        vec=lambda position: by_right(call, m, n, 1, lambda a: a["mat"], alpha),
    )


def _inner(first: str, second: str) -> Callable[[Call], Mapping[int, Local]]:
    def rule(call: Call) -> Mapping[int, Local]:
        (n,) = shape_of(call, first)
        makers = {
            mine: lambda position, other=other: by_right(call, 1, n, 1, lambda a: a[other].reshape(1, n))
            for mine, other in ((first, second), (second, first))
        }
        return for_active(call, **makers)

    return rule


local_rule(_aten.dot.default)(_inner("self", "tensor"))
local_rule(_aten.vdot.default)(_inner("self", "other"))


@local_rule(_aten.outer.default, _aten.ger.default)
def _outer(call: Call) -> Mapping[int, Local]:
    # y = x zᵀ : a product over an inner size of 1
    (rows,), (m,) = shape_of(call, "self"), shape_of(call, "vec2")
    return for_active(
        call,
        self=lambda position: by_left(call, rows, 1, m, lambda a: a["vec2"].reshape(m, 1)),
        vec2=lambda position: by_right(call, rows, 1, m, lambda a: a["self"].reshape(rows, 1)),
    )


@local_rule(_aten.linear.default)
def _linear(call: Call) -> Mapping[int, Local]:
    # Y = X Wᵀ + b over all leading dimensions of X, W of shape (o, n)
    o, n = torch.Size((1, *shape_of(call, "weight")))[-2:]
    rows = shape_of(call, "input").numel() // n

    def in_weight(position: int) -> Local:
        read = reader(call)

        def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
            return read(operands)["input"].reshape(rows, n)

        return Local(RowKronecker(rows, o, n), 0, values)

    return for_active(
        call,
        input=lambda position: by_left(call, rows, n, o, lambda a: a["weight"].reshape(o, n)),
        weight=in_weight,
        bias=lambda position: multiple(call, position, 1),
    )


@local_rule(_aten.matmul.default)
def _matmul(call: Call) -> Mapping[int, Local] | None:
    # whatever has no batch on the right: leading dimensions of the left are rows
    left, right = shape_of(call, "self"), shape_of(call, "other")
    if not left or not 1 <= len(right) <= 2:
        return None
    n, m = (right[0], 1) if len(right) == 1 else right
    rows = left.numel() // n
    return for_active(
        call,
        self=lambda position: by_left(call, rows, n, m, lambda a: a["other"].reshape(n, m).t()),
        other=lambda position: by_right(call, rows, n, m, lambda a: a["self"].reshape(rows, n)),
    )
