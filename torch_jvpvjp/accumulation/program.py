"""Programs: a run of the executor, recorded as one straight line of ATen calls and replayed without any other work.

What a recording holds does not depend on values: the executor never looks at one, and a function that does is not part
of a tape. So a program is right for every x of its shape, dtype and device.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .._allocator import LEAST_BYTES_GIVEN_BACK, keep_freed_memory
from .._zero_tangents import without_scaled_zeros
from ._torch import past_autograd
from .calls import (
    MOST_FOLDED,
    RANDOM,
    ProgramCall,
    folded,
    pure_op,
    refs_in,
    renamed,
    with_equal_values_once,
    without_idle_views,
    without_repetitions,
    without_unused,
)
from .filled import filled_alone, filled_with, filling
from .handed_on import below_views, made_again, operands_of_products
from .replay import (
    CompiledProgram,
    Layout,
    Layouts,
    Worth,
    by_entries,
    by_hand,
    by_vectors,
    joined,
    kernel_bytes,
    layout_of,
    run_together,
    small_or_whole,
    unit_factors,
    with_channels_innermost,
    with_constants_laid_alike,
    with_own_results,
    with_quick_products,
    with_quick_pullbacks,
    with_quick_sweeps,
    with_samples_innermost,
    with_segments_side_by_side,
    without_double_copies,
    without_idle_arithmetic,
    without_idle_moves,
    without_idle_parts,
    without_joins,
    written,
    zero_weights,
)
from .schedule import Task
from .shared_products import without_copies_of_shared
from .tracing.tape import Ref, flat_outputs, with_refs
from .verifying import Stopwatch

_aten = torch.ops.aten


class Program:
    """A straight line of ATen calls from x and the constants to the results.

    Args:
        calls: What is run, in order: target, arguments with `Ref`s, and the values that it makes.
        inputs: The values that are given at each run: x, then the constants.
        fixed: Values that are the same in every run.
        results: The values that are returned.
        layouts: How the values lie in memory.
        segments: The tasks of the plan, in the order in which the calls do them.
        together: The calls that are run instead, in which like calls are one; None for none.
        quickened: Gives the calls that run in the place of some; None for the same.

    Attributes:
        by_ops: Runs the calls.
        run: The same, or their arithmetic alone where they are many and small.
        kernel_bytes: Bytes of code that libraries keep for it from its first run on.
    """

    def __init__(
        self,
        calls: Sequence[ProgramCall],
        inputs: Sequence[int],
        fixed: Mapping[int, Tensor],
        results: Sequence[int],
        layouts: Layouts,
        segments: Sequence[Task] = (),
        together: Sequence[ProgramCall] | None = None,
        quickened: Callable[[Sequence[ProgramCall]], Sequence[ProgramCall]] | None = None,
    ) -> None:
        self.calls, self.inputs, self.fixed, self.results, self.layouts = calls, inputs, fixed, results, layouts
        self.segments = list(segments)
        self.random = any(RANDOM in call.target.tags for call in calls)
        self.replayed = calls if together is None else together
        self._quickened = quickened or (lambda calls: calls)
        quick = self._quickened(self.replayed)
        self.kernel_bytes = kernel_bytes(quick, layouts)
        self.run = self.by_ops = past_autograd(self._written(quick))
        if quickened is not None:
            self.run = small_or_whole(self.by_ops, lambda: by_entries(calls, inputs, fixed, results, layouts))

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the results for x and the constants, as tensors without grad; gradients must be off."""
        return self.run(*tensors)

    def timed(self, *tensors: Tensor) -> list[float]:
        """Return the seconds that each segment takes in one run."""
        watch = Stopwatch(tensors[0].device)
        tasks = iter(self.segments)
        calls = self._quickened(self.calls)
        ends = [call.segment for call in calls]
        places = [bisect_left(ends, segment) for segment in range(1, len(self.segments) + 1)]
        self._written(calls, places, {"clock": lambda: watch.start(next(tasks))})(*tensors)
        return watch.stop()

    def compiled(self, mode: str | None) -> Callable[..., tuple[Tensor, ...]]:
        """Return the program, to be compiled when it first runs; mode is as in `torch.compile`."""
        return CompiledProgram(self._quickened(self.replayed), self.inputs, self.fixed, self.results, mode)

    def _written(
        self,
        calls: Sequence[ProgramCall],
        clocks: Sequence[int] = (),
        more: Mapping[str, Any] | None = None,
    ) -> Callable[..., tuple[Tensor, ...]]:
        """Return the program as a Python function; a clock ticks before each of `clocks`."""
        spell = by_hand(calls, self.results, self.layouts)
        source, scope = written(calls, self.inputs, self.results, spell, clocks)
        scope |= {f"v{index}": tensor for index, tensor in self.fixed.items()} | dict(more or {})
        exec(compile(source, "<jacobian program>", "exec"), scope)  # noqa: S102 (our own text)
        return scope["program"]


