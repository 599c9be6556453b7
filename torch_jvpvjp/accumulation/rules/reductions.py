"""Local derivatives of reductions: each entry of the operand falls into one entry of the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..structure import Dense, LowerTriangular, Scatter, Structure, Values, WeightedScatter
from .arguments import Arguments, arguments, for_active, reader
from .entrywise import no_values
from .indexing import MOST_VALUES, reduced_index
from .registry import Call, Local, local_rule

_aten = torch.ops.aten

# (named arguments, output with the reduced dimensions kept) -> ∂y/∂x for each x, in the shape of the operand
Weights = Callable[[Arguments, Tensor], Tensor]


def reduced_dims(call: Call, shape: torch.Size) -> set[int]:
    """Return the dimensions that a call reduces over; all of them where it names none."""
    dims: Any = arguments(call).get("dim")
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return set(range(len(shape)))
    return {dim % max(len(shape), 1) for dim in ([dims] if isinstance(dims, int) else dims)}


def _sum_structure(call: Call, position: int) -> Structure:
    shape = call.operands[position].shape
    return Scatter(call.output.numel, reduced_index(shape, reduced_dims(call, shape)))


def weighted_sum(call: Call, position: int, weights: Weights) -> Local:
    """Return the derivative of a reduction whose entries weigh differently."""
    shape, m, n = call.operands[position].shape, call.output.numel, call.operands[position].numel
    dims = reduced_dims(call, shape)
    kept = tuple(1 if dim in dims else size for dim, size in enumerate(shape))
    structure = Dense(1, n) if m == 1 else WeightedScatter(m, reduced_index(shape, dims))
    size = (1, n) if m == 1 else (n,)
    dtype, read = call.output.dtype, reader(call)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        return weights(read(operands), outputs[0].reshape(kept)).to(dtype).expand(shape).reshape(size)

    return Local(structure, n, values)


def _count(call: Call, position: int) -> int:
    return call.operands[position].numel // call.output.numel


@local_rule(_aten.sum.default, _aten.sum.dim_IntList)
def _sum(call: Call) -> Mapping[int, Local]:
    return for_active(call, self=lambda position: Local(_sum_structure(call, position), 0, no_values))


@local_rule(_aten.mean.default, _aten.mean.dim)
def _mean(call: Call) -> Mapping[int, Local]:
    def by_count(position: int) -> Local:
        share = 1 / _count(call, position)
        return weighted_sum(call, position, lambda a, y: torch.full_like(a["self"], share))._replace(fma=0)

    return for_active(call, self=by_count)


@local_rule(_aten.logsumexp.default)
def _logsumexp(call: Call) -> Mapping[int, Local]:
    # y = log Σ eˣ  ⇒  ∂y/∂x = e^(x − y), the softmax: NaN for what is infinite, as in PyTorch
    def softmax(a: Arguments, y: Tensor) -> Tensor:
        return (a["self"] - y).exp()

    return for_active(call, self=lambda position: weighted_sum(call, position, softmax))


@local_rule(_aten.linalg_vector_norm.default)
def _norm(call: Call) -> Mapping[int, Local] | None:
    # ∂‖x‖₂/∂x = x / ‖x‖₂, and 0 at 0;   ∂‖x‖₁/∂x = sign x
    order = arguments(call)["ord"]
    if order == 2:
        return for_active(
            call,
            self=lambda position: weighted_sum(call, position, lambda a, y: (a["self"] / y).masked_fill(y == 0, 0)),
        )
    if order == 1:
        return for_active(call, self=lambda position: weighted_sum(call, position, lambda a, y: a["self"].sgn()))
    return None


def _deviations(a: Arguments, dims: set[int], freedom: float) -> Tensor:
    # ∂var/∂x = 2 (x − mean) / (k − correction), since Σ (x − mean) = 0
    x = a["self"]
    return (2 / freedom) * (x - x.mean(sorted(dims), keepdim=True))


def _freedom(call: Call) -> float:
    correction = arguments(call)["correction"]
    return _count(call, 0) - (1 if correction is None else correction)


@local_rule(_aten.var.correction)
def _variance(call: Call) -> Mapping[int, Local] | None:
    freedom, dims = _freedom(call), reduced_dims(call, call.operands[0].shape)
    if freedom <= 0:
        return None
    return for_active(
        call, self=lambda position: weighted_sum(call, position, lambda a, y: _deviations(a, dims, freedom))
    )


@local_rule(_aten.std.correction)
def _standard_deviation(call: Call) -> Mapping[int, Local] | None:
    # σ = √var  ⇒  σ' = var' / (2 σ), and 0 where σ is 0
    freedom, dims = _freedom(call), reduced_dims(call, call.operands[0].shape)
    if freedom <= 0:
        return None

    def weights(a: Arguments, y: Tensor) -> Tensor:
        return (_deviations(a, dims, freedom) / (2 * y)).masked_fill(y == 0, 0)

    return for_active(call, self=lambda position: weighted_sum(call, position, weights))


@local_rule(_aten.cumsum.default)
def _cumulative_sum(call: Call) -> Mapping[int, Local] | None:
    # y_r = Σ over c ≤ r of x_c
    n = call.output.numel
    entries = n * (n + 1) // 2
    if len(call.output.shape) != 1 or entries > MOST_VALUES:
        return None

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        return outputs[0].new_ones((entries,))

    return for_active(call, self=lambda position: Local(LowerTriangular(n, n), 0, values))
