"""Local derivatives of functions of complex numbers, entry by entry.

A holomorphic y = f(z) has ẏ = s ż with s = f'(z), which in real numbers is a block for each entry,

    s = p + i q:   (ẏ_re, ẏ_im)ᵀ = [[p, −q], [q, p]] (ż_re, ż_im)ᵀ.

Of a complex function of a real number the block is the column (p, q)ᵀ, and of a real function of a complex number the
row (p, q), s being then its cotangent of 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .._torch import jvp_of_op, vjp
from ..reals import in_pairs
from ..structure import BlockDiagonal, Dense, Structure, WeightedGather
from .arguments import Arguments, arguments, fill, for_active, for_every_active, reader
from .indexing import broadcast_index
from .registry import Call, Carry, Local, Operand, Through, complex_rule

_aten = torch.ops.aten

_Slope = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]  # (operands, outputs) -> s, broadcast to the entries


def _local(call: Call, position: int, slope: _Slope) -> Local | None:
    """Return the derivative of y_r = f(…, z_c(r), …) with the slope s; None where complex z are broadcast."""
    shape, dtype = call.output.shape, call.output.dtype
    operand = call.operands[position]
    into, out_of = 1 + dtype.is_complex, 1 + operand.dtype.is_complex
    wide = dtype if dtype.is_complex else operand.dtype
    index = broadcast_index(operand.shape, shape)
    count, one = shape.numel(), operand.shape.numel() == 1

    def slopes(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        return slope(operands, outputs).to(wide).expand(shape).reshape(count)

    def blocks(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        s = slopes(operands, outputs)
        if out_of == 1:
            return in_pairs(s)[:, :, None]
        return in_pairs(s)[:, None, :] if into == 1 else torch.stack([in_pairs(s), in_pairs(s * 1j)], -1)

    if index is None and count > 1:
        structure: Structure = BlockDiagonal(count, into * count, out_of * count)
        through = Through(2 * into * out_of * count, *_carries(slopes, into, out_of))
        return Local(structure, into * out_of * count, blocks, through)
    if one:
        dense = Dense(into * count, out_of)
        return Local(dense, dense.entries, lambda *run: blocks(*run).reshape(dense.m, dense.n))
    if out_of == 1:
        assert index is not None, "entries that are not broadcast have blocks"
        return Local(
            WeightedGather(operand.numel, index.repeat(into)), into * count, lambda *run: blocks(*run).reshape(-1)
        )
    return None


def _carries(slopes: _Slope, into: int, out_of: int) -> tuple[Carry, Carry]:
    """Return how real vectors go through the blocks, forwards and backwards."""

    def widened(slope: Tensor, vectors: Tensor) -> Tensor:  # a real number for each entry, to a complex one
        return vectors[:, :, None] * in_pairs(slope)

    def narrowed(slope: Tensor, vectors: Tensor) -> Tensor:  # Re(s̄ v)
        return (_paired(vectors) * in_pairs(slope)).sum(-1)

    def turned(slope: Tensor, vectors: Tensor) -> Tensor:
        return in_pairs(torch.view_as_complex(_paired(vectors)) * slope)

    if into == out_of:
        ways = turned, lambda slope, vectors: turned(slope.conj(), vectors)
    else:
        ways = (widened, narrowed) if into > out_of else (narrowed, widened)

    def carry(way: Callable[[Tensor, Tensor], Tensor]) -> Carry:
        def carried(operands: Sequence[Tensor], outputs: Sequence[Tensor], vectors: Tensor) -> Tensor:
            return way(slopes(operands, outputs), vectors).reshape(vectors.shape[0], -1)

        return carried

    return carry(ways[0]), carry(ways[1])


def _paired(vectors: Tensor) -> Tensor:
    return vectors.reshape(vectors.shape[0], -1, 2).contiguous()


def _by_formula(call: Call, formula: Callable[[Arguments, Tensor], Tensor | complex]) -> Callable[[int], Local | None]:
    read = reader(call)

    def slope(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
        found = formula(read(operands), outputs[0])
        y = outputs[0]
        return found if isinstance(found, Tensor) else torch.tensor(found, dtype=y.dtype, device=y.device)

    return lambda position: _local(call, position, slope)


@complex_rule(_aten.mul.Tensor, _aten.mul.Scalar)
def _multiplication(call: Call) -> Mapping[int, Local]:
    # y = x z
    return for_active(
        call,
        self=_by_formula(call, lambda a, y: a["other"]),
        other=_by_formula(call, lambda a, y: a["self"]),
    )


@complex_rule(_aten.div.Tensor, _aten.div.Scalar)
def _division(call: Call) -> Mapping[int, Local] | None:
    # y = x / z
    other = arguments(call)["other"]
    if not isinstance(other, Operand) and other == 0:
        return None

    def inverse(a: Arguments, y: Tensor) -> Tensor | complex:
        z = a["other"]
        return 1 / (z.to(y.dtype) if isinstance(z, Tensor) else z)

    return for_active(
        call,
        self=_by_formula(call, inverse),
        other=_by_formula(call, lambda a, y: -y / a["other"]),
    )


@complex_rule(_aten.complex.default)
def _from_parts(call: Call) -> Mapping[int, Local]:
    return for_active(call, real=_by_formula(call, lambda a, y: 1.0), imag=_by_formula(call, lambda a, y: 1j))


@complex_rule(_aten.polar.default)
def _from_angle(call: Call) -> Mapping[int, Local]:
    # y = r e^{iθ}
    return for_active(
        call,
        abs=_by_formula(call, lambda a, y: torch.polar(torch.ones_like(a["angle"]), a["angle"])),
        angle=_by_formula(call, lambda a, y: 1j * y),
    )


_HOLOMORPHIC: dict[torch._ops.OpOverload, Callable[[Tensor, Tensor], Tensor]] = {
    _aten.cos.default: lambda z, y: -z.sin(),
    _aten.cosh.default: lambda z, y: z.sinh(),
    _aten.exp.default: lambda z, y: y,
    _aten.log.default: lambda z, y: 1 / z,
    _aten.reciprocal.default: lambda z, y: -y * y,
    _aten.sin.default: lambda z, y: z.cos(),
    _aten.sinh.default: lambda z, y: z.cosh(),
    _aten.sqrt.default: lambda z, y: 1 / (2 * y),
}


@complex_rule(*_HOLOMORPHIC)
def _holomorphic(call: Call) -> Mapping[int, Local]:
    derivative = _HOLOMORPHIC[call.target]
    return for_active(call, self=_by_formula(call, lambda a, y: derivative(a["self"], y)))


@complex_rule(
    _aten.acos.default, _aten.acosh.default, _aten.asin.default, _aten.asinh.default, _aten.atan.default,
    _aten.atanh.default, _aten.exp2.default, _aten.expm1.default, _aten.log10.default, _aten.log1p.default,
    _aten.log2.default, _aten.pow.Tensor_Scalar, _aten.pow.Tensor_Tensor, _aten.pow.Scalar, _aten.rsqrt.default,
    _aten.sigmoid.default, _aten.square.default, _aten.tan.default, _aten.tanh.default,
)  # fmt: skip
def _by_tangent(call: Call) -> Mapping[int, Local]:
    """By the tangent of 1."""

    def local(position: int) -> Local | None:
        def slope(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
            z = operands[position].expand(call.output.shape).contiguous()
            primal = _primal(call, position, operands)
            return jvp_of_op(lambda z: (primal(z),), (z,), (torch.ones_like(z),))[1][0]

        return _local(call, position, slope)

    return for_every_active(call, local)


@complex_rule(_aten.abs.default, _aten.angle.default)
def _to_reals(call: Call) -> Mapping[int, Local]:
    """By the cotangent of 1."""

    def local(position: int) -> Local | None:
        def slope(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
            y, pullback = vjp(_primal(call, position, operands), operands[position])
            return pullback(torch.ones_like(y))[0]

        return _local(call, position, slope)

    return for_every_active(call, local)


def _primal(call: Call, position: int, operands: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a call as a function of one operand."""

    def primal(z: Tensor) -> Tensor:
        filled = [z if place == position else other for place, other in enumerate(operands)]
        return call.target(*fill(call.args, filled), **fill(call.kwargs, filled))

    return primal
