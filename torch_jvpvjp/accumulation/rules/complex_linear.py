"""Local derivatives of complex values that an op carries as it carries real ones: real and imaginary part alike.

Copies, views, sums and selections of complex numbers have A ⊗ I₂ for their Jacobian, where A is that of the same op on
real numbers. In an operand that is real, whose entries become real parts, it is A ⊗ (1, 0)ᵀ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..structure import (
    Diagonal,
    Gather,
    Identity,
    ScaledIdentity,
    Scatter,
    Structure,
    Values,
    WeightedGather,
    WeightedScatter,
    Zero,
)
from .arguments import arguments
from .entrywise import no_values
from .indexed import READS, WRITES
from .indexing import Index
from .movement import MOVEMENTS, PIECES, RESHAPES
from .registry import LOCAL_RULES, Call, Local, Meta, complex_rule

_aten = torch.ops.aten

_ALIKE = (
    _aten.alias.default, _aten.clone.default, _aten.contiguous.default, _aten.positive.default, _aten.neg.default,
    _aten.add.Tensor, _aten.add.Scalar, _aten.sub.Tensor, _aten.sub.Scalar, _aten.rsub.Tensor, _aten.rsub.Scalar,
    _aten.sum.default, _aten.sum.dim_IntList, _aten.mean.default, _aten.mean.dim, _aten.where.self,
    _aten.masked_fill.Scalar, _aten.masked_fill.Tensor, _aten.copy.default, _aten.fill.Tensor,
    _aten._to_copy.default, _aten.zeros_like.default, _aten.ones_like.default, *RESHAPES, *MOVEMENTS, *READS, *WRITES,
)  # fmt: skip


@complex_rule(*_ALIKE)
@complex_rule(*PIECES, every_output=True)
def _alike(call: Call) -> Mapping[int, Local] | None:
    if not call.output.dtype.is_complex or isinstance(arguments(call).get("alpha"), complex):
        return None
    of_reals = replace(call, operands=tuple(map(_real, call.operands)), output=_real(call.output))
    found: dict[int, Local] = {}
    for position, local in (LOCAL_RULES[call.target](of_reals) or {}).items():
        twice = call.operands[position].dtype.is_complex
        made = _twice(local) if twice else _as_real_part(local)
        if made is not None:
            found[position] = made
    return found


@complex_rule(_aten.view_as_real.default, _aten.view_as_complex.default)
def _same_numbers(call: Call) -> Mapping[int, Local]:
    return {position: Local(Identity(call.output.numel), 0, no_values) for position in call.active}


@complex_rule(_aten._conj.default, _aten._conj_physical.default, _aten.conj_physical.default)
def _conjugate(call: Call) -> Mapping[int, Local]:
    # (a, b) ↦ (a, −b)
    n = call.output.numel

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        signs = torch.tensor([1, -1], dtype=outputs[0].dtype.to_real(), device=outputs[0].device)
        return signs.repeat(n // 2)

    return {position: Local(Diagonal(n), 0, values) for position in call.active}


def _real(meta: Meta) -> Meta:
    return meta._replace(dtype=meta.dtype.to_real()) if meta.dtype.is_complex else meta


def _twice(local: Local) -> Local | None:
    """Return A ⊗ I₂ for the Jacobian A of real numbers; None for a structure that it is not known in."""
    structure = local.structure
    if isinstance(structure, (Identity, ScaledIdentity, Diagonal)):
        wide: Structure = replace(structure, n=2 * structure.n)
    elif isinstance(structure, Zero):
        wide = Zero(2 * structure.m, 2 * structure.n)
    elif isinstance(structure, (Gather, WeightedGather)):
        wide = type(structure)(2 * structure.n, _pairs(structure.index.array))
    elif isinstance(structure, (Scatter, WeightedScatter)):
        wide = type(structure)(2 * structure.m, _pairs(structure.index.array))
    else:
        return None

    def twice(values: Tensor) -> Tensor:
        return values.repeat_interleave(2) if values.dim() else values  # of a multiple of I there is one

    return Local(wide, 2 * local.fma, _of_real_parts(local, twice))


def _as_real_part(local: Local) -> Local | None:
    """Return A ⊗ (1, 0)ᵀ for the Jacobian A of real numbers; None for a structure that it is not known in."""
    structure = local.structure
    if isinstance(structure, Zero):
        return Local(Zero(2 * structure.m, structure.n), 0, no_values)
    if isinstance(structure, Identity):
        return Local(Scatter(2 * structure.n, 2 * np.arange(structure.n)), 0, no_values)
    if isinstance(structure, (ScaledIdentity, Diagonal)):
        wide = WeightedScatter(2 * structure.n, 2 * np.arange(structure.n))
        return Local(wide, local.fma, _of_real_parts(local, lambda values: values.expand(structure.n)))
    if not isinstance(structure, (Gather, WeightedGather)):
        return None

    def with_zeros(values: Any) -> Tensor:
        return torch.stack([values, torch.zeros_like(values)], 1).reshape(-1)

    of_rows = _ones(local) if isinstance(structure, Gather) else local
    wide = WeightedGather(structure.n, structure.index.array.repeat(2))
    return Local(wide, local.fma, _of_real_parts(of_rows, with_zeros))


def _ones(gather: Local) -> Local:
    rows = gather.structure.m
    return gather._replace(values=lambda operands, outputs: outputs[0].new_ones(rows))


def _pairs(index: Index) -> Index:
    return (2 * index[:, None] + np.arange(2)).reshape(-1)


def _of_real_parts(
    local: Local, change: Callable[[Tensor], Tensor]
) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Values]:
    """Return the values that the rule for real numbers has, of real parts, changed; those of no entries as they are."""

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        found: Any = local.values([_real_part(one) for one in operands], [_real_part(one) for one in outputs])
        return change(found) if isinstance(found, Tensor) else found

    return values


def _real_part(tensor: Tensor) -> Tensor:
    return tensor.real if isinstance(tensor, Tensor) and tensor.is_complex() else tensor