class ProgramRecorder(TorchDispatchMode):
    """Writes down every ATen call that runs under it.

    Args:
        inputs: The tensors that will be given at each run.
        most_folded: Most entries of a value that is the same in every run and held between runs; what is larger is made
            anew in each.
    """

    def __init__(self, inputs: Sequence[Tensor], most_folded: int = MOST_FOLDED) -> None:
        super().__init__()
        self._most_folded = most_folded
        self._numbers = torch.utils.weak.WeakIdKeyDictionary()  # pyright: ignore[reportAttributeAccessIssue]
        self._count = 0
        self._tasks: list[Task] = []
        self._calls: list[ProgramCall] = []
        self._fixed: dict[int, Tensor] = {}
        self._layouts = Layouts()
        self._looked_at: set[int] = set()  # values that a view was taken of
        self._views: set[int] = set()
        self._filled: dict[int, Callable[[], Tensor]] = {}  # what makes values that depend on no other
        self._strided = True
        self._inputs = [self._new(tensor) for tensor in inputs]
        self.refusal: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func, args, kwargs = without_scaled_zeros(func, args, kwargs or {})
        if func.namespace == "prim":
            return func(*args, **kwargs)
        refs, named = with_refs(args, self._number), with_refs(kwargs, self._number)
        if func.is_view or func is _aten._unsafe_view.default:
            self._looked_at.update(ref.index for ref in refs_in(refs))
        instead = self._without_writing(func, refs, named)
        out = func(*args, **kwargs)
        if instead is not None:
            self._add(instead, refs, named, [self._new(args[0])], args, out)
            return out
        results = flat_outputs(out)
        if not any(isinstance(result, Tensor) for result in results):
            # A query. What it says of shapes and dtypes holds for every run; what it says of values does not.
            if torch.Tag.data_dependent_output in func.tags:
                self.refusal = f"{func} looks at values"
            return out
        outputs = [self._output(result, func) for result in results]
        self._add(func, refs, named, outputs, args, out)
        if func.is_view or func._schema.is_mutable:
            self._views.update(index for index in outputs if index is not None)
        return out

    def _add(
        self, func: Any, refs: Any, named: Any, outputs: Sequence[int | None], args: Sequence[Any], out: Any
    ) -> None:
        self._calls.append(ProgramCall(func, refs, named, outputs, len(self._tasks)))
        number = filled_with(func, args)
        if number is not None and isinstance(out, Tensor) and out.numel() <= self._most_folded:
            self._filled[outputs[0] or 0] = filling(number, out)

    def _without_writing(self, func: Any, refs: Any, named: Any) -> Any | None:
        """Return the op that makes what one writes into a tensor which nothing else looks at; None for others."""
        if not func._schema.is_mutable or not refs or not isinstance(refs[0], Ref) or not self._is_alone(refs[0].index):
            return None
        pure = pure_op(func)
        if pure is None or refs[0].index not in self._layouts:
            return None
        before = self._layouts[refs[0].index]
        try:
            after = self._layouts.of(ProgramCall(pure, refs, named, [None]))
        except RuntimeError:  # an op that does not run without data
            return None
        return pure if func is _aten.copy_.default or after == [before] else None

    def begin(self, task: Task) -> None:
        """What follows does a task."""
        self._tasks.append(task)

    @property
    def tables(self) -> list[Tensor]:
        """The tensors that were made out of sight, such as indices, and are kept."""
        return list(self._fixed.values())

    def numbers(self, results: Sequence[Tensor]) -> list[int]:
        """Return the values that results are, by which `program` knows them."""
        return [self._number(result) for result in results]

    def layout(self, number: int) -> Layout:
        """Return how a value lay in memory when it was recorded."""
        return self._layouts[number]

    def take_from(self, earlier: ProgramRecorder, *, made_again: bool = False) -> list[int]:
        """Take values of another recording as inputs, in front of others; what holds for every run stays fixed.

        Args:
            earlier: The recording.
            made_again: Whether views, copies and plain arithmetic are done again instead.

        Returns:
            Their numbers there.
        """
        varying = set(earlier._inputs)
        for call in earlier._calls:
            if not varying.isdisjoint(call.operands):
                varying.update(index for index in call.outputs if index is not None)
        numbers = {index: earlier._numbers.get(tensor) for index, tensor in self._fixed.items()}
        taken = {index: number for index, number in numbers.items() if number in varying}
        for index in taken:
            del self._fixed[index]
        if made_again and earlier._is_pure and self._is_pure:
            known = {number: index for index, number in numbers.items() if number is not None}
            taken = self._make_again(earlier, known, list(taken.values()))
        self._inputs = [*taken, *self._inputs]
        return list(taken.values())

    def _make_again(self, earlier: ProgramRecorder, known: dict[int, int], wanted: Sequence[int]) -> dict[int, int]:
        """Do again in front of all else what makes some values of another recording.

        Args:
            earlier: The recording.
            known: By their numbers there, those of values here.
            wanted: The values, by their numbers there.

        Returns:
            By their numbers here, the values that are taken for that.
        """
        calls = [filled_alone(call, earlier._layouts) for call in earlier._calls]
        multiplied = below_views(self._calls, operands_of_products(self._calls))
        multiplied = {number for number in wanted if known[number] in multiplied}
        again, handed = made_again(calls, earlier._inputs, wanted, multiplied, earlier._layouts)

        def here(number: int) -> int:
            if number not in known:
                known[number] = index = self._next()
                self._layouts[index] = earlier._layouts[number]
                if number in earlier._fixed:
                    self._fixed[index] = earlier._fixed[number]
            return known[number]

        taken = {here(number): number for number in handed}
        for call in again:
            for number in (*call.operands, *call.outputs):
                if number is not None:
                    here(number)
        front = [
            ProgramCall(
                call.target,
                renamed(call.args, known),
                renamed(dict(call.kwargs), known),
                [None if number is None else known[number] for number in call.outputs],
            )
            for call in again
        ]
        self._calls = [*front, *self._calls]
        return taken

    def program(
        self, numbers: list[int], worth: Worth | None = None, *, exact: bool = False, owned: int | None = None
    ) -> Program | None:
        """The program of what ran.

        Args:
            numbers: The values that it returns.
            worth: When like calls are run as one; None for never.
            exact: Whether each operation is rounded as it was, so that no two of them are made one.
            owned: How many of them, the first, share no memory with anything else; None for all.

        Returns:
            The program; None if what ran cannot be replayed.
        """
        if self.refusal is not None:
            return None
        calls, fixed, layouts = self._calls, self._fixed, Layouts(self._layouts)
        pure = self._is_pure
        if pure:
            calls = by_vectors(calls, layouts, self._next)
            calls, numbers = without_idle_views(calls, numbers, layouts.shapes())
            calls, numbers = without_joins(calls, numbers, layouts)
            calls, numbers = without_idle_views(calls, numbers, layouts.shapes())
            calls, numbers = without_repetitions(calls, numbers)
            filled = {index: make() for index, make in self._filled.items()}
            calls, fixed = folded(calls, fixed | filled, numbers, self._most_folded)
            del filled
            calls = with_equal_values_once(calls, fixed, numbers)
            made = {index: fixed[index] for index in fixed.keys() - self._fixed.keys()}  # none may write into these
            idle = zero_weights(calls, fixed), unit_factors(calls, made)
            calls, numbers = without_idle_arithmetic(calls, numbers, layouts, self._next, *idle)
            calls, numbers = without_repetitions(calls, numbers)
            calls = without_copies_of_shared(calls, layouts, self._next)
            calls, numbers = without_idle_moves(calls, numbers, layouts)
            calls = without_double_copies(without_unused(calls, numbers), numbers, layouts, self._next)
            calls = without_unused(calls, numbers)
            calls = calls if exact else joined(calls, numbers, layouts)
            calls, own = with_own_results(calls, numbers[:owned], layouts, self._next)
            numbers = [*own, *numbers[len(own) :]]
            own = fixed.keys() - self._fixed.keys()
            calls, fixed = with_samples_innermost(calls, fixed, own, numbers, layouts, self._next)
            calls, fixed = with_constants_laid_alike(calls, fixed, own, layouts, self._next)
        calls = without_unused(calls, numbers)
        together = run_together(calls, numbers, layouts, self._next, worth) if pure and worth is not None else None
        more = None if together is None else together.calls
        used = {index for call in (*calls, *(more or ())) for index in call.operands} | set(numbers)
        every = fixed if together is None else fixed | together.fixed
        held = {index: tensor for index, tensor in every.items() if index in used}
        limited = self._most_folded == 0  # nothing is to be kept between calls: oneDNN keeps code
        if not limited and any(layout.bytes_on_cpu >= LEAST_BYTES_GIVEN_BACK for layout in layouts.values()):
            keep_freed_memory()

        def quick(calls: Sequence[ProgramCall]) -> Sequence[ProgramCall]:
            if not limited:
                calls = with_segments_side_by_side(calls, numbers, held, layouts, self._next)
                own = {index: tensor for index, tensor in held.items() if index not in self._fixed}
                calls = with_channels_innermost(calls, numbers, own, layouts, self._next)
                calls = with_quick_sweeps(calls, held, self._fixed, numbers, layouts, self._next)
            calls = without_idle_parts(calls, numbers)
            calls = with_quick_pullbacks(calls, numbers, layouts, self._next)
            return calls if limited else with_quick_products(calls, layouts, self._next)

        quickened = quick if pure and not exact else None
        return Program(calls, self._inputs, held, numbers, layouts, self._tasks, more, quickened)

    @property
    def _is_pure(self) -> bool:
        """Whether no call writes into a tensor, and each lies in memory by strides."""
        return self._strided and not any(call.target._schema.is_mutable for call in self._calls)

    def _is_alone(self, index: int) -> bool:
        """Return whether no other value shares the memory of one that the program has made."""
        return index not in self._looked_at | self._views | set(self._inputs) | set(self._fixed)

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _new(self, tensor: Tensor) -> int:
        index = self._next()
        self._numbers[tensor] = index
        if tensor.layout is torch.strided:
            self._layouts[index] = layout_of(tensor)
        else:
            self._strided = False
        return index

    def _output(self, tensor: Tensor | None, func: Any) -> int | None:
        if tensor is None:
            return None
        # An op that writes into its argument returns that argument: the value keeps its number.
        known = self._numbers.get(tensor) if func._schema.is_mutable else None
        return self._new(tensor) if known is None else known

    def _number(self, tensor: Tensor) -> int:
        known = self._numbers.get(tensor)
        if known is None:
            known = self._new(tensor)
            self._fixed[known] = tensor
        return known
