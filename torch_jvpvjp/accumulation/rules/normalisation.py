"""Local derivatives of layer normalisation and root-mean-square normalisation, row by row.

With x̂ the normalised row of length n, and r the factor that normalises it,

    layer norm:  J = diag(w) r (I − 1 1ᵀ / n − x̂ x̂ᵀ / n)
    RMS norm:    J = diag(w) r (I − x̂ x̂ᵀ / n)

A vector goes through it by two means, and not by a product with its n² entries:

    P v = v − mean(v) − mean(x̂ ⊙ v) x̂,    ẏ = w r ⊙ P ẋ,    x̄ = P (w r ⊙ ȳ)

The factor is computed again rather than read from the outputs, which PyTorch does not differentiate. Where the result
is not differentiated either, PyTorch's own pullback of a layer norm without weight takes a vector to r P v in one op.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..structure import BlockDiagonal, Diagonal, PlusLowRank, Values
from .arguments import Arguments, arguments, for_active, reader
from .entrywise import multiple, weighted
from .indexing import check_values
from .registry import Call, Final, Local, Through, local_rule

_aten = torch.ops.aten


class Rows(NamedTuple):
    """What a norm makes of its rows: x̂, (rows, n), and r, (rows, 1)."""

    normalised: Tensor
    factor: Tensor


Normalise = Callable[[Arguments], Rows]
Weight = Callable[[Tensor], Tensor]


def normalise_rows(x: Tensor, eps: float, *, centred: bool) -> Rows:
    """Return x̂ and r of the rows of a matrix."""
    if centred:
        x = x - x.mean(1, keepdim=True)
    factor = (x.square().mean(1, keepdim=True) + eps).rsqrt()
    return Rows(x * factor, factor)


def in_input(call: Call, normalise: Normalise, rows: int, n: int, *, centred: bool, weight: Weight) -> Local:
    """Return the derivative in the input: a diagonal less a product of low rank, in each row.

    Args:
        call: The call.
        normalise: Computes x̂ and r.
        rows: Number of rows.
        n: Length of a row.
        centred: The mean of the row is subtracted.
        weight: Reads w, of a shape that broadcasts to (rows, n).

    Returns:
        The derivative, as blocks, or factored where there is only one row.
    """
    read, rank, dtype = reader(call), 2 if centred else 1, call.output.dtype

    def gain(a: Arguments, factor: Tensor) -> Tensor:  # w r, (rows, n); w may be wider than x
        return (factor if a["weight"] is None else weight(a["weight"]) * factor).to(dtype).expand(rows, n)

    def directions(x_hat: Tensor) -> Tensor:  # the columns that are projected out: x̂, and 1; (rows, n, rank)
        return torch.stack((x_hat, torch.ones_like(x_hat)), dim=2) if centred else x_hat.unsqueeze(2)

    def one_row(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        a = read(operands)
        x_hat, factor = normalise(a)
        g, v = gain(a, factor).reshape(n), directions(x_hat).reshape(n, rank)
        return g, (g / -n).unsqueeze(1) * v, v.t()

    def blocks(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        a = read(operands)
        x_hat, factor = normalise(a)
        g, v = gain(a, factor), directions(x_hat)
        return torch.diag_embed(g) - (g / n).unsqueeze(2) * (v @ v.mT)

    def projected(v: Tensor, x_hat: Tensor) -> Tensor:  # P v, P being symmetric; (c, rows, n)
        along = (x_hat * v).mean(2, keepdim=True)
        return torch.addcmul(v - v.mean(2, keepdim=True) if centred else v, along, x_hat, value=-1)

    def push(operands: Sequence[Tensor], outputs: Sequence[Tensor], x_dots: Tensor) -> Tensor:
        a = read(operands)
        x_hat, factor = normalise(a)
        return (gain(a, factor) * projected(x_dots.reshape(-1, rows, n), x_hat)).reshape(-1, rows * n)

    def pull(operands: Sequence[Tensor], outputs: Sequence[Tensor], y_bars: Tensor) -> Tensor:
        a = read(operands)
        x_hat, factor = normalise(a)
        return projected(gain(a, factor) * y_bars.reshape(-1, rows, n), x_hat).reshape(-1, rows * n)

    if rows == 1:
        return Local(PlusLowRank(Diagonal(n), rank), 6 * n, one_row)
    check_values(rows * n * n)
    structure = BlockDiagonal(rows, rows * n, rows * n)
    final = _final(call, rows, n, weight) if centred else None
    through = Through((2 * rank + 1) * rows * n, push, pull, final)
    return Local(structure, rows * n * (6 + (rank + 1) * n), blocks, through)


def _final(call: Call, rows: int, n: int, weight: Weight) -> Final | None:
    """Return how a vector is carried by the pullback that PyTorch has of a layer norm; None where dtypes are mixed."""
    read = reader(call)
    dtypes = {call.output.dtype, *(operand.dtype for operand in call.operands)}
    if len(dtypes) > 1 or dtypes.isdisjoint({torch.float32, torch.float64}):
        return None

    def weighted_rows(a: Arguments, v: Tensor) -> Tensor:
        return v if a["weight"] is None else weight(a["weight"]) * v

    def projected(a: Arguments, outputs: Sequence[Tensor], v: Tensor) -> Tensor:  # r P v
        x, mean, factor = (
            one.reshape(rows, -1).expand(v.shape[0], rows, -1).contiguous() for one in (a["input"], *outputs[1:])
        )
        pulled = _aten.native_layer_norm_backward.default(v, x, [n], mean, factor, None, None, [True, False, False])
        return pulled[0]

    def push(operands: Sequence[Tensor], outputs: Sequence[Tensor], x_dots: Tensor) -> Tensor:
        a = read(operands)
        return weighted_rows(a, projected(a, outputs, x_dots.reshape(-1, rows, n))).reshape(-1, rows * n)

    def pull(operands: Sequence[Tensor], outputs: Sequence[Tensor], y_bars: Tensor) -> Tensor:
        a = read(operands)
        return projected(a, outputs, weighted_rows(a, y_bars.reshape(-1, rows, n))).reshape(-1, rows * n)

    return Final(push, pull)


def _local(call: Call, normalise: Normalise, *, centred: bool) -> dict[int, Local]:
    n = torch.Size(arguments(call)["normalized_shape"]).numel()
    rows = call.output.numel // n
    shape = call.output.shape
    return for_active(
        call,
        input=lambda position: in_input(call, normalise, rows, n, centred=centred, weight=lambda w: w.reshape(1, n)),
        weight=lambda position: weighted(call, position, lambda a, y: normalise(a).normalised.reshape(shape)),
    )


@local_rule(_aten.native_layer_norm.default)
def _layer_norm(call: Call) -> Mapping[int, Local]:
    n = torch.Size(arguments(call)["normalized_shape"]).numel()

    def normalise(a: Arguments) -> Rows:
        return normalise_rows(a["input"].reshape(-1, n), a["eps"], centred=True)

    bias = for_active(call, bias=lambda position: multiple(call, position, 1))
    return _local(call, normalise, centred=True) | bias


@local_rule(_aten._fused_rms_norm.default)
def _rms_norm(call: Call) -> Mapping[int, Local]:
    n = torch.Size(arguments(call)["normalized_shape"]).numel()

    def normalise(a: Arguments) -> Rows:
        x = a["input"].reshape(-1, n)
        eps = torch.finfo(x.dtype).eps if a["eps"] is None else a["eps"]
        return normalise_rows(x, eps, centred=False)

    return _local(call, normalise, centred=False)
