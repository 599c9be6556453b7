"""The calls of a program, and rewritings that leave its results as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from ._torch import FakeTensor
from .tracing.tape import Ref, fill, flat_outputs

_aten = torch.ops.aten
_VIEWS = frozenset({_aten.view.default, _aten._unsafe_view.default})
RANDOM = torch.Tag.nondeterministic_seeded
MOST_FOLDED = 1 << 22  # entries; what is larger is made anew in each run rather than held


class ProgramCall:
    """One call of a program; what is no tensor among its arguments is written as a literal, or kept by name."""

    def __init__(
        self, target: Any, args: Any, kwargs: Mapping[str, Any], outputs: Sequence[int | None], segment: int = 0
    ) -> None:
        self.target, self.outputs, self.segment = target, tuple(outputs), segment
        self.args, self.kwargs = args, kwargs

    @cached_property
    def _text(self) -> tuple[str, dict[str, Any]]:
        literals: dict[str, Any] = {}
        written = [self._written(arg, literals) for arg in self.args]
        written += [f"{key}={self._written(value, literals)}" for key, value in self.kwargs.items()]
        return ", ".join(written), literals

    @property
    def arguments(self) -> str:
        """The arguments as Python, a value by its number, the name of a literal behind an @."""
        return self._text[0]

    @property
    def literals(self) -> dict[str, Any]:
        """What the names in the arguments stand for."""
        return self._text[1]

    def _written(self, tree: Any, literals: dict[str, Any]) -> str:
        if isinstance(tree, Ref):
            return f"v{tree.index}"
        if tree is None or isinstance(tree, (bool, int)):
            return repr(tree)
        if type(tree) in {list, tuple}:
            inside = ", ".join(self._written(leaf, literals) for leaf in tree)
            return f"[{inside}]" if type(tree) is list else f"({inside},)" if tree else "()"
        name = f"l{len(literals)}"
        literals[name] = tree
        return f"@{name}"

    def renamed(self, same: Mapping[int, int]) -> ProgramCall:
        """Return the call with some values in the place of others; itself if it uses none of these."""
        if same.keys().isdisjoint(self.operands):
            return self
        args, kwargs = renamed(self.args, same), renamed(dict(self.kwargs), same)
        return ProgramCall(self.target, args, kwargs, self.outputs, self.segment)

    @property
    def lists(self) -> bool:
        """Whether it returns a list, which may hold one tensor only."""
        returns = self.target._schema.returns
        return len(returns) == 1 and isinstance(returns[0].type, torch.ListType)

    @cached_property
    def operands(self) -> list[int]:
        """The values that it uses."""
        return [ref.index for ref in refs_in((self.args, self.kwargs))]

    @cached_property
    def distinct(self) -> list[int]:
        """The values that it uses, each once."""
        return list(dict.fromkeys(self.operands))

    @cached_property
    def key(self) -> Any:
        """What makes two calls the same; None for a call that may give something else each time."""
        if RANDOM in self.target.tags:
            return None
        literals = tuple(self.literals.items())
        try:
            hash(literals)
        except TypeError:
            return None
        return self.target, self.arguments, tuple((name, type(value), repr(value), value) for name, value in literals)

    @cached_property
    def pattern(self) -> ProgramCall:
        """The call with the places of its operands in the place of values, which is the same for calls alike."""
        places = {index: place for place, index in enumerate(self.distinct)}
        args, kwargs = renamed(self.args, places), renamed(dict(self.kwargs), places)
        return ProgramCall(self.target, args, kwargs, (0,))


def refs_in(tree: Any) -> Iterable[Ref]:
    """Yield the values in a tree of arguments."""
    if isinstance(tree, Ref):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for leaf in tree:
            yield from refs_in(leaf)
    elif isinstance(tree, Mapping):
        yield from refs_in(list(tree.values()))


@cache
def pure_op(func: Any) -> Any | None:
    """Return the op that makes what another writes into its first argument, if it writes into no other."""
    schema = func._schema
    name = schema.name.removeprefix("aten::")
    if func.namespace != "aten" or not name.endswith("_") or {RANDOM, torch.Tag.inplace_view} & set(func.tags):
        return None
    packet = getattr(_aten, name.removesuffix("_"), None)
    pure = getattr(packet, func._overloadname, None)
    if pure is None or [one.name for one in schema.arguments if one.is_write] != [schema.arguments[0].name]:
        return None
    alike = [[(one.name, one.kwarg_only) for one in each._schema.arguments] for each in (func, pure)]
    plain = not (pure._schema.is_mutable or pure.is_view) and len(pure._schema.returns) == 1
    return pure if plain and alike[0] == alike[1] else None


_RAISING = frozenset({_aten.binary_cross_entropy.default, _aten.embedding.default})
"""Ops that raise for values which their derivatives take: those outside of [0, 1], or indices that are not there."""


def without_unused(calls: Sequence[ProgramCall], results: Sequence[int]) -> list[ProgramCall]:
    """Return the calls that the results need; one that writes into a tensor, or may raise, is always needed."""
    needed = set(results)
    used: list[ProgramCall] = []
    for call in reversed(calls):
        if call.target._schema.is_mutable or call.target in _RAISING or not needed.isdisjoint(call.outputs):
            needed.update(call.operands)
            used.append(call)
    return used[::-1]


def without_idle_views(
    calls: Sequence[ProgramCall], results: Sequence[int], shapes: Mapping[int, torch.Size]
) -> tuple[list[ProgramCall], list[int]]:
    """Return calls and results with a view of a view taken of what is below it, and no view that changes nothing."""
    same: dict[int, int] = {}
    below: dict[int, int] = {}
    kept: list[ProgramCall] = []
    for call in calls:
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
            kept.append(ProgramCall(_aten.view.default, (Ref(base), shape), {}, call.outputs, call.segment))
        else:
            kept.append(call.renamed(same))
    return kept, [same.get(index, index) for index in results]


def without_repetitions(calls: Sequence[ProgramCall], results: Sequence[int]) -> tuple[list[ProgramCall], list[int]]:
    """Return the calls, and the results, with what is computed twice computed once."""
    same: dict[int, int] = {}
    seen: dict[Any, ProgramCall] = {}
    kept: list[ProgramCall] = []
    for call in calls:
        again = call.renamed(same)
        key = again.key
        earlier = seen.setdefault(key, again) if key is not None else again
        if earlier is again:
            kept.append(again)
            continue
        pairs = zip(call.outputs, earlier.outputs, strict=True)
        same |= {index: first for index, first in pairs if index is not None and first is not None}
    return kept, [same.get(index, index) for index in results]


def folded(
    calls: Sequence[ProgramCall], fixed: Mapping[int, Tensor], results: Sequence[int], most: int = MOST_FOLDED
) -> tuple[list[ProgramCall], dict[int, Tensor]]:
    """Return the calls without those of fixed values only, such as an identity matrix, with what they make.

    A result is made anew in each run, since it becomes the caller's own, and so is what has more entries than `most`.
    """
    known, returned = dict(fixed), shown(calls, results)
    kept: list[ProgramCall] = []
    for call in calls:
        if not returned.isdisjoint(call.outputs):
            kept.append(call)
            known = {index: tensor for index, tensor in known.items() if index not in call.outputs}
            continue
        if all(index is None or index in known for index in call.outputs):
            continue
        if RANDOM in call.target.tags or any(index not in known for index in call.operands):
            kept.append(call)
            continue
        out = call.target(*fill(call.args, known.__getitem__), **fill(dict(call.kwargs), known.__getitem__))
        made = flat_outputs(out)
        if any(tensor is not None and tensor.numel() > most for tensor in made):
            kept.append(call)
            continue
        known |= {
            i: tensor for i, tensor in zip(call.outputs, made, strict=True) if i is not None and tensor is not None
        }
    return kept, known


def with_equal_values_once(
    calls: Sequence[ProgramCall], fixed: Mapping[int, Tensor], results: Sequence[int]
) -> list[ProgramCall]:
    """Return the calls with one fixed value in the place of all that hold its bits, such as the ones of each step."""
    made = {index for call in calls for index in call.outputs}
    used = {index for call in calls for index in call.operands if index in fixed and index not in made}
    first: dict[Any, int] = {}
    same = {index: first.setdefault(_bits(index, fixed[index]), index) for index in sorted(used - set(results))}
    same = {index: one for index, one in same.items() if index != one}
    return [call.renamed(same) for call in calls]


_MOST_COMPARED = 4096  # entries


def _bits(index: int, tensor: Tensor) -> Any:
    """Return what is the same for tensors that cannot be told apart."""
    plain = tensor.layout is torch.strided and not (tensor.is_conj() or tensor.is_neg())
    if not plain or tensor.is_meta or tensor.numel() > _MOST_COMPARED:
        return index
    # A copy: a tensor of one entry is contiguous whatever its strides are, and they are not seen as bytes.
    whole = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    if isinstance(whole, FakeTensor):  # nor do tensors without data tell their bits
        return index
    bits = whole.reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, bits


def shown(calls: Sequence[ProgramCall], results: Sequence[int]) -> set[int]:
    """Return the results, and the values whose memory they may share."""
    found = set(results)
    for call in reversed(calls):
        if (call.target.is_view or call.target in _VIEWS) and not found.isdisjoint(call.outputs):
            found.update(call.operands)
    return found


def renamed(tree: Any, same: Mapping[int, int]) -> Any:
    """Return a tree of arguments with some values in the place of others."""
    if isinstance(tree, Ref):
        return Ref(same.get(tree.index, tree.index))
    if isinstance(tree, (tuple, list)):
        return type(tree)(renamed(leaf, same) for leaf in tree)
    if isinstance(tree, dict):
        return {key: renamed(leaf, same) for key, leaf in tree.items()}
    return tree
