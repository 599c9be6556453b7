"""A Jacobian and its pullback, each recorded as one straight line of ATen calls.

What a plan does at a point is a straight line of calls, and so is what autograd does behind it for a loss of J. One run
records both; what the second uses of the first is handed on through autograd's saved tensors, so that one that is
written into in between is noticed. Before they are used they are compared with autograd at another point: a number that
was taken for one that is the same in every call shows there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .program import Program, ProgramRecorder
from .replay import Layout, Worth, layout_of

_APART = 0.02  # how far the point of comparison is, relative to each entry that is not 0, which becomes positive
_SEED = 3
# Calls that run as one: a step of loops of 8 takes as long without, one of loops of 20 a quarter more.
_LEAST_ALIKE = 12

Run = Callable[..., Sequence[Tensor]]


class Replay(NamedTuple):
    """How recordings are replayed.

    Attributes:
        most_folded: Most entries of a value that is held between calls.
        worth: When like calls are run as one; None for never.
        compiled: Whether by Inductor.
        mode: Its mode, as in `torch.compile`.
    """

    most_folded: int
    worth: Worth | None = None
    compiled: bool = False
    mode: str | None = None

    def run(self, program: Program) -> Run:
        """Return what runs a program; gradients must be off."""
        return program.compiled(self.mode) if self.compiled else program.run

    @property
    def together(self) -> Worth | None:
        """When like calls run as one: those of a long loop, as values are handed on one by one. No compiler wants that.

        It makes one kernel of many small calls anyway, and would copy what is stacked for others.
        """
        return None if self.compiled or self.worth is None else replace(self.worth, least=_LEAST_ALIKE)


class Differentiable(NamedTuple):
    """A Jacobian and its pullback, as two programs.

    Attributes:
        forward: From all inputs to the parts of J, and to the values on the way that the pullback uses.
        backward: From those of `given`, and cotangents of parts, to cotangents of inputs.
        parts: How many parts J has.
        live: The places of those that depend on what is differentiated.
        used: The places of those that have cotangents.
        pulled: The places of the inputs whose cotangents are given.
        kept: The places of the inputs that the pullback uses, or whose memory it looks at.
        given: Of what the pullback is given, whether it is one of the values, and its place there or in `kept`.
        relaid: For each value, how it lies where it was recorded, if it lies otherwise now.
        shared: The places of parts whose memory the pullback looks at.
        bars: How the cotangents lie.
    """

    forward: Run
    backward: Run
    parts: int
    live: tuple[int, ...]
    used: tuple[int, ...]
    pulled: tuple[int, ...]
    kept: tuple[int, ...]
    given: tuple[tuple[bool, int], ...]
    relaid: tuple[Layout | None, ...]
    shared: frozenset[int]
    bars: tuple[Layout, ...]

    def run(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parts of J, and the values that the pullback uses; gradients must be off."""
        found = self.forward(*inputs)
        parts = [part.clone() if place in self.shared else part for place, part in enumerate(found[: self.parts])]
        values = zip(found[self.parts :], self.relaid, strict=True)
        return parts, [value if layout is None else _laid_out(value, layout) for value, layout in values]

    def pull(self, kept: Sequence[Tensor], values: Sequence[Tensor], bars: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the cotangents of the inputs `pulled`, for those of the parts `used`; gradients must be off."""
        given = [(values if is_value else kept)[place] for is_value, place in self.given]
        return self.backward(*given, *map(_laid_out, bars, self.bars))


def recorded(
    made: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    used: Sequence[int] | None,
    replay: Replay,
) -> Differentiable | None:
    """A Jacobian and its pullback, recorded and compared with autograd.

    Args:
        made: Makes the parts of J by the executor.
        inputs: All that they depend on; those that require gradients are differentiated.
        used: The places of the parts that have cotangents; None for all.
        replay: How they are replayed.

    Returns:
        The two programs; None if they cannot be replayed, or do not give at another point what autograd gives.
    """
    for exact in (False, True):
        run = _Recording(made, _copies(inputs), used, replay.most_folded)
        found = run.programs(replay, exact=exact) if run.may_be_replayed else None
        if found is None or _agrees(found, made, inputs, () if replay.compiled else (RuntimeError,)):
            return found
    return None


class _Recording:
    """One run of J and its pullback, recorded.

    Args:
        made: Makes the parts of J by the executor.
        inputs: All that they depend on, as leaves.
        used: The places of the parts that have cotangents; None for all.
        most_folded: Most entries of a value that is held between calls.

    Attributes:
        may_be_replayed: Whether autograd has a pullback.
    """

    def __init__(
        self,
        made: Callable[[Sequence[Tensor]], Sequence[Tensor]],
        inputs: Sequence[Tensor],
        used: Sequence[int] | None,
        most_folded: int,
    ) -> None:
        self._inputs = inputs
        self._first = ProgramRecorder(inputs, most_folded)
        with torch.enable_grad(), self._first:
            self._parts = list(made(inputs))
        self._live = tuple(place for place, part in enumerate(self._parts) if part.requires_grad)
        self._used = self._live if used is None else tuple(used)
        self.may_be_replayed = bool(self._used) and set(self._used) <= set(self._live)
        if not self.may_be_replayed:
            return
        self._bars = _noise([self._parts[place] for place in self._used])
        self._second = ProgramRecorder(self._bars, most_folded)
        with torch.enable_grad(), self._second:
            try:
                self._pulled = _pulled([self._parts[place] for place in self._used], inputs, self._bars)
            except RuntimeError:  # an op without a derivative, as a loss of J will hear
                self.may_be_replayed = False

    def programs(self, replay: Replay, *, exact: bool) -> Differentiable | None:
        """Return the programs; None if what ran cannot be replayed."""
        first, second = self._first, self._second
        taken = second.take_from(first, made_again=replay.compiled)
        places = {number: place for place, number in enumerate(first.numbers(self._inputs))}
        values = [number for number in taken if number not in places]
        backward = second.program(second.numbers(list(self._pulled.values())), replay.together, exact=exact)
        count = len(self._parts)
        forward = first.program([*first.numbers(self._parts), *values], replay.together, exact=exact, owned=count)
        if forward is None or backward is None or forward.random or backward.random:
            return None
        run = replay.run(forward)
        with torch.no_grad():
            found = run(*self._inputs)
        parts, made = found[:count], found[count:]
        looked_at = {value.untyped_storage().data_ptr() for value in made}
        below = [place for place, tensor in enumerate(self._inputs) if _memory(tensor) in looked_at]
        kept = tuple(dict.fromkeys([*(places[number] for number in taken if number in places), *below]))
        given = [
            (False, kept.index(places[number])) if number in places else (True, values.index(number))
            for number in taken
        ]
        expected = map(first.layout, values)
        return Differentiable(
            run,
            replay.run(backward),
            count,
            self._live,
            self._used,
            tuple(self._pulled),
            kept,
            tuple(given),
            tuple(None if layout_of(value) == layout else layout for value, layout in zip(made, expected, strict=True)),
            frozenset(place for place, part in enumerate(parts) if _memory(part) in looked_at),
            tuple(map(layout_of, self._bars)),
        )


def _agrees(
    found: Differentiable,
    made: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    inputs: Sequence[Tensor],
    refusals: tuple[type[Exception], ...],
) -> bool:
    """Return whether the programs give what autograd does, at a point beside the one where they were recorded."""
    moved = [_moved(*pair) for pair in zip(inputs, _noise(inputs), strict=True)]
    with torch.enable_grad():
        parts = made(moved)
        bars = _noise([parts[place] for place in found.used])
        expected = _pulled([parts[place] for place in found.used], moved, bars)
    with torch.no_grad():
        try:
            again, values = found.run(moved)
            pulled = found.pull([moved[place] for place in found.kept], values, bars)
        except refusals:  # a view that the memory of a value does not allow
            return False
    return tuple(expected) == found.pulled and _close(again, parts) and _close(pulled, list(expected.values()))


def _moved(tensor: Tensor, noise: Tensor) -> Tensor:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    entries = tensor.detach()
    moved = torch.where(entries == 0, _APART * noise.abs(), entries * (1 + _APART * noise))
    return moved.requires_grad_(tensor.requires_grad)


def _close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    """Return whether tensors are the same but for rounding, which is that of the largest of them where it cancels."""
    norms = [float(torch.linalg.vector_norm(tensor.detach())) for tensor in expected]
    for one, other, norm in zip(found, expected, norms, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        eps = torch.finfo(one.dtype).eps
        error = float(torch.linalg.vector_norm((one - other).detach()))
        if not error <= eps**0.5 * norm + eps * max(norms):  # nor where one is no number
            return False
    return True


def _pulled(parts: Sequence[Tensor], inputs: Sequence[Tensor], bars: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return the cotangents of the inputs on which parts depend, by their places.

    With a graph, since autograd adds cotangents up in place else; and as a loss is differentiated, without autocast.
    """
    asked = [place for place, tensor in enumerate(inputs) if tensor.requires_grad]
    with torch.autocast(inputs[0].device.type, enabled=False):
        found = torch.autograd.grad(
            parts, [inputs[place] for place in asked], bars, create_graph=True, allow_unused=True
        )
    return {place: x_bar for place, x_bar in zip(asked, found, strict=True) if x_bar is not None}


def _copies(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the same tensors without what they were made of; one that is given twice counts as two."""
    return [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in inputs]


def _noise(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors like some, of numbers between -1 and 1; the random numbers of the caller stay as they are."""
    state = torch.Generator().manual_seed(_SEED)
    uniform = [torch.rand(tensor.shape, generator=state, device="cpu") for tensor in tensors]
    return [(2 * one - 1).to(tensor.device, tensor.dtype) for one, tensor in zip(uniform, tensors, strict=True)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _laid_out(value: Tensor, layout: Layout) -> Tensor:
    """Return the same entries in a layout."""
    if value.stride() == layout.stride and (value.is_conj(), value.is_neg()) == layout.twisted and not layout.offset:
        return value
    return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device=value.device).copy_(value)
