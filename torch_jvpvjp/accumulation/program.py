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

from .schedule import Task
from .tracing.tape import Ref, fill, flat_outputs, with_refs
from .verifying import Stopwatch

_aten = torch.ops.aten
_FILLED = frozenset({
    _aten.new_full, _aten.new_zeros, _aten.new_ones, _aten.zeros_like, _aten.ones_like, _aten.full_like,
})  # fmt: skip
_VIEWS = frozenset({_aten.view.default, _aten._unsafe_view.default})
_RANDOM = torch.Tag.nondeterministic_seeded
_MOST_FOLDED = 1 << 22  # entries; what is larger is made anew in each run rather than held


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
        calls: Sequence[_Call],
        inputs: Sequence[int],
        fixed: Mapping[int, Tensor],
        results: Sequence[int],
        segments: Sequence[Task] = (),
    ) -> None:
        self.calls, self.inputs, self.fixed, self.results = calls, inputs, fixed, results
        self.segments = list(segments)
        self.random = any(_RANDOM in call.target.tags for call in calls)
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


class _Call:
    """One call of a program; what is no tensor among its arguments is written as a literal, or kept by name."""

    def __init__(
        self, target: Any, args: Any, kwargs: Mapping[str, Any], outputs: Sequence[int | None], segment: int = 0
    ) -> None:
        self.target, self.outputs, self.segment = target, tuple(outputs), segment
        self.literals: dict[str, Any] = {}
        written = [self._written(arg) for arg in args]
        written += [f"{key}={self._written(value)}" for key, value in kwargs.items()]
        self.arguments = ", ".join(written)
        self.args, self.kwargs = args, kwargs

    def _written(self, tree: Any) -> str:
        if isinstance(tree, Ref):
            return f"v{tree.index}"
        if tree is None or isinstance(tree, (bool, int)):
            return repr(tree)
        if type(tree) in {list, tuple}:
            inside = ", ".join(self._written(leaf) for leaf in tree)
            return f"[{inside}]" if type(tree) is list else f"({inside},)" if tree else "()"
        name = f"l{len(self.literals)}"
        self.literals[name] = tree
        return f"@{name}"

    @property
    def lists(self) -> bool:
        """Whether it returns a list, which may hold one tensor only."""
        returns = self.target._schema.returns
        return len(returns) == 1 and isinstance(returns[0].type, torch.ListType)

    @property
    def operands(self) -> list[int]:
        """The values that it uses."""
        return [ref.index for ref in _refs((self.args, dict(self.kwargs)))]


def _refs(tree: Any) -> Iterable[Ref]:
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for leaf in tree:
            yield from _refs(leaf)
    elif isinstance(tree, dict):
        yield from _refs(list(tree.values()))


def _source(calls: Sequence[_Call], inputs: Sequence[int], results: Sequence[int], clocks: Sequence[int]) -> str:
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
        self._calls: list[_Call] = []
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
            self._looked_at.update(ref.index for ref in _refs(refs))
        out = func(*args, **kwargs)
        if func is _aten.copy_.default and self._is_alone(refs[0].index):
            self._calls.append(_Call(_aten.copy.default, refs, named, [self._new(args[0])], len(self._tasks)))
            return out
        results = flat_outputs(out)
        if not any(isinstance(result, Tensor) for result in results):
            # A query. What it says of shapes and dtypes holds for every run; what it says of values does not.
            if torch.Tag.data_dependent_output in func.tags:
                self.refusal = f"{func} looks at values"
            return out
        outputs = [self._output(result, func) for result in results]
        self._calls.append(_Call(func, refs, named, outputs, len(self._tasks)))
        if func.is_view or func._schema.is_mutable:
            self._views.update(index for index in outputs if index is not None)
        if func.overloadpacket in _FILLED and isinstance(out, Tensor) and out.numel() <= _MOST_FOLDED:
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
            calls, numbers = _without_idle_views(calls, numbers, self._shapes)
            calls, numbers = _without_repetitions(calls, numbers)
            calls, fixed = _folded(calls, fixed | self._filled)
        calls = _without_unused(calls, numbers)
        used = {index for call in calls for index in call.operands} | set(numbers)
        held = {index: tensor for index, tensor in fixed.items() if index in used}
        return Program(calls, self._inputs, held, numbers, self._tasks)

    def _is_alone(self, index: int) -> bool:
        """Return whether no other value shares the memory of one that the program has made."""
        return index not in self._looked_at | self._views | set(self._inputs) | set(self._fixed)

    def _new(self, tensor: Tensor) -> int:
        index = self._count
        self._count += 1
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


