"""Local derivatives of reads and writes at indices whose values are known: gathers and scatters.

Which entries such an op moves is in the values of its indices, so there is a closed form only where `Call.known` has
them. The indices of each place are found by the op itself, or its reading twin, run on the numbers of the entries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..structure import Diagonal, Gather, Identity, Scatter, Values, WeightedScatter
from .arguments import TooManyEntries, arguments, fill, for_active, rerun
from .entrywise import no_values, zero
from .indexing import Index, check_indices, unrecorded
from .registry import Call, Local, Operand, local_rule

_aten = torch.ops.aten

READS = frozenset({
    _aten.embedding.default,
    _aten.gather.default,
    _aten.index.Tensor,
    _aten.index_select.default,
    _aten.take.default,
})
WRITES = frozenset({
    _aten.index_add.default,
    _aten.index_copy.default,
    _aten.index_put.default,
    _aten.scatter.src,
    _aten.scatter_add.default,
})
_ADDING = frozenset({_aten.index_add.default, _aten.scatter_add.default})


@local_rule(*READS)
def _read(call: Call) -> Mapping[int, Local] | None:
    # y_r = x_c(r)
    named = arguments(call)
    # An adjoint that leaves a row out, or divides by how often it is read, is no transpose of that.
    if named.get("padding_idx", -1) >= 0 or named.get("scale_grad_by_freq") or not _has_indices(call, named):
        return None
    name = "weight" if "weight" in named else "self"
    n = call.operands[named[name].position].numel

    def read(position: int) -> Local:
        operands = _known(call)
        operands[position] = _numbers(call, named[name])
        with unrecorded():
            places = rerun(call, operands).reshape(-1).numpy()
        return Local(Gather(n, places), 0, no_values)

    return for_active(call, **{name: read})


@local_rule(*WRITES)
def _write(call: Call) -> Mapping[int, Local] | None:
    # y = x, but y_p(i) = x_p(i) + α v_i, or v_i alone
    named = arguments(call)
    source = next(name for name in ("source", "src", "values") if name in named)
    try:
        places = _written(call, named, source) if _has_indices(call, named) else None
    except TooManyEntries:
        return None
    adds = named.get("accumulate", call.target in _ADDING)
    if places is None or (not adds and np.unique(places).size < places.size):  # which one stays is not said
        return None
    m, alpha = call.output.numel, named.get("alpha", 1)

    def kept(position: int) -> Local:
        if adds:
            return Local(Identity(m), 0, no_values)
        return zero(call, position) if places.size == m else Local(Diagonal(m), 0, _unwritten(call, named[source]))

    def written(position: int) -> Local:
        if alpha == 1:
            return Local(Scatter(m, places), 0, no_values)
        return Local(WeightedScatter(m, places), 0, lambda operands, outputs: outputs[0].new_full(places.shape, alpha))

    return for_active(call, **{"self": kept, source: written})


def _has_indices(call: Call, named: Mapping[str, Any]) -> bool:
    """Return whether the values of all operands that hold indices are known."""
    places = _operands([named[name] for name in ("index", "indices") if name in named])
    return bool(places) and all(place.position in call.known for place in places)


def _operands(tree: Any) -> list[Operand]:
    if isinstance(tree, (list, tuple)):
        return [operand for leaf in tree for operand in _operands(leaf)]
    return [tree] if isinstance(tree, Operand) else []


def _written(call: Call, named: Mapping[str, Any], source: str) -> Index | None:
    """Return the place that each entry of the source is written to; None where they are not one to one."""
    numbers = _numbers(call, named["self"])
    index = fill(named["indices" if "indices" in named else "index"], _known(call))
    with unrecorded():
        if call.target is _aten.index_put.default:
            places = _aten.index.Tensor(numbers, index)
        elif call.target in {_aten.scatter.src, _aten.scatter_add.default}:
            places = _aten.gather.default(numbers, named["dim"], index)
        else:
            places = _aten.index_select.default(numbers, named["dim"], index)
    shape = call.operands[named[source].position].shape
    return places.reshape(-1).numpy() if places.shape == shape else None


def _unwritten(call: Call, source: Operand) -> Callable[[Sequence[Tensor], Sequence[Tensor]], Values]:
    """Return what marks the entries that nothing is written over: the op itself, zeros written into ones."""

    def values(operands: Sequence[Tensor], outputs: Sequence[Tensor]) -> Values:
        marked = list(operands)
        marked[source.position] = torch.zeros_like(operands[source.position])
        marked[arguments(call)["self"].position] = torch.ones_like(outputs[0])
        return rerun(call, marked).reshape(-1)

    return values


def _numbers(call: Call, operand: Operand) -> Tensor:
    """Return the numbers of the entries of an operand, in its shape."""
    shape = call.operands[operand.position].shape
    check_indices(max(shape.numel(), call.output.numel))
    with unrecorded():
        return torch.arange(shape.numel(), device="cpu").reshape(shape)


def _known(call: Call) -> list[Tensor]:
    """Return the operands of a call, nothing in the place of those that are not known."""
    with unrecorded():
        nothing = torch.empty(0, device="cpu")
    return [call.known.get(place, nothing) for place in range(len(call.operands))]
