"""Local derivatives of Fourier transforms, which are linear: vectors go through the transform, and through its adjoint.

With Y_k = Σ_t x_t e^{−iω_k t}, the adjoint of a transform of complex numbers is the one of the other sign. That of a
transform of real numbers, of which one half is kept, is

    x̄_t = Re Σ_k ȳ_k e^{iω_k t}  =  the transform back to real numbers of ȳ, halved where its mirror image is not kept,

and the adjoint of a transform back to real numbers is that of real numbers, doubled there. Where all is kept, it is the
real part of the transform of the other sign. The matrix is the transform of the identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from ..count import fma_of_fourier
from ..reals import as_rows, as_vectors
from ..structure import Dense, Identity, Kronecker, Structure, Values
from .arguments import arguments
from .indexing import check_values
from .registry import Call, Local, Through, complex_rule

_aten = torch.ops.aten


@complex_rule(_aten._fft_c2c.default, _aten._fft_r2c.default, _aten._fft_c2r.default)
def _fourier(call: Call) -> Mapping[int, Local] | None:
    named, (operand,) = arguments(call), call.operands
    axes = [dim % len(operand.shape) for dim in named["dim"]]
    if not axes:
        return None
    shared = min(axes)  # of the axes in front of all that are transformed
    rows = prod(operand.shape[:shared])
    n, m = operand.numel // rows, call.output.numel // rows
    cost = max(fma_of_fourier(meta.shape, axes) for meta in (operand, call.output))
    if rows > 1:
        check_values(m * n)

    def transformed(x: Tensor) -> Tensor:  # behind one axis more
        return call.target(x, [axis + 1 for axis in axes], *call.args[2:])

    def push(operands: Sequence[Tensor], outputs: Sequence[Tensor], x_dots: Tensor) -> Tensor:
        return as_rows(transformed(as_vectors(x_dots, operands[0])))

    def pull(operands: Sequence[Tensor], outputs: Sequence[Tensor], y_bars: Tensor) -> Tensor:
        return as_rows(_adjoint(call, as_vectors(y_bars, outputs[0]), axes))

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        x = operands[0].reshape(rows, *operand.shape[shared:])[:1]
        unit = torch.eye(n, dtype=x.dtype.to_real(), device=x.device)
        columns = call.target(as_vectors(unit, x[0]), [axis - shared + 1 for axis in axes], *call.args[2:])
        matrix = as_rows(columns).T
        return matrix if rows == 1 else ((), matrix)

    structure: Structure = Dense(m, n) if rows == 1 else Kronecker(Identity(rows), Dense(m, n))
    return {0: Local(structure, n * (cost // rows), values, Through(cost, push, pull))}


def _adjoint(call: Call, y_bars: Tensor, axes: Sequence[int]) -> Tensor:
    """Return cotangents, behind one axis, carried back."""
    shape, normalisation = call.operands[0].shape, call.args[2]
    dims, last = [axis + 1 for axis in axes], axes[-1]
    if call.target is _aten._fft_c2c.default:
        return call.target(y_bars, dims, normalisation, not call.args[3])
    if call.target is _aten._fft_r2c.default and not call.args[3]:
        return _aten._fft_c2c.default(y_bars, dims, normalisation, False).real  # noqa: FBT003 (as the op)
    if call.target is _aten._fft_r2c.default:
        halved = _with_inner(y_bars, last + 1, shape[last], 0.5)
        return _aten._fft_c2r.default(halved, dims, normalisation, shape[last])
    kept = _aten._fft_r2c.default(y_bars, dims, normalisation, True)  # noqa: FBT003 (as the op)
    return _with_inner(kept, last + 1, call.output.shape[last], 2.0)


def _with_inner(kept: Tensor, dim: int, length: int, factor: float) -> Tensor:
    """Return the kept half of a spectrum with what has a mirror image that is not kept multiplied."""
    count = kept.shape[dim]
    weights = [1.0 if 2 * k in {0, length} else factor for k in range(count)]
    shaped = torch.tensor(weights, dtype=kept.dtype.to_real(), device=kept.device)
    return kept * shaped.reshape(-1, *(1,) * (kept.dim() - dim - 1))