def _without_unused(calls: Sequence[_Call], results: Sequence[int]) -> list[_Call]:
    """Return the calls that the results need; one that writes into a tensor is always needed."""
    needed = set(results)
    used: list[_Call] = []
    for call in reversed(calls):
        if call.target._schema.is_mutable or not needed.isdisjoint(call.outputs):
            needed.update(call.operands)
            used.append(call)
    return used[::-1]


def _without_idle_views(
    calls: Sequence[_Call], results: Sequence[int], shapes: Mapping[int, torch.Size]
) -> tuple[list[_Call], list[int]]:
    """Return calls and results with a view of a view taken of what is below it, and no view that changes nothing."""
    same: dict[int, int] = {}
    below: dict[int, int] = {}
    kept: list[_Call] = []
    for call in calls:
        args = _renamed(call.args, same)
        if call.target in _VIEWS:
            (value,), shape = call.operands, list(shapes[call.outputs[0] or 0])
            base = same.get(value, value)
            # A view of a view is one of the base, which is contiguous along what both of them merge.
            base = below.get(base, base) if call.target is _aten.view.default else base
            made = call.outputs[0] or 0
            if list(shapes[base]) == shape:
                same[made] = base
                continue
            if call.target is _aten.view.default:
                below[made] = base
            args = (Ref(base), shape)
        kept.append(_Call(call.target, args, _renamed(dict(call.kwargs), same), call.outputs, call.segment))
    return kept, [same.get(index, index) for index in results]


def _without_repetitions(calls: Sequence[_Call], results: Sequence[int]) -> tuple[list[_Call], list[int]]:
    """Return the calls, and the results, with what is computed twice computed once."""
    same: dict[int, int] = {}
    seen: dict[Any, _Call] = {}
    kept: list[_Call] = []
    for call in calls:
        args, kwargs = _renamed(call.args, same), _renamed(dict(call.kwargs), same)
        renamed = _Call(call.target, args, kwargs, call.outputs, call.segment)
        key = _key(renamed)
        earlier = seen.setdefault(key, renamed) if key is not None else renamed
        if earlier is renamed:
            kept.append(renamed)
            continue
        pairs = zip(call.outputs, earlier.outputs, strict=True)
        same |= {index: first for index, first in pairs if index is not None and first is not None}
    return kept, [same.get(index, index) for index in results]


def _folded(calls: Sequence[_Call], fixed: Mapping[int, Tensor]) -> tuple[list[_Call], dict[int, Tensor]]:
    """Return the calls without those of fixed values only, such as an identity matrix, with what they make."""
    known = dict(fixed)
    kept: list[_Call] = []
    for call in calls:
        if all(index is None or index in known for index in call.outputs):
            continue
        if _RANDOM in call.target.tags or any(index not in known for index in call.operands):
            kept.append(call)
            continue
        out = call.target(*fill(call.args, known.__getitem__), **fill(dict(call.kwargs), known.__getitem__))
        made = flat_outputs(out)
        if any(tensor is not None and tensor.numel() > _MOST_FOLDED for tensor in made):
            kept.append(call)
            continue
        known |= {
            i: tensor for i, tensor in zip(call.outputs, made, strict=True) if i is not None and tensor is not None
        }
    return kept, known


def _renamed(tree: Any, same: Mapping[int, int]) -> Any:
    if isinstance(tree, Ref):
        return Ref(same.get(tree.index, tree.index))
    if isinstance(tree, (tuple, list)):
        return type(tree)(_renamed(leaf, same) for leaf in tree)
    if isinstance(tree, dict):
        return {key: _renamed(leaf, same) for key, leaf in tree.items()}
    return tree


def _key(call: _Call) -> Any:
    """Return what makes two calls the same; None for a call that may give something else each time."""
    if _RANDOM in call.target.tags:
        return None
    literals = tuple(call.literals.items())
    try:
        hash(literals)
    except TypeError:
        return None
    return call.target, call.arguments, tuple((name, type(value), repr(value), value) for name, value in literals)
