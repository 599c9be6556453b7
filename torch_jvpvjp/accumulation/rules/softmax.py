"""Local derivatives of the softmax, its logarithm, and running sums of exponentials, along the last dimension.

It may be followed by dimensions of one entry.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..structure import BlockDiagonal, Diagonal, Identity, LowerTriangular, PlusLowRank, Values
from .arguments import arguments, for_active, reader
from .indexing import check_values
from .registry import Call, Local, Through, local_rule

_aten = torch.ops.aten


def _rows(call: Call) -> tuple[int, int] | None:
    """Return how many rows the call normalises, and their length; None if the entries of a row are not neighbours."""
    shape = call.output.shape
    dim = arguments(call)["dim"] % max(len(shape), 1)
    if shape[dim + 1 :].numel() != 1:
        return None
    k = shape[dim] if shape else 1
    return call.output.numel // k, k


@local_rule(_aten._softmax.default)
def _softmax(call: Call) -> Mapping[int, Local] | None:
    # J = diag(y) − y yᵀ for each row
    rows = _rows(call)
    if rows is None:
        return None
    count, k = rows

    def one_row(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        y = outputs[0].reshape(k)
        return y, -y.unsqueeze(1), y.unsqueeze(0)

    def blocks(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        y = outputs[0].reshape(count, k)
        return torch.diag_embed(y) - y.unsqueeze(2) * y.unsqueeze(1)

    def carry(operands: Sequence[Tensor], outputs: Sequence[Tensor], vectors: Tensor) -> Tensor:
        # J v = y ⊙ v − ⟨y, v⟩ y, and J is symmetric
        y = outputs[0].reshape(count, k)
        scaled = y * vectors.reshape(-1, count, k)
        return torch.addcmul(scaled, scaled.sum(2, keepdim=True), y, value=-1).reshape(-1, count * k)

    def local(position: int) -> Local:
        if count == 1:
            return Local(PlusLowRank(Diagonal(k), 1), k, one_row)
        check_values(count * k * k)
        structure, through = BlockDiagonal(count, count * k, count * k), Through(2 * count * k, carry, carry)
        return Local(structure, count * k * k, blocks, through)

    return for_active(call, self=local)


@local_rule(_aten._log_softmax.default)
def _log_softmax(call: Call) -> Mapping[int, Local] | None:
    # J = I − 1 sᵀ for each row, with s = eʸ the softmax
    rows = _rows(call)
    if rows is None:
        return None
    count, k = rows

    def one_row(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        s = outputs[0].exp().reshape(1, k)
        return (), s.new_full((k, 1), -1), s

    def blocks(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        s = outputs[0].exp().reshape(count, 1, k)
        return torch.eye(k, dtype=s.dtype, device=s.device) - s

    def push(operands: Sequence[Tensor], outputs: Sequence[Tensor], x_dots: Tensor) -> Tensor:
        s, v = outputs[0].exp().reshape(count, k), x_dots.reshape(-1, count, k)
        return (v - (s * v).sum(2, keepdim=True)).reshape(-1, count * k)  # ẏ = ẋ − ⟨s, ẋ⟩ 1

    def pull(operands: Sequence[Tensor], outputs: Sequence[Tensor], y_bars: Tensor) -> Tensor:
        s, v = outputs[0].exp().reshape(count, k), y_bars.reshape(-1, count, k)
        return torch.addcmul(v, v.sum(2, keepdim=True), s, value=-1).reshape(-1, count * k)  # x̄ = ȳ − (Σ ȳ) s

    def local(position: int) -> Local:
        if count == 1:
            return Local(PlusLowRank(Identity(k), 1), k, one_row)
        check_values(count * k * k)
        structure, through = BlockDiagonal(count, count * k, count * k), Through(count * k, push, pull)
        return Local(structure, count * k * k, blocks, through)

    return for_active(call, self=local)


@local_rule(_aten.logcumsumexp.default)
def _log_cumulative_sum_of_exponentials(call: Call) -> Mapping[int, Local] | None:
    # y_r = log Σ over c ≤ r of e^(x_c)   ⇒   ∂y_r/∂x_c = e^(x_c − y_r) for c ≤ r
    rows = _rows(call)
    if rows is None:
        return None
    count, k = rows
    read = reader(call)

    def blocks(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        y = outputs[0].reshape(count, k, 1)
        above = torch.ones(k, k, dtype=torch.bool, device=y.device).triu(1)
        return (read(operands)["self"].reshape(count, 1, k) - y).masked_fill(above, -torch.inf).exp()

    def one_row(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        below = torch.ones(k, k, dtype=torch.bool).tril().flatten().nonzero().flatten()
        return blocks(operands, outputs).reshape(k * k).index_select(0, below.to(outputs[0].device))

    def local(position: int) -> Local:
        check_values(count * k * k)
        if count == 1:
            return Local(LowerTriangular(k, k), k * k, one_row)
        return Local(BlockDiagonal(count, count * k, count * k), count * k * k, blocks)

    return for_active(call, self=local)
