"""The rules of attention's tower, written once over what computes them: formulas, stripes of rows, or kernels."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .._arithmetic import cotangents_like, total
from .inputs import batch_of, check_tangents, operands_of, scores_of, tangents_of, with_batch, with_batches
from .maps import Operands, Scores
from .points import NONE, Cotangents, Found, Windows, forward_and_tangent, second_order, whole
from .stripes import striped

_NOTHING = (False,) * 4


class Outputs(NamedTuple):
    """What is known of o, ℓ, their tangents, and what ℓ as rounded lacks."""

    o: Tensor | None = None
    lse: Tensor | None = None
    o_dot: Tensor | None = None
    lse_dot: Tensor | None = None
    rest: Tensor | None = None


class Engine(Protocol):
    """What computes value and tangent, and a pullback and its tangent."""

    def forward(self, at: Operands, dots: Operands, scores: Scores) -> Found:
        """See `points.forward_and_tangent`."""
        ...

    def second(
        self,
        at: Operands,
        dots: Operands,
        scores: Scores,
        w: Cotangents,
        u: Cotangents,
        needs_first: Sequence[bool],
        needs_second: Sequence[bool],
        outputs: Outputs,
    ) -> tuple[Operands, Operands]:
        """See `points.second_order`."""
        ...


class Windowed(NamedTuple):
    """Plain PyTorch.

    Attributes:
        windows: How the rows are cut.
        reads_outputs: Whether the o that the primal kept is read; a formula, which is differentiated, must not.
    """

    windows: Windows
    reads_outputs: bool

    def forward(self, at: Operands, dots: Operands, scores: Scores) -> Found:  # noqa: D102 -- as the engine's
        return forward_and_tangent(at, dots, scores, self.windows)

    def second(  # noqa: D102
        self,
        at: Operands,
        dots: Operands,
        scores: Scores,
        w: Cotangents,
        u: Cotangents,
        needs_first: Sequence[bool],
        needs_second: Sequence[bool],
        outputs: Outputs,
    ) -> tuple[Operands, Operands]:
        o = outputs.o
        rounded = o is None or o.dtype not in (torch.float32, torch.float64)
        kept = None if rounded or not self.reads_outputs else o
        return second_order(at, dots, scores, w, u, needs_first, needs_second, self.windows, kept)


class Tower(NamedTuple):
    """The rules.

    Attributes:
        engine: What computes.
    """

    engine: Engine

    def primal(self, inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        """o = (P∘M) v, ℓ, and what ℓ as rounded lacks."""
        n = batch_of(inputs)
        o, lse, _, _, rest = self.engine.forward(operands_of(inputs), NONE, scores_of(inputs))
        return with_batch(o, 4, n), with_batch(lse, 3, n), with_batch(rest, 3, n)

    def jvp(self, primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """o, ℓ and ȯ = (Ṗ∘M) v + (P∘M) v̇, ℓ̇ = Σ P∘Ṡ."""
        at, dots = operands_of(primals), operands_of(tangents)
        check_tangents(at, dots)
        return with_batches(primals, tangents, *self.engine.forward(at, dots, scores_of(primals)))

    def vjp(
        self,
        cotangents: Any,
        inputs: Any,
        outputs: Any,
        *,
        needs: tuple[bool, ...],
        residuals: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor | None, ...]:
        """q̄, k̄, v̄ and the bias's, from cotangents of o and ℓ."""
        at, kept = operands_of(inputs), _kept(outputs, residuals)
        w, u = Cotangents(*cotangents), Cotangents()
        first, _ = self.engine.second(at, NONE, scores_of(inputs), w, u, needs, _NOTHING, kept)
        return cotangents_like(first, at)

    def jvp_vjp(
        self,
        cotangents: Any,
        inputs: Any,
        outputs: Any,
        *,
        needs: tuple[bool, ...],
        residuals: tuple[Tensor, ...] = (),
    ) -> tuple[Tensor | None, ...]:
        """Reverse over forward: the pullback of the tangent's cotangents and its tangent, see `points.second_order`."""
        w, u = Cotangents(*cotangents[2:]), Cotangents(*cotangents[:2])
        at, dots, scores = operands_of(inputs), tangents_of(inputs), scores_of(inputs)
        none, apart, kept = Cotangents(), None, _kept(outputs, residuals)
        if None not in (_front_of(u), _front_of(w)) and _front_of(u) != _front_of(
            w
        ):  # what comes from o counts once, what comes from ȯ for every tangent
            alone = kept._replace(o_dot=None, lse_dot=None)
            apart = self.engine.second(at, NONE, scores, u, none, needs[:4], _NOTHING, alone)[0]
            apart, u = cotangents_like(apart, at), none
        first, second = self.engine.second(at, dots, scores, w, u, needs[4:], needs[:4], kept)
        second = cotangents_like(second, at)
        if apart is not None:
            second = tuple(total(one, other) for one, other in zip(second, apart, strict=True))
        return *second, *cotangents_like(first, dots)

    def vjp_jvp(self, primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Forward over reverse: the pullback and its tangent."""
        at, dots, needs = operands_of(primals), operands_of(tangents), tuple(primals.needs)
        w, u = Cotangents(primals.y0_bar, primals.y1_bar), Cotangents(tangents.y0_bar, tangents.y1_bar)
        outputs = Outputs(primals.y0, primals.y1, tangents.y0, tangents.y1, primals.rest)
        first, second = self.engine.second(at, dots, scores_of(primals), w, u, needs, needs, outputs)
        return cotangents_like(first, at), cotangents_like(second, at)

    def vjp_vjp(self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over reverse: with cotangents of q̄, k̄, v̄ as tangents, w gets ȯ, λ ℓ̇, primals the pullback of ȯ, ℓ̇."""
        # The o and ℓ that were saved stand for functions of the arguments and get nothing.
        at, dots, scores = operands_of(inputs), Operands(*cotangents), scores_of(inputs)
        w = Cotangents(inputs.y0_bar, inputs.y1_bar)
        o_dot = lse_dot = None
        if any(t is not None for t in dots) and any(needs[:2]):
            _, _, o_dot, lse_dot, _ = self.engine.forward(at, dots, scores)
        outputs = Outputs(inputs.y0, inputs.y1, o_dot, lse_dot, inputs.rest)
        _, second = self.engine.second(at, dots, scores, w, Cotangents(), _NOTHING, needs[2:6], outputs)
        filled = (  # a tangent that is equal along the axis in front may lack it
            None if t is None or c is None else t.expand(torch.broadcast_shapes(t.shape, c.shape))
            for t, c in zip((o_dot, lse_dot), w, strict=True)
        )
        return *cotangents_like(tuple(filled), w), *cotangents_like(second, at), None, None


def _kept(outputs: Sequence[Tensor], residuals: Sequence[Tensor]) -> Outputs:
    """What a rule is given of saved results."""
    return Outputs(*outputs)._replace(rest=residuals[0] if residuals else None)


def _front_of(w: Cotangents) -> Any:
    """Axes in front of the batch, None if there is no cotangent."""
    if w.o is not None:
        return w.o.dim() - 4
    return None if w.lse is None else w.lse.dim() - 3


formulas = Tower(Windowed(whole, reads_outputs=False))
stripes = Tower(Windowed(striped, reads_outputs=True))
