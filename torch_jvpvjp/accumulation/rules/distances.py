"""Local derivatives of the distances between all points of two sets, y_ij = ‖a_i − b_j‖ₚ.

With d_ij = a_i − b_j the derivative in a_i is w_ij = sgn(d_ij) |d_ij|^(p − 1) / y_ij^(p − 1), and 0 where points meet;
that in b_j is −w_ij.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..structure import BlockDiagonal, Pattern, Structure, Values
from .arguments import arguments, for_active, reader
from .indexing import check_values
from .registry import Call, Local, Through, local_rule

_aten = torch.ops.aten


@local_rule(_aten._cdist_forward.default)
def _distances(call: Call) -> Mapping[int, Local] | None:
    p = float(arguments(call)["p"])
    return _of_points(call, p) if 1 <= p < float("inf") else None


@local_rule(_aten._euclidean_dist.default)
def _euclidean(call: Call) -> Mapping[int, Local] | None:
    return _of_points(call, 2.0)


def _of_points(call: Call, p: float) -> Mapping[int, Local] | None:
    named = arguments(call)
    one, other = (call.operands[named[name].position].shape for name in ("x1", "x2"))
    if one[:-2] != other[:-2] or len(one) < 2:
        return None  # one set for many, of which the derivative is a sum
    b, rows, columns, k = one[:-2].numel(), one[-2], other[-2], one[-1]
    read = reader(call)

    def slopes(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        given = read(operands)
        d = given["x1"].unsqueeze(-2) - given["x2"].unsqueeze(-3)
        y = outputs[0].unsqueeze(-1)
        y = torch.where(y == 0, torch.ones_like(y), y)  # where points meet, d is 0
        if p == 1:
            return d.sgn()
        return d / y if p == 2 else d.sgn() * (d.abs() / y) ** (p - 1)

    def first(position: int) -> Local:
        check_values(b * rows * columns * k)
        structure = BlockDiagonal(b * rows, b * rows * columns, b * rows * k)
        return Local(structure, b * rows * columns * k, _shaped(slopes, (b * rows, columns, k)))

    def push(operands: Sequence[Tensor], outputs: Sequence[Tensor], vectors: Tensor) -> Tensor:
        w, v = slopes(operands, outputs).reshape(b, rows, columns, k), vectors.reshape(-1, b, columns, k)
        return -torch.einsum("sijk,csjk->csij", w, v).reshape(-1, b * rows * columns)

    def pull(operands: Sequence[Tensor], outputs: Sequence[Tensor], vectors: Tensor) -> Tensor:
        w, v = slopes(operands, outputs).reshape(b, rows, columns, k), vectors.reshape(-1, b, rows, columns)
        return -torch.einsum("sijk,csij->csjk", w, v).reshape(-1, b * columns * k)

    def second(position: int) -> Local:
        fma = b * rows * columns * k
        check_values(fma)
        lone = rows == 1
        structure: Structure = (
            BlockDiagonal(b * columns, b * columns, b * columns * k) if lone else _columns(b, rows, columns, k)
        )
        negative = _shaped(lambda *given: -slopes(*given), (b * columns, 1, k) if lone else (-1,))
        # PyTorch's own derivative has no tangents, and is wrong for many cotangents at once.
        return Local(structure, fma, negative, Through(fma, push, pull))

    return for_active(call, x1=first, x2=second)


def _shaped(values: Callable[..., Tensor], shape: tuple[int, ...]) -> Callable[..., Values]:
    return lambda operands, outputs: values(operands, outputs).reshape(shape)


def _columns(b: int, rows: int, columns: int, k: int) -> Pattern:
    """Row (s, i, j) holds the columns (s, j, :)."""
    s, _, j, entry = np.ix_(np.arange(b), np.arange(rows), np.arange(columns), np.arange(k))
    places = np.broadcast_to((s * columns + j) * k + entry, (b, rows, columns, k))
    return Pattern(b * rows * columns, b * columns * k, np.arange(b * rows * columns + 1) * k, places.reshape(-1))
