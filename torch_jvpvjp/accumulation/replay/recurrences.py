"""Long products of steps with one matrix, of which several segments are multiplied side by side.

The state of a recurrence or an integrator of r equal steps, x ← act(W x + …) or x ← x + act(W x), has the derivative

    J = L_r … L_1 B,        L_t = D_t W   or   L_t = I + D_t W,        D_t diagonal, B what comes before.

Its r products of (n, n) matrices are as many multiply-adds in whatever order. In k segments of m steps each, all of the
segments take their next step in one product with W, of their rows one below another:

    Y_s ← (Y_s D) W   or   Y_s + (Y_s D) W,   for s = 1 … k at once,        then   J = Y_k … Y_1 B.

One product of (k n, n) with W takes less time than k of (n, n) while what goes in and out stays in the cache: oneDNN
brings W into an order of its own once for all of them, and there are fewer calls. With n = 256 and k = 5 that is 0.9 of
the time, the passes over entries between the products included.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._onednn import LEAST_FMA, onednn_is_on, onednn_is_quicker_in_rows
from .._torch import FakeTensor
from ..calls import ProgramCall, without_unused
from ..tracing.tape import Ref
from .layout import Layout, Layouts
from .quick_products import by_onednn

_aten = torch.ops.aten
_MOST_BYTES = 5 << 18  # of all segments, which are read and written in each step: twice that is slower than one by one
_LEAST_STEPS = 4  # of a segment, for what is done once to be little


class _Step(NamedTuple):
    """A step D W, or I + D W."""

    scale: int  # the value (n, 1) that is the diagonal
    kept: bool  # whether the identity is added


@dataclass
class _Product:
    """Steps with one matrix, the first on the right, of what comes before; None for nothing."""

    matrix: int
    before: int | None
    steps: list[_Step]


def with_segments_side_by_side(
    calls: Sequence[ProgramCall],
    results: Sequence[int],
    fixed: Mapping[int, Tensor],
    layouts: Layouts,
    new_value: Callable[[], int],
) -> list[ProgramCall]:
    """Return calls with long products of steps in segments.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned.
        fixed: Values that are the same in every run.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
    """
    products = _products(calls, results, fixed, layouts)
    products = {index: product for index, product in products.items() if _segments(product, layouts) > 1}
    if not products or not onednn_is_on() or not onednn_is_quicker_in_rows(torch.get_num_threads()):
        return list(calls)
    makers = {index: call for call in calls for index in call.outputs if index is not None}
    found: list[ProgramCall] = []
    for call in calls:
        product = products.get(call.outputs[0] or 0) if len(call.outputs) == 1 else None
        found += [call] if product is None else _Segments(call, product, makers, layouts, new_value).calls
    return without_unused(found, results)


def _segments(product: _Product, layouts: Mapping[int, Layout]) -> int:
    """Return how many segments a product is worth taking in; 1 if it stays as it is."""
    matrix = layouts[product.matrix]
    n = matrix.shape[0]
    alike = len({step.kept for step in product.steps}) == 1
    fit = matrix.device.type == "cpu" and matrix.dtype is torch.float32 and not any(matrix.twisted)
    if not (alike and fit) or n**3 < LEAST_FMA:
        return 1
    count = _MOST_BYTES // (n * n * matrix.dtype.itemsize)
    return max(min(count, len(product.steps) // _LEAST_STEPS), 1)


# ---- which products there are ----------------------------------------------------------------------------------------


def _products(
    calls: Sequence[ProgramCall], results: Sequence[int], fixed: Mapping[int, Tensor], layouts: Layouts
) -> dict[int, _Product]:
    """Return the products of steps by the values that they are, none of them a part of another one."""
    uses = Counter(index for call in calls for index in call.operands) + Counter(results)
    finder = _Finder(uses, fixed, layouts)
    for call in calls:
        if len(call.outputs) == 1 and not call.kwargs and len(call.operands) == 2 == len(call.args):
            finder.see(call)
    return {index: product for index, product in finder.products.items() if layouts[index].contiguous}


class _Finder:
    """What is known of the values so far.

    Products of I + A and I + B may come without the identity, as A + B + A B.

    Args:
        uses: How often each value is used.
        fixed: Values that are the same in every run.
        layouts: How the values lie in memory.

    Attributes:
        products: The values that are products of steps, not those that another one takes in.
    """

    def __init__(self, uses: Mapping[int, int], fixed: Mapping[int, Tensor], layouts: Layouts) -> None:
        self._uses, self._fixed, self._layouts = uses, fixed, layouts
        self._multiplied: dict[int, tuple[int, int]] = {}  # A B, by A and B
        self._added: dict[int, tuple[int, int]] = {}  # A + B
        self._scaled: dict[int, tuple[int, int, int]] = {}  # D W B, by D, W and B
        self._less_identity: dict[int, _Product] = {}
        self.products: dict[int, _Product] = {}

    def see(self, call: ProgramCall) -> None:
        """Learn what a call of two values makes."""
        (one, other), made = call.operands, call.outputs[0]
        if made is None or not self._is_square(made):
            return
        if call.target is _aten.mm.default and self._is_square(one) and self._is_square(other):
            self._multiply(made, one, other)
        elif call.target is _aten.mul.Tensor:
            if self._is_column(one) and self._is_square(other):
                self._scale(made, one, other)
            elif self._is_column(other) and self._is_square(one):
                self._scale(made, other, one)
        elif call.target is _aten.add.Tensor and not (self._add(made, one, other) or self._add(made, other, one)):
            self._added[made] = one, other

    def _multiply(self, made: int, left: int, right: int) -> None:
        upper, lower = self.products.get(left), self.products.get(right)
        if upper is not None and lower is not None and upper.before is None and upper.matrix == lower.matrix:
            if self._uses[left] == self._uses[right] == 1:
                del self.products[left], self.products[right]
                self.products[made] = _Product(lower.matrix, lower.before, lower.steps + upper.steps)
                return
        self._multiplied[made] = left, right

    def _scale(self, made: int, scale: int, value: int) -> None:
        if value not in self._multiplied or self._uses[value] > 1:
            self.products[made] = _Product(value, None, [_Step(scale, kept=False)])
            return
        matrix, before = self._multiplied[value]
        self._scaled[made] = scale, matrix, before
        self.products[made] = self._after(before, matrix, _Step(scale, kept=False))

    def _after(self, before: int, matrix: int, step: _Step) -> _Product:
        """Return one more step of what comes before, which is taken apart if nothing else uses it."""
        known = self.products.get(before)
        if known is None or known.matrix != matrix or self._uses[before] > (2 if step.kept else 1):
            return _Product(matrix, before, [step])
        del self.products[before]
        known.steps.append(step)
        return known

    def _add(self, made: int, value: int, other: int) -> bool:
        """Return whether a sum is a product of steps, or one less the identity."""
        if self._uses[other] > 1:
            return False
        if other in self._scaled and self._scaled[other][2] == value:  # B + D W B
            scale, matrix, _ = self._scaled[other]
            self.products.pop(other, None)
            self.products[made] = self._after(value, matrix, _Step(scale, kept=True))
            return True
        if other in self._multiplied and set(self._added.get(value, ())) == set(self._multiplied[other]):
            return self._uses[value] == 1 and self._join(made, *self._multiplied[other])  # (A + B) + A B
        if other in self._less_identity and self._is_identity(value):
            self.products[made] = self._less_identity.pop(other)
            return True
        return False

    def _join(self, made: int, left: int, right: int) -> bool:
        """Return whether the product of two products is known, all less the identity."""
        upper, lower = self._without_identity(left), self._without_identity(right)
        if upper is None or lower is None or upper.matrix != lower.matrix:
            return False
        for index in (left, right):
            self.products.pop(index, None)
            self._less_identity.pop(index, None)
        self._less_identity[made] = _Product(lower.matrix, None, lower.steps + upper.steps)
        return True

    def _without_identity(self, index: int) -> _Product | None:
        """Return the product that a value, used in a sum and a product only, is less the identity; None for others."""
        if self._uses[index] > 2:
            return None
        known = self.products.get(index)
        if known is None or known.before is not None or len(known.steps) > 1 or known.steps[0].kept:
            return self._less_identity.get(index)
        return _Product(known.matrix, None, [_Step(known.steps[0].scale, kept=True)])

    def _is_identity(self, index: int) -> bool:
        tensor = self._fixed.get(index)
        if tensor is None or isinstance(tensor, FakeTensor) or tensor.device.type != "cpu":
            return False
        return torch.equal(tensor, torch.eye(len(tensor), dtype=tensor.dtype))

    def _is_square(self, index: int) -> bool:
        shape = self._layouts[index].shape
        return len(shape) == 2 and shape[0] == shape[1] > 1

    def _is_column(self, index: int) -> bool:
        shape = self._layouts[index].shape
        return len(shape) == 2 and shape[0] > 1 == shape[1]


# ---- the same in segments --------------------------------------------------------------------------------------------


class _Segments:
    """The calls that make a product of steps.

    Args:
        call: The call that made it.
        product: What it is.
        makers: The calls that make the values.
        layouts: How the values lie in memory.
        new_value: Makes the number of another value.

    Attributes:
        calls: What is run instead.
    """

    def __init__(
        self,
        call: ProgramCall,
        product: _Product,
        makers: Mapping[int, ProgramCall],
        layouts: Layouts,
        new_value: Callable[[], int],
    ) -> None:
        self._segment, self._makers, self._layouts, self._new_value = call.segment, makers, layouts, new_value
        self._matrix, self._scales = product.matrix, [step.scale for step in product.steps]
        self._kept, self._n = product.steps[0].kept, layouts[product.matrix].shape[0]
        self._transposed: dict[int, int] = {}
        self.calls: list[ProgramCall] = []
        count = _segments(product, layouts)
        length = len(product.steps) // count
        whole = self._side_by_side(count, length)
        if product.before is not None:
            whole = self._run(_aten.mm.default, Ref(whole), Ref(product.before))
        for scale in self._scales[count * length :]:
            times = self._run(_aten.mm.default, Ref(self._matrix), Ref(whole))
            more = self._run(_aten.mul.Tensor, Ref(scale), Ref(times))
            whole = self._run(_aten.add.Tensor, Ref(whole), Ref(more)) if self._kept else more
        last = self.calls.pop()
        self.calls.append(ProgramCall(last.target, last.args, last.kwargs, call.outputs, call.segment))

    def _side_by_side(self, count: int, length: int) -> int:
        """Return the product of so many segments of so many steps each."""
        n, matrix = self._n, Ref(self._matrix)
        scales = self._shaped(self._stack_of_scales(count * length), count, length, 1, n)
        *rows, last = self._parts(scales, 1, length)
        blocks = self._run(_aten.mul.Tensor, Ref(self._run(_aten.transpose.int, Ref(last), 1, 2)), matrix)
        if self._kept:
            named = {"dtype": self._layouts[blocks].dtype, "device": self._layouts[blocks].device}
            blocks = self._run(_aten.add.Tensor, Ref(blocks), Ref(self._run(_aten.eye.default, n, **named)))
        for row in reversed(rows):
            scaled = self._shaped(self._run(_aten.mul.Tensor, Ref(blocks), Ref(row)), count * n, n)
            if self._kept:
                before = self._shaped(blocks, count * n, n)
                product = self._run(_aten.addmm.default, Ref(before), Ref(scaled), matrix)
            else:
                product = self._run(_aten.mm.default, Ref(scaled), matrix)
            blocks = self._shaped(product, count, n, n)
        *others, whole = self._parts(blocks, 0, count)
        for other in reversed(others):
            whole = self._run(_aten.mm.default, Ref(whole), Ref(other))
        return whole

    def _stack_of_scales(self, count: int) -> int:
        """Return the scales of the first so many steps, one behind another: from where they stand so, or copied."""
        places = [self._place(index) for index in self._scales[:count]]
        whole, first = places[0]
        alike = all(place == (whole, first + at) for at, place in enumerate(places))
        if whole is not None and alike and self._layouts[whole].contiguous:
            return self._run(_aten.slice.Tensor, Ref(whole), 0, first, first + count)
        return self._run(_aten.stack.default, [Ref(index) for index in self._scales[:count]])

    def _place(self, index: int) -> tuple[int | None, int]:
        """Return the tensor that a value is a part of, along its first axis, and where; no tensor if it is of none."""
        maker = self._makers.get(index)
        if maker is None or maker.kwargs or (maker.args[1:2] or (0,))[0] != 0:
            return None, 0
        if maker.target is _aten.unbind.int:
            return maker.operands[0], maker.outputs.index(index)
        one = maker.target is _aten.select.int and maker.args[2] >= 0
        return (maker.operands[0], maker.args[2]) if one else (None, 0)

    def _parts(self, value: int, axis: int, count: int) -> list[int]:
        outputs = [self._new_value() for _ in range(count)]
        self._add(ProgramCall(_aten.unbind.int, (Ref(value), axis), {}, outputs, self._segment))
        return outputs

    def _shaped(self, value: int, *shape: int) -> int:
        # What a transposed W has been scaled into lies as it does.
        target = _aten.view.default if self._layouts[value].contiguous else _aten.reshape.default
        return self._run(target, Ref(value), list(shape))

    def _run(self, target: Any, *args: Any, **kwargs: Any) -> int:
        call = ProgramCall(target, args, kwargs, [self._new_value()], self._segment)
        self._add(call)
        return call.outputs[0] or 0

    def _add(self, call: ProgramCall) -> None:
        self._layouts.add(call)
        self.calls += by_onednn(call, self._layouts, self._new_value, self._transposed)
