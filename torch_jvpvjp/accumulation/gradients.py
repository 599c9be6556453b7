"""Jacobians that are differentiated (`create_graph`), replayed from recordings of J and of its pullback.

A training step through J takes the executor's Python and an autograd graph of every op of every sweep. Both are spared
once calls have taken as long as recording does. Whoever differentiates twice gets J by the executor, under autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ._torch_autograd import hooks_saved_tensors, is_batched_or_dual
from .differentiable import Differentiable, Replay, recorded

if TYPE_CHECKING:
    from .tracings import Tracing

Made = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""Makes the parts of a Jacobian by the executor, as autograd sees it, from all that it depends on."""

# Half of what recording takes, 2.4 to 3 ms for an op as measured on functions of 4 to 60 ops: what is counted are the
# calls that make J, and its pullback takes as long again.
_SECONDS_OF_OP = 1.25e-3
_MOST_KINDS = 4  # of which inputs and parts are differentiated
_MOST_IN_VAIN = 4  # pullbacks that were not as recorded


class Gradients:
    """The recordings of the Jacobian of one function and of its pullback.

    Args:
        ops: How many ops the function has.
        replay: How they are replayed; compiled ones are from the first call on.
    """

    def __init__(self, ops: int, replay: Replay) -> None:
        self._expected, self._replay = max(ops, 1) * _SECONDS_OF_OP, replay
        self._found: dict[Any, Differentiable | None] = {}
        self._seconds, self._in_vain = 0.0, 0
        self._used: tuple[int, ...] | None = None  # the places of the parts that a loss is of; None for all

    def parts(self, made: Made, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the parts of J, differentiable in all inputs that require gradients.

        Args:
            made: Makes them by the executor.
            inputs: All that they depend on.

        Raises:
            ValueError: If they are to be compiled, and cannot be recorded.
        """
        if self._replay.compiled:
            return self._compiled(made, inputs)
        if self._in_vain > _MOST_IN_VAIN or hooks_saved_tensors() or not all(map(_is_plain, inputs)):
            return made(inputs)
        kind = tuple(tensor.requires_grad for tensor in inputs), self._used
        if kind not in self._found:
            if self._seconds < self._expected or len(self._found) >= _MOST_KINDS:
                begin = perf_counter()
                parts = made(inputs)
                self._seconds += perf_counter() - begin
                return parts
            self._found[kind] = recorded(made, inputs, self._used, self._replay)
        found = self._found[kind]
        if found is None:
            return made(inputs)
        return self._applied(found, made, inputs)

    def _compiled(self, made: Made, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        kind = tuple(tensor.requires_grad for tensor in inputs)
        if kind not in self._found:
            plain = all(map(_is_plain, inputs))
            self._found[kind] = recorded(made, inputs, None, self._replay) if plain else None
        found = self._found[kind]
        if found is None:
            raise ValueError(
                "jacobian: with compile=True and create_graph=True the function must have a Jacobian and a pullback of "
                "it that can be recorded, got one that draws random numbers, has no second derivative or is not finite "
                "here; leave compile out."
            )
        return self._applied(found, made, inputs)

    def _applied(self, found: Differentiable, made: Made, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        results: Any = RecordedJacobian.apply(found, made, self, *inputs)
        return results

    def missed(self, used: tuple[int, ...]) -> None:
        """Take note of a pullback from some parts that was not as recorded."""
        self._in_vain += 1
        self._used = used


def differentiable_parts(
    tracing: Tracing,
    executed: Callable[[Tracing, Tensor, Sequence[Tensor]], Tensor],
    leaves: Sequence[Tensor],
    extras: Sequence[Tensor],
    replay: Replay,
) -> Sequence[Tensor]:
    """The parts of a Jacobian, differentiable in all that it depends on and that requires gradients.

    Args:
        tracing: The function.
        executed: The Jacobian by the executor, of a function, what it is taken in as one tensor, and other arguments.
        leaves: What the Jacobian is taken in.
        extras: The other arguments.
        replay: How recordings are replayed.

    Returns:
        The parts.
    """
    given = [one.contiguous() for one in (*leaves, *extras)]  # as they were when recorded

    def made(inputs: Sequence[Tensor]) -> list[Tensor]:
        source = tracing.subject.source_of(inputs[: len(leaves)])
        now = replace(tracing, constants=dict(zip(tracing.constants, inputs[len(given) :], strict=True)))
        parts = now.parts(executed(now, source, inputs[len(leaves) : len(given)]))
        tracing.form = now.form
        return parts

    if tracing.gradients is None:
        tracing.gradients = Gradients(tracing.traced.tape.launches, replay)
    return tracing.gradients.parts(made, [*given, *tracing.constants.values()])


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) in {Tensor, Parameter} and not tensor.is_inference() and tensor.layout is torch.strided


class RecordedJacobian(torch.autograd.Function):
    """A recorded Jacobian as one node of autograd."""

    @staticmethod
    def forward(ctx: Any, found: Differentiable, made: Made, owner: Gradients, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the parts, and keep what the pullback uses."""
        parts, values = found.run(inputs)
        ctx.save_for_backward(*(inputs[place] for place in found.kept), *values)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(part for place, part in enumerate(parts) if place not in found.live))
        ctx.found, ctx.made, ctx.owner, ctx.inputs = found, made, owner, inputs
        ctx.versions = [tensor._version for tensor in inputs]
        return tuple(parts)

    @staticmethod
    def backward(ctx: Any, *part_bars: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the cotangents of the inputs: by the recording if it is of this pullback, else by autograd."""
        found: Differentiable = ctx.found
        used = tuple(place for place, bar in enumerate(part_bars) if bar is not None)
        bars = [bar for bar in part_bars if bar is not None]
        if torch.is_grad_enabled() or used != found.used or any(map(is_batched_or_dual, bars)):
            ctx.owner.missed(used)
            return None, None, None, *_pulled_by_autograd(ctx, used, bars)
        saved = ctx.saved_tensors
        made = found.pull(saved[: len(found.kept)], saved[len(found.kept) :], bars)
        pulled = dict(zip(found.pulled, made, strict=True))
        return None, None, None, *(pulled.get(place) for place in range(len(ctx.inputs)))


def _pulled_by_autograd(ctx: Any, used: Sequence[int], bars: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the cotangents of all inputs, differentiable in turn where autograd asks for that."""
    if any(tensor._version != version for tensor, version in zip(ctx.inputs, ctx.versions, strict=True)):
        raise RuntimeError(
            "jacobian: all that a Jacobian depends on must stay as it is until the Jacobian was differentiated twice, "
            "or in some of its parts, but a tensor was written into since; write into a copy, or differentiate before."
        )
    if not bars:
        return [None] * len(ctx.inputs)
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Through views, so that of two inputs one of which depends on the other each gets its own part.
        inputs = [tensor.view_as(tensor) for tensor in ctx.inputs]
        parts = ctx.made(inputs)
    asked = [tensor for tensor in inputs if tensor.requires_grad]
    outputs = [parts[place] for place in used]
    pulled = iter(torch.autograd.grad(outputs, asked, bars, create_graph=again, allow_unused=True))
    return [next(pulled) if tensor.requires_grad else None for tensor in inputs]
