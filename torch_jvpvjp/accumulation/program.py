"""Programs: a run of the executor, recorded as one straight line of ATen calls and replayed without any other work.

What a recording holds does not depend on values: the executor never looks at one, and a function that does is not part
of a tape. So a program is right for every x of its shape, dtype and device.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .calls import (
    MOST_FOLDED,
    RANDOM,
    ProgramCall,
    folded,
    refs_in,
    without_idle_views,
    without_repetitions,
    without_unused,
)
from .schedule import Task
from .shared_products import without_copies_of_shared
from .tracing.tape import flat_outputs, with_refs
from .verifying import Stopwatch

_aten = torch.ops.aten
_FILLED = frozenset({
    _aten.new_full, _aten.new_zeros, _aten.new_ones, _aten.zeros_like, _aten.ones_like, _aten.full_like,
})  # fmt: skip


class Program:
    """A straight line of ATen calls from x and the constants to the results.

    Args:
        calls: What is run, in order: target, arguments with `Ref`s, and the values that it makes.
        inputs: The values that are given at each run: x, then the constants.
        fixed: Values that are the same in every run.
        results: The values that are returned.
        segments: The tasks of the plan, in the order in which the calls do them.
    """

    def __init__(
        self,
        calls: Sequence[ProgramCall],
        inputs: Sequence[int],
        fixed: Mapping[int, Tensor],
        results: Sequence[int],
        segments: Sequence[Task] = (),
    ) -> None:
        self.calls, self.inputs, self.fixed, self.results = calls, inputs, fixed, results
        self.segments = list(segments)
        self.random = any(RANDOM in call.target.tags for call in calls)
        self.source = _source(calls, inputs, results, [])
        self.run: Callable[..., tuple[Tensor, ...]] = self._compiled(self.source)

    def __len__(self) -> int:
        return len(self.calls)

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return the results for x and the constants."""
        return self.run(*tensors)

    def timed(self, *tensors: Tensor) -> list[float]:
        """Return the seconds that each segment takes in one run."""
        watch = Stopwatch(tensors[0].device)
        tasks = iter(self.segments)
        ends = [call.segment for call in self.calls]
        places = [bisect_left(ends, segment) for segment in range(1, len(self.segments) + 1)]
        source = _source(self.calls, self.inputs, self.results, places)
        self._compiled(source, {"clock": lambda: watch.start(next(tasks))})(*tensors)
        return watch.stop()

    def _compiled(self, source: str, more: Mapping[str, Any] | None = None) -> Callable[..., tuple[Tensor, ...]]:
        scope: dict[str, Any] = {f"v{index}": tensor for index, tensor in self.fixed.items()}
        for place, call in enumerate(self.calls):
            scope[f"f{place}"] = call.target
            scope |= {f"a{place}_{name}": value for name, value in call.literals.items()}
        scope |= more or {}
        exec(compile(source, "<jacobian program>", "exec"), scope)  # noqa: S102 (our own text)
        return scope["program"]

    def as_module(self) -> nn.Module:
        """Return the program as a module that `torch.compile` takes."""
        program = self.run

        class Straight(nn.Module):
            def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
                return program(*tensors)

        return Straight()


def _source(calls: Sequence[ProgramCall], inputs: Sequence[int], results: Sequence[int], clocks: Sequence[int]) -> str:
    """Return the program as Python. Values are deleted after their last use; a clock ticks before each of `clocks`."""
    last: dict[int, int] = {}
    for place, call in enumerate(calls):
        last |= dict.fromkeys(call.operands, place) | {
            i: place for i in call.outputs if i is not None and i not in last
        }
    ends: dict[int, list[int]] = {}
    owned = {index for call in calls for index in call.outputs if index is not None} | set(inputs)
    for index, place in last.items():
        if index not in results and index in owned:
            ends.setdefault(place, []).append(index)
    lines = [f"def program({', '.join(f'v{index}' for index in inputs)}):"]
    for place, call in enumerate(calls):
        lines += ["    clock()"] * clocks.count(place)
        names = ["_" if index is None else f"v{index}" for index in call.outputs]
        left = names[0] if len(names) == 1 and not call.lists else f"{', '.join(names)},"
        arguments = call.arguments.replace("@", f"a{place}_")
        lines.append(f"    {left if names else '_'} = f{place}({arguments})")
        if place in ends:
            lines.append(f"    del {', '.join(f'v{index}' for index in sorted(ends[place]))}")
    lines += ["    clock()"] * clocks.count(len(calls))
    lines.append(f"    return ({', '.join(f'v{index}' for index in results)},)")
    return "\n".join(lines) + "\n"


