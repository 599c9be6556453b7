"""Products with a single row as products of a matrix and a vector.

An affine layer at one sample comes as a product of matrices of which one has a single row:

    view(x, (1, n)) → addmm(b, ·, Wᵀ) → view(·, (m,))    becomes    addmv(b, W, x),

which needs neither view, nor a transpose where W itself is at hand, and reads W once, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..calls import ProgramCall
from ..tracing.tape import Ref
from .layout import Layouts

_aten = torch.ops.aten
_TRANSPOSES = frozenset({_aten.t.default})


def by_vectors(calls: Sequence[ProgramCall], layouts: Layouts, new_value: Callable[[], int]) -> list[ProgramCall]:
    """Return calls in which no product has a single row; what nothing uses any longer is still among them.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Returns:
        The calls.
    """
    made_by = {index: call for call in calls for index in call.outputs if index is not None}
    found: list[ProgramCall] = []
    for call in calls:
        if not _has_one_row(call, layouts):
            found.append(call)
            continue
        bias, row, weight = call.operands
        transposed = made_by.get(weight)
        viewed = made_by.get(row)
        matrix, vector = new_value(), new_value()
        if transposed is not None and transposed.target in _TRANSPOSES:
            matrix = transposed.operands[0]
        else:
            found.append(ProgramCall(_aten.t.default, (Ref(weight),), {}, [matrix], call.segment))
            layouts.add(found[-1])
        if viewed is not None and viewed.target is _aten.view.default and _is_vector(viewed.operands[0], layouts):
            vector = viewed.operands[0]
        else:
            found.append(ProgramCall(_aten.select.int, (Ref(row), 0, 0), {}, [vector], call.segment))
            layouts.add(found[-1])
        product = new_value()
        found += [
            ProgramCall(_aten.addmv.default, (Ref(bias), Ref(matrix), Ref(vector)), {}, [product], call.segment),
            ProgramCall(
                _aten.view.default, (Ref(product), list(_shape(call, layouts))), {}, call.outputs, call.segment
            ),
        ]
        layouts.add(found[-2])
    return found


def _has_one_row(call: ProgramCall, layouts: Layouts) -> bool:
    if call.target is not _aten.addmm.default or call.kwargs or len(call.operands) != 3:
        return False
    bias, row, weight = call.operands
    return layouts[row].shape[0] == 1 and layouts[bias].shape == layouts[weight].shape[1:]


def _is_vector(index: int, layouts: Layouts) -> bool:
    return len(layouts[index].shape) == 1


def _shape(call: ProgramCall, layouts: Layouts) -> Sequence[int]:
    return layouts[call.outputs[0] or 0].shape
