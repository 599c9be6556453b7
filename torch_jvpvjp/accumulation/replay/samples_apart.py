"""Sweeps through batched products, as those of attention by heads, sample by sample where that spares copies.

Products of a batch are made of what lies sample by sample, while tangents Ẋ come with the samples, the heads, between
their tokens and their entries, and a factor that all tangents share is copied for each of them:

    Ż = Ẋ Wᵀ + X Ẇᵀ    for K tangents of h heads takes clone(permute(Ẋ)), clone(permute(Ẇ)), clone(expand(X)), and
                       clone(permute(·)) of the first product, for it has the heads outside and the second the tangents.

One head of Ẋ is a matrix with gaps between its rows, of one of Ẇ the tangents are matrices with gaps, and X expanded is
a batch that lies in one place: BLAS takes all of them as they are. So what goes from product to product is kept in one
piece for each head, entry by entry ops and sums are done on pieces, and the pieces are joined where something else
looks at them:

    Ż_h = addmm(X_h Ẇ_hᵀ, Ẋ_h, W_hᵀ),    Ṗ_h = P_h ⊙ Ż_h − …,    …,    stack(Ȯ_1, …, Ȯ_h).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from ..calls import RANDOM, ProgramCall, without_unused
from ..tracing.tape import Ref
from .axes import RESHAPING, SAMPLE, TURNING, Form, alike, is_copy, moved, permuted, whole
from .layout import Layout, Layouts
from .relaid import looks_at_memory
from .sample_pieces import Pieces

_aten = torch.ops.aten
_LEAST_FMA = 1 << 16  # of a product of one sample; those of less are done in the time that calling for them takes
_MOST_SAMPLES = 64
_GRAIN = 1 << 15  # entries that PyTorch gives to one thread; the pieces of a sample are to be enough for all of them
_ENTRIES_OF_A_CALL, _ENTRIES_OF_A_VIEW = 1 << 13, 1 << 11  # that are copied in the time that it takes besides
_DTYPES = frozenset({torch.float32, torch.float64})
_SUMS = frozenset({_aten.sum.dim_IntList, _aten.mean.dim})


def with_samples_apart(
    calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
) -> list[ProgramCall]:
    """Return calls whose sweeps through batched products go sample by sample, if that spares more than it takes.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        results: The values that are returned, which lie as before.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Returns:
        The calls.
    """
    found = list(calls)
    products = [call for call in calls if call.target is _aten.bmm.default and _is_fit(call, layouts)]
    if len(products) < 2 or any(map(looks_at_memory, calls)):
        return found
    after = Layouts(layouts)
    looking, sweep = (_Sweep(calls, results, after, new_value) for _ in range(2))
    for call in products:
        looking.look_for_samples(call)
    sweep.counts = looking.counts
    if not sweep.counts:
        return found
    try:
        for call in calls:
            sweep.add(call)
        for index in dict.fromkeys(results):
            sweep.join(index, calls[-1].segment)
    except (RuntimeError, _Unjoined):
        return found
    again = without_unused(sweep.found, results)
    if _entries_taken(again, after) >= _entries_taken(calls, layouts):
        return found
    layouts.update(after)
    return again


def _is_fit(call: ProgramCall, layouts: Mapping[int, Layout]) -> bool:
    operands = [layouts[index] for index in call.operands]
    return all(one.device.type == "cpu" and one.dtype in _DTYPES and not any(one.twisted) for one in operands)


def _fma(call: ProgramCall, layouts: Mapping[int, Layout]) -> int:
    left, right = (layouts[index] for index in call.operands)
    return left.numel * right.shape[-1]


def _entries_taken(calls: Sequence[ProgramCall], layouts: Mapping[int, Layout]) -> int:
    """Return what calls take besides their arithmetic, in entries that are copied in the time."""
    views = sum(call.target.is_view for call in calls)
    copies = (call for call in calls if call.target in {_aten.clone.default, _aten.stack.default})
    copied = sum(layouts[call.outputs[0] or 0].numel for call in copies)
    return copied + _ENTRIES_OF_A_VIEW * views + _ENTRIES_OF_A_CALL * (len(calls) - views)


class _Unjoined(Exception):
    """A value that cannot be made of its pieces as it lay."""


class _Sweep:
    """Calls rewritten one after another.

    Args:
        calls: The calls.
        results: The values that are returned.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.

    Attributes:
        found: What they have become; some of it nothing may use.
        counts: By how many samples there are, the fewest multiplications of a product that is done sample by sample.
    """

    def __init__(
        self, calls: Sequence[ProgramCall], results: Sequence[int], layouts: Layouts, new_value: Callable[[], int]
    ) -> None:
        self.layouts, self._pieces = layouts, Pieces(layouts, new_value)
        self.found = self._pieces.found
        self.counts: dict[int, int] = {}
        self._makers = {index: call for call in calls for index in call.outputs if index is not None}
        self._uses = Counter(index for call in calls for index in call.operands) + Counter(results)
        self._forms: dict[int, Form] = {}  # of values that are there in pieces
        self._absent: set[int] = set()  # values that are there in pieces only
        self._below: dict[int, Form] = {}  # of other values: what they are a view or a copy of
        self._products: dict[int, ProgramCall] = {}  # what has made a piece, if it is a product

    # ---- which products ----------------------------------------------------------------------------------------------

    def look_for_samples(self, call: ProgramCall) -> None:
        """Learn how many samples a product has, if all else that it is a batch of shares one of its factors."""
        forms = alike([self._form(index) for index in call.operands], [(0, None, None), (0, None, None)])
        place = None if forms is None else self._samples(forms)
        if forms is None or place is None or len(forms[0].groups[0]) == 1:
            return
        count = forms[0].group_sizes(0)[place]
        fma = _fma(call, self.layouts)
        shared_out = _GRAIN * (torch.get_num_threads() - 1) < self.layouts[call.outputs[0] or 0].numel // count
        if 1 < count <= _MOST_SAMPLES and fma >= count * _LEAST_FMA and shared_out:
            self.counts[count] = min(fma, self.counts.get(count, fma))

    def _samples(self, forms: Sequence[Form]) -> int | None:
        """Return the one axis of a batch along which neither factor repeats itself; None if there is not one."""
        pairs = zip(*(form.groups[0] for form in forms), strict=True)
        both = [place for place, axes in enumerate(pairs) if not any(map(self._repeats, forms, axes))]
        return both[0] if len(both) == 1 else None

    def _repeats(self, form: Form, axis: int) -> bool:
        return axis != SAMPLE and not form.apart and self._pieces.layout(form.values[0], form.sizes).stride[axis] == 0

    def _form(self, index: int) -> Form:
        """Return what a value is a view or a copy of, or is in pieces."""
        if index in self._forms:
            return self._forms[index]
        if index not in self._below:
            call = self._makers.get(index)
            form = None
            if call is not None and (is_copy(call) or call.target in RESHAPING | TURNING):
                form = moved(self._form(call.operands[0]), call, self.layouts[index].shape)
            self._below[index] = whole(index, self.layouts[index].shape) if form is None else form
        return self._below[index]

    # ---- calls -------------------------------------------------------------------------------------------------------

    def add(self, call: ProgramCall) -> None:
        """Add what a call has become."""
        if call.segment != self._pieces.segment:
            self._pieces.run_samples()
        self._pieces.segment = call.segment
        form = self._rewritten(call)
        if form is not None and form.apart:
            self._forms[call.outputs[0] or 0] = form
            self._absent.add(call.outputs[0] or 0)
            return
        if call.target is _aten.stack.default and self._stacked(call):
            return
        for index in call.distinct:
            self.join(index, call.segment)
        self.found.append(call)

    def _rewritten(self, call: ProgramCall) -> Form | None:
        """Return the form of what a call on pieces gives; None if it cannot be done so."""
        if len(call.outputs) != 1 or call.outputs[0] is None:
            return None
        if call.target is _aten.bmm.default:
            return self._product(call)
        if self._absent.isdisjoint(call.operands):
            return None
        if is_copy(call) or call.target.is_view or call.target in RESHAPING:
            return moved(self._forms[call.operands[0]], call, self.layouts[call.outputs[0]].shape)
        if call.target in _SUMS:
            return self._sum(call)
        return self._entrywise(call) if _is_entrywise(call) else None

    def _product(self, call: ProgramCall) -> Form | None:
        if not _is_fit(call, self.layouts):
            return None
        forms = alike([self._form(index) for index in call.operands], [(0, None, None), (0, None, None)])
        if forms is None:
            return None
        places = {form.groups[0].index(SAMPLE) for form in forms if SAMPLE in form.groups[0]}
        if any(form.apart and SAMPLE not in form.groups[0] for form in forms) or len(places) > 1:
            return None
        place = places.pop() if places else self._samples(forms)
        if place is None:
            return None
        count = forms[0].group_sizes(0)[place]
        if count not in self.counts or (self._absent.isdisjoint(call.operands) and self._is_small(call, count)):
            return None
        left, right = (form if form.apart else self._pieces.apart(form, form.groups[0][place]) for form in forms)
        batch = [axis for axis in left.groups[0] if axis != SAMPLE]
        factors = (
            self._pieces.matrices(left, batch, left.groups[1], left.groups[2]),
            self._pieces.matrices(right, [axis for axis in right.groups[0] if axis != SAMPLE], *right.groups[1:]),
        )
        target = _aten.bmm.default if batch else _aten.mm.default
        pairs = enumerate(zip(*factors, strict=True))
        made = [self._pieces.run(target, Ref(one), Ref(other), sample=sample) for sample, (one, other) in pairs]
        (*_, m, _), n = self.layouts[call.operands[0]].shape, self.layouts[call.operands[1]].shape[2]
        between = iter(range(len(batch)))
        first = tuple(SAMPLE if axis == SAMPLE else next(between) for axis in left.groups[0])
        sizes, outer = [left.sizes[axis] for axis in batch], list[tuple[int, ...]]()
        for size in (m, n):
            outer.append((len(sizes),) if size > 1 else ())
            sizes += [size] if size > 1 else []
        self._products |= {value: self._pieces.waiting[sample][-1] for sample, value in enumerate(made)}
        return Form(tuple(made), tuple(sizes), (first, *outer))

    def _is_small(self, call: ProgramCall, count: int) -> bool:
        return _fma(call, self.layouts) < self.counts[count]

    def _entrywise(self, call: ProgramCall) -> Form | None:
        values = [arg for arg in call.args if isinstance(arg, Ref)]
        if len(values) != len(call.operands):
            return None
        shape, dtype = self.layouts[call.outputs[0] or 0].shape, self.layouts[call.outputs[0] or 0].dtype
        if any(self.layouts[ref.index].dtype not in {dtype, torch.bool} for ref in values):
            return None  # what a tensor of no axes, as a piece may be, counts for is not what others do
        of_one = [ref for ref in values if self.layouts[ref.index].numel == 1 and ref.index not in self._forms]
        others = [ref for ref in values if ref not in of_one]
        forms = alike(
            [self._form(ref.index) for ref in others],
            [_places(len(self.layouts[ref.index].shape), len(shape)) for ref in others],
        )
        if forms is None:
            return None
        full = next((form for form in forms if form.apart and form.shape == tuple(shape)), None)
        if full is None:
            return None
        pieces = {ref: self._pieces.along(form, full) for ref, form in zip(others, forms, strict=True)}
        pieces |= {ref: [self._pieces.seen(ref.index, [], None)] * len(full.values) for ref in of_one}
        if any(values is None for values in pieces.values()):
            return None
        made: list[int] = []
        for sample in range(len(full.values)):
            args = [Ref((pieces[arg] or ())[sample]) if isinstance(arg, Ref) else arg for arg in call.args]
            made.append(self._pieces.run(call.target, *args, sample=sample, **call.kwargs))
        return full._replace(values=tuple(made))

    def _sum(self, call: ProgramCall) -> Form | None:
        form, rank = self._forms[call.operands[0]], len(self.layouts[call.operands[0]].shape)
        _, axes, *keep = call.args
        places = {axis % rank for axis in axes or ()}
        summed = [axis for place in sorted(places) for axis in form.groups[place]]
        if call.kwargs or not summed or SAMPLE in summed:
            return None
        left = [axis for axis in range(len(form.sizes)) if axis not in summed]
        values = tuple(
            self._pieces.run(
                call.target, Ref(self._pieces.seen(value, form.sizes, sample)), summed, *keep, sample=sample
            )
            for sample, value in enumerate(form.values)
        )
        groups = [
            () if place in places else tuple(SAMPLE if axis == SAMPLE else left.index(axis) for axis in group)
            for place, group in enumerate(form.groups)
        ]
        if not (keep and keep[0]):
            groups = [group for place, group in enumerate(groups) if place not in places]
        return Form(values, tuple(form.sizes[axis] for axis in left), tuple(groups))

    # ---- values ------------------------------------------------------------------------------------------------------

    def join(self, index: int, segment: int) -> None:
        """Make a value that is there in pieces only.

        Args:
            index: The value.
            segment: The task that it is made in.

        Raises:
            _Unjoined: If it has gaps.
        """
        if index not in self._absent:
            return
        self._pieces.run_samples()
        self._pieces.segment = segment
        call = self._makers[index]
        if call.target.is_view:
            for operand in call.distinct:
                self.join(operand, segment)
            self.found.append(call)
        else:
            layout, form = self.layouts[index], self._forms[index]
            order = sorted(range(len(layout.shape)), key=lambda axis: -layout.stride[axis])
            turned = layout._replace(
                shape=torch.Size(layout.shape[axis] for axis in order),
                stride=tuple(layout.stride[axis] for axis in order),
            )
            if not turned.contiguous:
                raise _Unjoined
            stacked = self._stack({index: permuted(form, order)})
            if order == sorted(order):
                call = ProgramCall(_aten.view.default, (Ref(stacked), list(layout.shape)), {}, [index], segment)
            else:
                seen = self._pieces.seen(stacked, turned.shape, None)
                back = [order.index(axis) for axis in range(len(order))]
                call = ProgramCall(_aten.permute.default, (Ref(seen), back), {}, [index], segment)
            self.found.append(call)
        self._absent.discard(index)

    def _stack(self, forms: Mapping[int, Form]) -> int:
        """Return tensors in pieces as one, contiguous; several lie side by side just outside of their samples."""
        pieces: list[Ref] = []
        for index, form in forms.items():
            order = [axis for axis in form.order if axis != SAMPLE]
            values = self._transposed(form, order) if self._is_alone(index) else None
            pieces += map(
                Ref, values or [self._pieces.permuted(value, form.sizes, order, None) for value in form.values]
            )
        place = next(iter(forms.values())).order.index(SAMPLE)
        return self._pieces.run(_aten.stack.default, pieces, place, sample=None)

    def _transposed(self, form: Form, order: Sequence[int]) -> list[int] | None:
        """Return the transposes of products, made so that they are contiguous: (A B)ᵀ = Bᵀ Aᵀ."""
        rank = len(form.sizes)
        turned = [*range(rank - 2), rank - 1, rank - 2]
        if rank < 2 or list(order) != turned or any(value not in self._products for value in form.values):
            return None
        calls = [self._products[value] for value in form.values]
        if any(self.layouts[call.outputs[0] or 0].shape != form.sizes for call in calls):
            return None
        found: list[int] = []
        for call in calls:
            one, other = (self._pieces.run(_aten.permute.default, arg, turned, sample=None) for arg in call.args)
            found.append(self._pieces.run(call.target, Ref(other), Ref(one), sample=None))
        return found

    def _is_alone(self, index: int) -> bool:
        """Return whether nothing else needs what a value is a view or a copy of."""
        while self._uses[index] == 1:
            call = self._makers[index]
            if not (call.target.is_view or call.target in RESHAPING or is_copy(call)):
                return True
            (index,) = call.operands
        return False

    def _stacked(self, call: ProgramCall) -> bool:
        """Stack tensors in pieces, where their samples come next to the new axis, and return whether they do."""
        if not self._absent.issuperset(call.operands) or call.kwargs or len(call.distinct) < len(call.operands):
            return False
        members, axis = call.args[0], (call.args[1] if len(call.args) > 1 else 0)
        rank = len(self.layouts[call.outputs[0] or 0].shape)
        forms = alike([self._forms[ref.index] for ref in members], [range(rank - 1)] * len(members))
        if forms is None or not self.layouts[call.outputs[0] or 0].contiguous:
            return False
        # each of the members has its samples first among the axes behind the new one
        if any(form.order.index(SAMPLE) != sum(map(len, form.groups[: axis % rank])) for form in forms):
            return False
        self._pieces.run_samples()
        stacked = self._stack(dict(zip(call.operands, forms, strict=True)))
        shape = list(self.layouts[call.outputs[0] or 0].shape)
        self.found.append(ProgramCall(_aten.view.default, (Ref(stacked), shape), {}, call.outputs, call.segment))
        return True


def _is_entrywise(call: ProgramCall) -> bool:
    return torch.Tag.pointwise in call.target.tags and RANDOM not in call.target.tags


def _places(rank: int, whole_rank: int) -> list[int | None]:
    """Return the axes of what broadcasts, by those of what it broadcasts to."""
    ahead = whole_rank - rank
    return [None if axis < ahead else axis - ahead for axis in range(whole_rank)]