class ProgramRecorder(TorchDispatchMode):
    """Writes down every ATen call that runs under it.

    Args:
        inputs: The tensors that will be given at each run.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._numbers = torch.utils.weak.WeakIdKeyDictionary()  # pyright: ignore[reportAttributeAccessIssue]
        self._count = 0
        self._tasks: list[Task] = []
        self._calls: list[ProgramCall] = []
        self._fixed: dict[int, Tensor] = {}
        self._shapes: dict[int, torch.Size] = {}
        self._looked_at: set[int] = set()  # values that a view was taken of
        self._views: set[int] = set()
        self._filled: dict[int, Tensor] = {}  # what does not depend on any value
        self._inputs = [self._new(tensor) for tensor in inputs]
        self.refusal: str | None = None

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        refs, named = with_refs(args, self._number), with_refs(kwargs, self._number)
        if func.is_view:
            self._looked_at.update(ref.index for ref in refs_in(refs))
        out = func(*args, **kwargs)
        if func is _aten.copy_.default and self._is_alone(refs[0].index):
            self._calls.append(ProgramCall(_aten.copy.default, refs, named, [self._new(args[0])], len(self._tasks)))
            return out
        results = flat_outputs(out)
        if not any(isinstance(result, Tensor) for result in results):
            # A query. What it says of shapes and dtypes holds for every run; what it says of values does not.
            if torch.Tag.data_dependent_output in func.tags:
                self.refusal = f"{func} looks at values"
            return out
        outputs = [self._output(result, func) for result in results]
        self._calls.append(ProgramCall(func, refs, named, outputs, len(self._tasks)))
        if func.is_view or func._schema.is_mutable:
            self._views.update(index for index in outputs if index is not None)
        if func.overloadpacket in _FILLED and isinstance(out, Tensor) and out.numel() <= MOST_FOLDED:
            self._filled[outputs[0] or 0] = out
        self._shapes |= {i: t.shape for i, t in zip(outputs, results, strict=True) if i is not None and t is not None}
        return out

    def begin(self, task: Task) -> None:
        """What follows does a task."""
        self._tasks.append(task)

    def program(self, results: Sequence[Tensor]) -> Program | None:
        """Return the program of these results; None if what ran cannot be replayed."""
        if self.refusal is not None:
            return None
        numbers = [self._number(result) for result in results]
        calls, fixed = self._calls, self._fixed
        if not any(call.target._schema.is_mutable for call in calls):
            calls, numbers = without_idle_views(calls, numbers, self._shapes)
            calls, numbers = without_repetitions(calls, numbers)
            calls, fixed = folded(calls, fixed | self._filled)
            calls = without_copies_of_shared(calls, self._shapes, self._next)
        calls = without_unused(calls, numbers)
        used = {index for call in calls for index in call.operands} | set(numbers)
        held = {index: tensor for index, tensor in fixed.items() if index in used}
        return Program(calls, self._inputs, held, numbers, self._tasks)

    def _is_alone(self, index: int) -> bool:
        """Return whether no other value shares the memory of one that the program has made."""
        return index not in self._looked_at | self._views | set(self._inputs) | set(self._fixed)

    def _next(self) -> int:
        self._count += 1
        return self._count - 1

    def _new(self, tensor: Tensor) -> int:
        index = self._next()
        self._numbers[tensor] = index
        self._shapes[index] = tensor.shape
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
