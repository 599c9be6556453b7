"""Local derivatives of ops that work entry by entry, their operands broadcast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .._torch import jvp_of_op, vjp
from ..structure import Diagonal, Gather, Identity, ScaledIdentity, Structure, Values, WeightedGather, Zero
from .arguments import Arguments, fill, reader
from .indexing import broadcast_index
from .registry import Call, Local

Formula = Callable[[Arguments, Tensor], Tensor]  # (named arguments, output) -> derivative, broadcast to the output


def no_values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
    """Return the values of a structure that stores none."""
    return ()


def zero(call: Call, position: int) -> Local:
    """Return the derivative of what does not depend on an operand, or only by steps."""
    return Local(Zero(call.output.numel, call.operands[position].numel), 0, no_values)


def _flat(slopes: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    if slopes.dtype != dtype:
        slopes = slopes.to(dtype)
    if slopes.shape != shape:
        slopes = slopes.expand(shape)
    return slopes if len(shape) == 1 else slopes.reshape(shape.numel())


def weighted(call: Call, position: int, formula: Formula) -> Local:
    """Return the derivative of y_r = f(…, x_c(r), …), where c broadcasts: row r holds ∂f/∂x at column c(r)."""
    n, shape, dtype = call.operands[position].numel, call.output.shape, call.output.dtype
    index = broadcast_index(call.operands[position].shape, shape)
    structure: Structure = Diagonal(n) if index is None else WeightedGather(n, index)
    read = reader(call)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        return _flat(formula(read(operands), outputs[0]), shape, dtype)

    return Local(structure, shape.numel(), values)


def multiple(call: Call, position: int, factor: float) -> Local:
    """Return the derivative of y_r = factor · x_c(r) + …, where c broadcasts and the factor is a number."""
    n, m = call.operands[position].numel, call.output.numel
    index = broadcast_index(call.operands[position].shape, call.output.shape)
    if factor == 1:
        return Local(Identity(n) if index is None else Gather(n, index), 0, no_values)
    size = () if index is None else (m,)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        return outputs[0].new_full(size, factor)

    return Local(ScaledIdentity(n) if index is None else WeightedGather(n, index), 0, values)


def scaled(call: Call, position: int, formula: Formula) -> Local:
    """Return the derivative of y_r = s · x_c(r), where s is one number that the run knows, of any shape."""
    n, m, dtype = call.operands[position].numel, call.output.numel, call.output.dtype
    index = broadcast_index(call.operands[position].shape, call.output.shape)
    read = reader(call)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        factor = formula(read(operands), outputs[0]).to(dtype).reshape(())
        return factor if index is None else factor.expand(m)

    return Local(ScaledIdentity(n) if index is None else WeightedGather(n, index), 1, values)


def by_tangent_of_ones(call: Call, position: int) -> Local:
    """Return the derivative of an op without a formula of its own here: ẏ for ẋ = 1 holds each ∂y_r/∂x_c(r)."""

    def slopes(primal: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return jvp_of_op(lambda x: (primal(x),), (x,), (torch.ones_like(x),))[1][0]

    return _by_sweep(call, position, slopes)


def by_cotangent_of_ones(call: Call, position: int) -> Local:
    """Return the derivative of an op whose subgradients differ by release: x̄ for ȳ = 1, x broadcast, has them."""
    shape = call.output.shape

    def slopes(primal: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y, pullback = vjp(primal, x.expand(shape))
        return pullback(torch.ones_like(y))[0]

    return _by_sweep(call, position, slopes)


def _by_sweep(call: Call, position: int, slopes: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> Local:
    shape, dtype, n = call.output.shape, call.output.dtype, call.operands[position].numel
    index = broadcast_index(call.operands[position].shape, shape)
    structure: Structure = Diagonal(n) if index is None else WeightedGather(n, index)

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        def primal(x: Tensor) -> Tensor:
            filled = [x if place == position else other for place, other in enumerate(operands)]
            return call.target(*fill(call.args, filled), **fill(call.kwargs, filled))

        return _flat(slopes(primal, operands[position]), shape, dtype)

    return Local(structure, shape.numel(), values)
