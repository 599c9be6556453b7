"""A norm of rows that share their tangents, and the linear layer behind it, without a product of all tangents.

Where an input is added to all T tokens, each of its K tangents e_k is the same for all of them, and their layer norm
with x̂ = r (x − mean(x)) of n entries, followed by the weights W (with the gain in them), is

    ẏ_kt = r_t (c_k W − (⟨c_k, x̂_t⟩ / n) x̂_t W),    c_k = e_k − mean(e_k):

three products of K and of T rows, and two passes over the K T rows of the result, in place of K T rows by W.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._torch import FakeTensor
from ..calls import ProgramCall, without_unused
from ..tracing.tape import Ref
from .axes import is_copy
from .chains import Chains
from .layout import Layouts

_aten = torch.ops.aten
_NORM = _aten.native_layer_norm_backward.default  # which is the pushforward too: the Jacobian is symmetric
_DTYPES = frozenset({torch.float32, torch.float64})
_LEAST = 1 << 15  # entries of the result
_LEAST_WIDTH = 48  # of a norm: two passes over the result take as long as a product of half as many terms
_FEWEST = 4  # tangents, and rows


def with_shared_tangents(
    calls: Sequence[ProgramCall],
    results: Sequence[int],
    fixed: Mapping[int, Tensor],
    layouts: Layouts,
    new_value: Callable[[], int],
) -> list[ProgramCall]:
    """Return calls in which products of norms whose rows share their tangents are made of few rows.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        fixed: Values that are the same in every run and that the program has made itself.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
    """
    if not any(call.target is _NORM for call in calls):
        return list(calls)
    shared = _Shared(Chains(calls, results, layouts), fixed, layouts, new_value)
    found: list[ProgramCall] = []
    for call in calls:
        found += shared.few_rows(call) or [call]
    return without_unused(found, results)


class _Shared:
    def __init__(
        self, chains: Chains, constants: Mapping[int, Tensor], layouts: Layouts, new_value: Callable[[], int]
    ) -> None:
        self._chains, self._constants, self._layouts, self._new_value = chains, constants, layouts, new_value
        self._found: list[ProgramCall] = []
        self._segment = 0

    def few_rows(self, call: ProgramCall) -> list[ProgramCall]:
        """Return the calls in the place of the product of a norm; none if its tangents are not shared."""
        if call.target is not _aten.mm.default or call.kwargs or len(call.operands) != 2:
            return []
        norm, gain = self._chains.alone(call.operands[0]), None
        if norm is not None and norm.target is _aten.mul.Tensor and len(norm.distinct) == 2:
            norm, gain = self._of_norm(norm)
        if norm is None or norm.target is not _NORM or not self._is_fit(norm, gain, call):
            return []
        if self._chains.below(call.operands[0]).groups != ((0, 1), (2,)):  # a row for each tangent and row of x
            return []
        tangents, x = (self._repeated(norm.args[place].index, axis) for place, axis in ((0, 1), (1, 0)))
        if tangents is None or x is None:
            return []
        self._found, self._segment = [], call.segment
        self._write(call, norm, gain, tangents, x)
        return self._found

    def _of_norm(self, call: ProgramCall) -> tuple[ProgramCall | None, int | None]:
        """Return the norm, and the gain, that a call multiplies."""
        for gain, large in (call.operands, call.operands[::-1]):
            if self._layouts[large].shape == self._layouts[call.outputs[0] or 0].shape:
                norm = self._chains.alone(large)
                if norm is not None and large in norm.outputs:
                    return norm, gain
        return None, None

    def _is_fit(self, norm: ProgramCall, gain: int | None, product: ProgramCall) -> bool:
        tangents, x, sizes, mean, rstd, weight, bias, wanted = norm.args
        shape, width = self._layouts[tangents.index].shape, self._layouts[product.operands[1]].shape[1]
        if len(shape) != 3 or list(sizes) != [shape[2]] or weight is not None or bias is not None:
            return False
        layouts = [self._layouts[ref.index] for ref in (tangents, x, mean, rstd)] + [self._layouts[product.operands[1]]]
        plain = all(
            one.device.type == "cpu" and one.dtype in _DTYPES and one.dtype is layouts[0].dtype and not any(one.twisted)
            for one in layouts
        )
        stats = all(one.shape == (*shape[:2], 1) for one in layouts[2:4])
        large = shape[2] >= _LEAST_WIDTH and min(shape[:2]) >= _FEWEST and shape[0] * shape[1] * width >= _LEAST
        multiplied = gain is None or (self._layouts[gain].numel == self._layouts[gain].shape[-1] == shape[2])
        return plain and stats and large and multiplied and list(wanted) == [True, False, False]

    def _repeated(self, index: int, axis: int) -> int | None:
        """Return a value of the same entries that all places along an axis share; None if there is none."""
        if index in self._constants and index not in self._chains.makers:
            tensor = self._constants[index]
            if isinstance(tensor, FakeTensor):
                return None
            return index if bool((tensor == tensor.narrow(axis, 0, 1)).all()) else None
        call = self._chains.makers.get(index)
        while call is not None and is_copy(call):
            (index,) = call.operands
            call = self._chains.makers.get(index)
        return index if self._layouts[index].stride[axis] == 0 else None

    def _write(self, call: ProgramCall, norm: ProgramCall, gain: int | None, tangents: int, x: int) -> None:
        mean, rstd = norm.args[3].index, norm.args[4].index
        many, rows, n = self._layouts[tangents].shape
        weights = call.operands[1]
        if gain is not None:
            weights = self._run(_aten.mul.Tensor, weights, self._run(_aten.view.default, gain, [n, 1]))
        e, x, mean, r = (
            self._run(_aten.select.int, value, axis, 0) for value, axis in ((tangents, 1), (x, 0), (mean, 0), (rstd, 0))
        )
        c = self._run(_aten.sub.Tensor, e, self._run(_aten.mean.dim, e, [1], True))  # noqa: FBT003
        normalised = self._run(_aten.mul.Tensor, self._run(_aten.sub.Tensor, x, mean), r)  # x̂
        along = self._run(_aten.mm.default, c, self._run(_aten.t.default, normalised))  # ⟨c_k, x̂_t⟩
        along = self._run(_aten.mul.Tensor, along, self._run(_aten.t.default, r))
        of_tangents = self._run(_aten.mm.default, c, weights)
        of_rows = self._run(_aten.mm.default, normalised, weights)
        width = self._layouts[weights].shape[1]
        first = self._run(_aten.mul.Tensor, self._run(_aten.view.default, of_tangents, [many, 1, width]), r)
        factor = self._run(_aten.view.default, along, [many, rows, 1])
        both = self._run(_aten.addcmul.default, first, factor, of_rows, value=-1 / n)
        last = ProgramCall(_aten.view.default, (Ref(both), [many * rows, width]), {}, call.outputs, self._segment)
        self._found.append(last)

    def _run(self, target: Any, *args: Any, **kwargs: Any) -> int:
        """Add a call; integers at the place of tensors are values."""
        tensors = [argument.type.kind() == "TensorType" for argument in target._schema.arguments]
        given = tuple(Ref(arg) if tensor else arg for arg, tensor in zip(args, tensors, strict=False))
        call = ProgramCall(target, given, kwargs, [self._new_value()], self._segment)
        self._layouts.add(call)
        self._found.append(call)
        return call.outputs[0] or 0
