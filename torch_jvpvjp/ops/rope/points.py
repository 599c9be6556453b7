"""Every point of rope's tower, written once over two maps: those of the formula (`maps`), or those of the kernel.

With x the heads, e the angles, a and b cotangents, all derivatives are a e, b e + a ė and their sums over heads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .._arithmetic import cotangents_like, total
from .maps import Frame, Pair

_NOTHING = Pair()


Wants = tuple[bool, bool, bool, bool]  # first and second of the heads, first and second of the angles


class Pulled(NamedTuple):
    """Cotangents of q and k, and of cos and sin."""

    heads: Pair
    angles: Pair


class Maps(Protocol):
    """A way to compute the sums; leads of its operands broadcast, and those of e, ė, x and ẋ to those of a and b."""

    def turn(self, frame: Frame, a: Pair, b: Pair, *, inverse: bool, wants: tuple[bool, bool]) -> tuple[Pair, Pair]:
        """a e and b e + a ė."""
        ...

    def pull(self, frame: Frame, x: Pair, x_dot: Pair, a: Pair, b: Pair, wants: Wants) -> tuple[Pulled, Pulled]:
        """(a ē, Σ x̄ a) and (b ē + a ė̄, Σ (ẋ̄ a + x̄ b)), as far as they are wanted."""
        ...


class Points(NamedTuple):
    """The rules of the tower over some maps."""

    maps: Maps

    def primal(
        self,
        q: Tensor,
        k: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        position_ids: Tensor | None,
        interleaved: bool,
        heads_last: bool,
    ) -> tuple[Tensor, Tensor]:
        """y = x e."""
        frame = Frame(Pair(cos, sin), _NOTHING, position_ids, interleaved, heads_last)
        first, _ = self.maps.turn(frame, Pair(q, k), _NOTHING, inverse=False, wants=(True, False))
        return _results(first, q, k)

    def jvp(self, primals: Any, tangents: Any) -> tuple[Any, Any]:
        """y = x e,  ẏ = ẋ e + x ė."""
        check_tangents(primals, tangents)
        q, k = primals.q, primals.k
        frame = frame_of(primals, Pair(tangents.cos, tangents.sin))
        x_dot = Pair(tangents.q, tangents.k)
        y, y_dot = self.maps.turn(frame, Pair(q, k), x_dot, inverse=False, wants=(True, True))
        # ẋ e does not know of the batch axes of x; the tangent has them all the same.
        turning = [t for t in (*primals[2:5], *tangents[2:]) if t is not None]
        return _results(y, q, k), tuple(
            None if t is None else _widened(t, x, *turning).to(q.dtype) for t, x in zip(y_dot, (q, k), strict=True)
        )

    def vjp(self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """x̄ = ȳ ē,  the cotangent of e = Σ x̄ ȳ, conjugating x there."""
        a = Pair(cotangents.y0, cotangents.y1)
        x = Pair(inputs.q, inputs.k)
        likes = (inputs.q, inputs.k, inputs.cos, inputs.sin)
        return self._cotangents(frame_of(inputs), x, _NOTHING, a, _NOTHING, likes, likes, needs, _NONE)[0]

    def jvp_vjp(self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over forward: a, b are the cotangents of ẏ, y; tangents get a's pullback, primals both sums."""
        a, b = Pair(cotangents.y0_dot, cotangents.y1_dot), Pair(cotangents.y0, cotangents.y1)
        dots = (inputs.q_dot, inputs.k_dot, inputs.cos_dot, inputs.sin_dot)
        likes = (inputs.q, inputs.k, inputs.cos, inputs.sin)
        first, second = self._cotangents(
            frame_of(inputs, Pair(*dots[2:])),
            Pair(*likes[:2]),
            Pair(*dots[:2]),
            a,
            b,
            dots,
            likes,
            needs[4:],
            needs[:4],
        )
        return (*second, *first)

    def vjp_jvp(self, primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Forward over reverse: the pullback of ȳ and its tangent, the same two sums."""
        a, b = Pair(primals.y0_bar, primals.y1_bar), Pair(tangents.y0_bar, tangents.y1_bar)
        likes, needs = (primals.q, primals.k, primals.cos, primals.sin), tuple(primals.needs)
        return self._cotangents(
            frame_of(primals, Pair(tangents.cos, tangents.sin)),
            Pair(*likes[:2]),
            Pair(tangents.q, tangents.k),
            a,
            b,
            likes,
            likes,
            needs,
            needs,
        )

    def vjp_vjp(self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over reverse: with u, v the cotangents of x̄ and ē,  ȳ̄ = u e + x v  and the pullback at (u, v)."""
        u, v = Pair(cotangents.q_bar, cotangents.k_bar), Pair(cotangents.cos_bar, cotangents.sin_bar)
        x, a = Pair(inputs.q, inputs.k), Pair(inputs.y0_bar, inputs.y1_bar)
        likes, frame = (inputs.q, inputs.k, inputs.cos, inputs.sin), frame_of(inputs, v)
        bars = _NOTHING
        if any(needs[:2]):
            _, bars = self.maps.turn(frame, x, u, inverse=False, wants=(False, True))
        pulled = self._cotangents(frame, _NOTHING, u, a, _NOTHING, likes, likes, _NONE, needs[2:])[1]
        return (*(None if y is None or b is None else b.to(y.dtype) for b, y in zip(bars, a, strict=True)), *pulled)

    def _cotangents(
        self,
        frame: Frame,
        x: Pair,
        x_dot: Pair,
        a: Pair,
        b: Pair,
        first_likes: Sequence[Any],
        second_likes: Sequence[Any],
        first_needs: Sequence[bool],
        second_needs: Sequence[bool],
    ) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """First and second cotangents of (q, k, cos, sin), summed to the shapes of what they belong to.

        Everything is linear in (a, b). Where their leads differ, each takes a turn of its own, so that none is counted
        along an axis that it does not have.

        Returns:
            The first and the second cotangents, None where zero or not wanted.
        """
        present = [t for t in (*a, *b) if t is not None]
        if not present:
            return (None,) * 4, (None,) * 4
        if any(t.shape[:-3] != present[0].shape[:-3] for t in present):
            turns = [(Pair(a.first), _NOTHING), (Pair(None, a.second), _NOTHING)]
            turns += [(_NOTHING, Pair(b.first)), (_NOTHING, Pair(None, b.second))]
        else:
            turns = [(a, b)]
        first: tuple[Tensor | None, ...] = (None,) * 4
        second: tuple[Tensor | None, ...] = (None,) * 4
        heads, angles = slice(0, 2), slice(2, 4)
        wants = (any(first_needs[heads]), any(second_needs[heads]), any(first_needs[angles]), any(second_needs[angles]))
        for one, other in turns:
            if one == _NOTHING and other == _NOTHING:
                continue
            if one == _NOTHING:  # these terms come with a alone
                frame, x_dot = frame._replace(e_dot=_NOTHING), _NOTHING
            one_first, one_second = self.maps.pull(frame, x, x_dot, one, other, wants)
            first = _added(first, cotangents_like((*one_first.heads, *one_first.angles), first_likes))
            second = _added(second, cotangents_like((*one_second.heads, *one_second.angles), second_likes))
        return _needed(first, first_needs), _needed(second, second_needs)


_NONE = (False,) * 4


def frame_of(inputs: Any, e_dot: Pair = _NOTHING) -> Frame:
    """What turns at the inputs of a point."""
    return Frame(Pair(inputs.cos, inputs.sin), e_dot, inputs.position_ids, inputs.interleaved, inputs.heads_last)


def _needed(terms: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    return tuple(term if needed else None for term, needed in zip(terms, needs, strict=True))


def _added(ones: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return tuple(total(one, other) for one, other in zip(ones, others, strict=True))


def _widened(result: Tensor, *others: Tensor) -> Tensor:
    """The result with the leads of all."""
    lead = torch.broadcast_shapes(result.shape[:-3], *(t.shape[:-3] for t in others))
    return result.expand((*lead, *result.shape[-3:]))


def _results(heads: Pair, q: Tensor, k: Tensor | None) -> tuple[Tensor, Tensor]:
    """The turned heads in their dtype; an absent k has no elements."""
    return heads.first.to(q.dtype), q.new_empty(0) if k is None else heads.second.to(q.dtype)


def check_tangents(primals: Any, tangents: Any) -> None:
    """Refuse a tangent that does not lie at its primal."""
    for name in ("q", "k", "cos", "sin"):
        primal, tangent = getattr(primals, name), getattr(tangents, name)
        if tangent is None or (primal is not None and tangent.shape == primal.shape):
            continue
        if primal is None:
            raise ValueError(f"rope: the tangent of {name} must be absent, as {name} is, got a tensor; pass None.")
        try:
            torch.broadcast_shapes(primal.shape[:-3], tangent.shape[:-3])
            fits = primal.shape[-3:] == tangent.shape[-3:]
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"rope: the tangent of {name} must have shape {tuple(primal.shape)}, as {name} has, got "
                f"{tuple(tangent.shape)}."
            )
