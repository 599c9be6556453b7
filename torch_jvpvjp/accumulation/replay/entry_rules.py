"""What ops do to the entries of their operands: moved ones are moved by the op itself, others go to arithmetic.

A value is a tensor of the nodes that its entries are, so that whatever views, copies, joins or pads one of numbers does
the same to one of nodes, zero being the node of zero. For an op that computes, its formula for one entry stands in a
table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..calls import ProgramCall
from .numbers import COMPARISONS, FUNCTIONS, Numbers

_aten = torch.ops.aten

Formula = Callable[..., int]
"""From the numbers, and the nodes of one entry of each operand, to the node of the result."""


def _overloads(names: str) -> frozenset[Any]:
    pairs = (name.partition(".") for name in names.split())
    return frozenset(getattr(getattr(_aten, packet), overload or "default") for packet, _, overload in pairs)


MOVING = _overloads("""
    _unsafe_view alias cat clone copy detach diag_embed diagonal diagonal_backward diagonal_scatter
    expand flip gather index_select permute reshape roll select.int select_backward select_scatter slice.Tensor
    slice_backward slice_scatter split.Tensor split_with_sizes squeeze.dim stack t transpose.int tril triu
    unbind.int unsqueeze view
""")
"""Ops whose results hold entries of their operands, and zeros."""
ZEROS = _overloads("_new_zeros_with_same_feature_meta new_zeros zeros_like")
"""Ops whose results hold zeros."""


def _power(numbers: Numbers, a: int, exponent: int) -> int:
    if exponent > 0:
        raise NotImplementedError("a power that depends on x")
    return numbers.power(a, numbers.constants[-exponent])


def _addcmul(numbers: Numbers, a: int, b: int, c: int, value: int) -> int:
    return numbers.add(a, numbers.mul(numbers.mul(value, b), c))


def _sigmoid(numbers: Numbers, a: int) -> int:
    one = numbers.constant(1.0)
    return numbers.div(one, numbers.add(one, numbers.function("exp", numbers.neg(a))))


def _larger(numbers: Numbers, a: int, b: int, name: str = "gt") -> int:
    # NaN is passed on by what PyTorch does, and not by a comparison.
    for node in (a, b):
        numbers.must_be_finite(node)
    return numbers.choose(numbers.compare(name, a, b), a, b)


def _slope_of_tanh(numbers: Numbers, y_bar: int, y: int) -> int:
    return numbers.mul(y_bar, numbers.sub(numbers.constant(1.0), numbers.mul(y, y)))


def _slope_of_sigmoid(numbers: Numbers, y_bar: int, y: int) -> int:
    return numbers.mul(y_bar, numbers.mul(numbers.sub(numbers.constant(1.0), y), y))


def _slope_of_threshold(numbers: Numbers, y_bar: int, x: int, threshold: int) -> int:
    return numbers.choose(numbers.compare("le", x, threshold), 0, y_bar)


def _negation(numbers: Numbers, condition: int) -> int:
    return numbers.compare("eq", condition, 0)


def _compared(name: str) -> Formula:
    return lambda numbers, a, b: numbers.compare(name, a, b)


def _function(name: str) -> Formula:
    return lambda numbers, a: numbers.function(name, a)


FORMULAS: dict[Any, Formula] = {
    _aten.add.Tensor: lambda numbers, a, b, alpha: numbers.add(a, numbers.mul(alpha, b)),
    _aten.sub.Tensor: lambda numbers, a, b, alpha: numbers.sub(a, numbers.mul(alpha, b)),
    _aten.add.Scalar: lambda numbers, a, b, alpha: numbers.add(a, numbers.mul(alpha, b)),
    _aten.sub.Scalar: lambda numbers, a, b, alpha: numbers.sub(a, numbers.mul(alpha, b)),
    _aten.mul.Scalar: Numbers.mul,
    _aten.div.Scalar: Numbers.div,
    _aten.rsub.Scalar: lambda numbers, a, b, alpha: numbers.sub(b, numbers.mul(alpha, a)),
    _aten.mul.Tensor: Numbers.mul,
    _aten.div.Tensor: Numbers.div,
    _aten.addcmul.default: _addcmul,
    _aten.neg.default: Numbers.neg,
    _aten.abs.default: Numbers.absolute,
    _aten.reciprocal.default: lambda numbers, a: numbers.div(numbers.constant(1.0), a),
    _aten.rsqrt.default: lambda numbers, a: numbers.power(a, -0.5),
    _aten.pow.Tensor_Scalar: _power,
    _aten.sgn.default: Numbers.sign,
    _aten.sign.default: Numbers.sign,
    _aten.sigmoid.default: _sigmoid,
    _aten.tanh_backward.default: _slope_of_tanh,
    _aten.sigmoid_backward.default: _slope_of_sigmoid,
    _aten.threshold_backward.default: _slope_of_threshold,
    _aten.maximum.default: _larger,
    _aten.minimum.default: lambda numbers, a, b: _larger(numbers, a, b, "lt"),
    _aten.relu.default: lambda numbers, a: _larger(numbers, a, 0),
    _aten.where.self: Numbers.choose,
    _aten.logical_not.default: _negation,
    _aten.bitwise_not.default: _negation,
    _aten.bitwise_and.Tensor: lambda numbers, a, b: numbers.choose(a, b, 0),
    _aten.bitwise_or.Tensor: lambda numbers, a, b: numbers.choose(a, numbers.constant(1.0), b),
    _aten.masked_fill.Scalar: lambda numbers, a, mask, value: numbers.choose(mask, value, a),
}
"""What an op does to one entry of each operand."""
FORMULAS |= {getattr(_aten, name).default: _function(name) for name in FUNCTIONS}
FORMULAS |= {getattr(getattr(_aten, n), kind): _compared(n) for n in COMPARISONS for kind in ("Scalar", "Tensor")}
CONDITIONS = frozenset(getattr(getattr(_aten, n), kind) for n in COMPARISONS for kind in ("Scalar", "Tensor"))
"""Ops whose results are conditions."""
CONDITIONS |= {_aten.where.self, _aten.logical_not.default, _aten.bitwise_not.default}
CONDITIONS |= {_aten.bitwise_and.Tensor, _aten.bitwise_or.Tensor}
_ALPHA = frozenset({_aten.add.Tensor, _aten.sub.Tensor, _aten.add.Scalar, _aten.sub.Scalar, _aten.rsub.Scalar})


def operands_of(call: ProgramCall) -> list[Any]:
    """Return what the formula of a call takes: values as `Ref`s, and numbers."""
    name = "alpha" if call.target in _ALPHA else "value" if call.target is _aten.addcmul.default else None
    if call.kwargs.keys() - {name}:
        raise NotImplementedError(f"{call.target} with {sorted(call.kwargs)}")
    if name is None or len(call.args) > (3 if name == "value" else 2):
        return list(call.args)
    return [*call.args, call.kwargs.get(name, 1)]


# ---- sums and products -----------------------------------------------------------------------------------------------


def summed(numbers: Numbers, terms: Sequence[int]) -> int:
    """Return the sum of some nodes, as a balanced tree, which errs least."""
    if not terms:
        return 0
    terms = list(terms)
    while len(terms) > 1:
        terms = [numbers.add(*terms[i : i + 2]) if i + 1 < len(terms) else terms[i] for i in range(0, len(terms), 2)]
    return terms[0]


def sum_along(numbers: Numbers, nodes: Tensor, axes: Sequence[int], *, keep: bool) -> Tensor:
    """Return the sums along some axes of a tensor of nodes."""
    rank = nodes.dim()
    along = sorted({axis % rank for axis in axes} if axes else range(rank)) if rank else []
    others = [axis for axis in range(rank) if axis not in along]
    shape = [1 if axis in along else nodes.shape[axis] for axis in range(rank)]
    rows = torch.permute(nodes, [*others, *along]).reshape(shape_size([nodes.shape[axis] for axis in others]), -1)
    sums = torch.tensor([summed(numbers, row) for row in rows.tolist()], dtype=torch.int64)
    return sums.reshape(shape if keep else [nodes.shape[axis] for axis in others])


def shape_size(shape: Sequence[int]) -> int:
    """Return the number of entries of a tensor of a shape."""
    return torch.Size(shape).numel()


def product(numbers: Numbers, left: Tensor, right: Tensor) -> Tensor:
    """Return the product of two tensors of nodes, (…, m, k) and (…, k, n) with the same axes in front."""
    (m, k), n = left.shape[-2:], right.shape[-1]
    made = [
        summed(numbers, [numbers.mul(a, b) for a, b in zip(row, column, strict=True)])
        for one, other in zip(left.reshape(-1, m, k).tolist(), right.mT.reshape(-1, n, k).tolist(), strict=True)
        for row in one
        for column in other
    ]
    return torch.tensor(made, dtype=torch.int64).reshape(*left.shape[:-1], n)
