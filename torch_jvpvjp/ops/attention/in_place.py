"""Attention up to the second order, tile by tile in a few buffers that a cache holds: fast on a CPU.

The equations are those of `maps`, arranged so that a tile is passed over few times. A tile of the second order is,
with w, λ cotangents of o, ℓ and u, μ their tangents,

    P = softmax S,   T = Ṡ − Σ P∘Ṡ,   A = w vᵀ − D,   X = u vᵀ + w v̇ᵀ + T∘A − C,   dS = P∘A,   dṠ = P∘X,   Ṗ = P∘T

where D and C make the rows of dS and dṠ sum to λ and μ: so they are found, as w·o − λ and u·o + w·ȯ − μ are less exact.
PyTorch's softmax and its pullback P∘(X − Σ P∘X) pass over a tile once, and P costs the same however small it is; where
exp underflows, or is given −∞, `torch.exp` takes several times as long. Cotangents and their tangents are products of
these with rows or keys, added up in place.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._onednn import LEAST_FMA_BY_HEAD
from .._arithmetic import wide
from .fills import Fills
from .maps import Adjoint, Operands, Scores
from .points import NONE, Cotangents, Found
from .products import products_of
from .stripes import tiled
from .tiles import Buffers, Gathered, Given, Tile, pulled, softmax_, sum_of_product
from .tower import Outputs, Tower, stripes
from .whole_heads import pull_whole_heads


class InPlace:
    """The engine of CPU tensors; capped scores and dropout are left to plain stripes.

    So is what is small and has vmap's axis in front, but for several tangents of one value. What is large is computed
    one after another along that axis.
    """

    def forward(self, at: Operands, dots: Operands, scores: Scores) -> Found:
        """o, ℓ, ȯ, ℓ̇; of several tangents, which have an axis in front, P is found once. No tile reads a rest of ℓ."""
        point = Point(at, dots, scores)
        if any(t is not None and t.dim() == _SEVERAL for t in at) and point.is_large():
            ones = [point.at_number(i) for i in range(point.front())]
            if fits(ones[0].scores, (*ones[0].at, *ones[0].dots)):
                return _stacked([self.forward(*one[:3]) for one in ones])
        directions = _directions(dots)
        if not directions or not fits(scores, (*at, *directions[0])):
            return stripes.engine.forward(at, dots, scores)
        several = any(t is not None and t.dim() == _SEVERAL for t in dots)
        o, lse, o_dots, lse_dots = _forward(_given(at, directions, scores), at.q.dtype)
        o_dot, lse_dot = (t if t is None or several else t[0] for t in (o_dots, lse_dots))
        return o, lse, o_dot, lse_dot, torch.zeros_like(lse)

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
        """The pullback of w and its tangent."""
        point = Point(at, dots, scores, w, u, outputs.lse)
        count = point.front()
        if count and point.is_large() and point.at_number(0).fits():
            results = [_second_of(point.at_number(i), needs_first, needs_second) for i in range(count)]
            first, second = (Operands(*_stacked(found)) for found in zip(*results, strict=True))
            return first, second
        if not point.fits():
            return stripes.engine.second(at, dots, scores, w, u, needs_first, needs_second, outputs)
        return _second_of(point, needs_first, needs_second)


in_place = Tower(InPlace())


class Point(NamedTuple):
    """What a pullback and its tangent are computed from; see the engine."""

    at: Operands
    dots: Operands
    scores: Scores
    w: Cotangents = Cotangents()
    u: Cotangents = Cotangents()
    lse: Tensor | None = None

    def fits(self) -> bool:
        """Whether tiles compute it."""
        tensors, lses = (*self.at, *self.dots, self.w.o, self.u.o), (self.lse, self.w.lse, self.u.lse)
        return self.lse is not None and fits(self.scores, tensors, lses)

    def front(self) -> int:
        """How many there are along an axis in front; 0 if there is none."""
        vectors = (*self.at, *self.dots, self.w.o, self.u.o)
        fronts = (len(t) for t in vectors if t is not None and t.dim() == _SEVERAL)
        return next(fronts, 0)

    def is_large(self) -> bool:
        """Whether one alone keeps a processor busy for longer than Python takes to begin it."""
        return self.at.q.shape[-3:].numel() * self.at.k.shape[-2] >= LEAST_FMA_BY_HEAD

    def at_number(self, i: int) -> "Point":
        """One along the axis in front."""
        at, dots = (Operands(*(_one(t, i, 4) for t in group)) for group in (self.at, self.dots))
        w, u = (Cotangents(_one(c.o, i, 4), _one(c.lse, i, 3)) for c in (self.w, self.u))
        s = self.scores
        s = s._replace(mask=_one(s.mask, i, 4), slopes=_one(s.slopes, i, 2), ranges=_one(s.ranges, i, 3))
        return Point(at, dots, s, w, u, _one(self.lse, i, 3))


def _one(t: Tensor | None, i: int, rank: int) -> Any:
    return t if t is None or t.dim() <= rank else t[i]


def _stacked(results: Sequence[Sequence[Any]]) -> Any:
    """Results with an axis in front; None for None."""
    return tuple(None if each[0] is None else torch.stack(each) for each in zip(*results, strict=True))


def _second_of(point: Point, needs_first: Sequence[bool], needs_second: Sequence[bool]) -> tuple[Operands, Operands]:
    """The pullback of w and its tangent, of arguments that fit."""
    at, dots, scores, w, u, lse = point
    assert lse is not None
    blind = _blind(lse.unsqueeze(-1))
    w, u = (_seeing(Cotangents(*(wide(t, at.q) for t in c)), blind) for c in (w, u))
    bends = any(t is not None for t in dots) and any(t is not None for t in w) and any(needs_second)
    given = _given(at, [dots if bends else NONE], scores, blind)
    if not bends:
        return _pull(given, w, needs_first), _pull(given, u, needs_second)
    return _second(given, w, u, needs_first, needs_second)


def fits(scores: Scores, tensors: Sequence[Tensor | None], lses: Sequence[Tensor | None] = ()) -> bool:
    """Whether tiles are computed in place: nothing empty, no axis in front, no option but what is added to scores.

    Args:
        scores: What is done to the scores.
        tensors: Arguments, tangents and cotangents, or None.
        lses: Those of ℓ.

    Returns:
        Whether they are.
    """
    ranked = [(4, (*tensors, scores.mask)), (3, (*lses, scores.ranges)), (2, (scores.slopes,))]
    return (
        scores.softcap == 0
        and scores.dropout_p == 0
        and all(t is None or (t.dim() == rank and t.numel() > 0) for rank, group in ranked for t in group)
    )


def _directions(dots: Operands) -> list[Operands]:
    """The tangents one by one, those without an axis in front in each."""
    count = next((len(t) for t in dots if t is not None and t.dim() == _SEVERAL), 1)
    return [Operands(*(t[i] if t is not None and t.dim() == _SEVERAL else t for t in dots)) for i in range(count)]


_SEVERAL = 5  # axes


def _given(at: Operands, dots: Sequence[Operands], scores: Scores, blind: Tensor | None = None) -> Given:
    at, *dots = (Operands(*(wide(t, at.q) for t in group)) for group in (at, *dots))
    return Given(at, dots, scores, Buffers(at.q), products_of(at, scores), Fills(scores), blind)


def _blind(lse: Tensor) -> Tensor | None:
    """Which rows see nothing, by their largest score or ℓ; None if all see something."""
    if not lse.numel() or float(lse.amin()) > -torch.inf:  # one pass; where there is NaN it does not tell
        return None
    found = lse == -torch.inf
    return found if bool(found.any()) else None


def _seeing(w: Cotangents, blind: Tensor | None) -> Cotangents:
    """Cotangents with 0 for the ℓ of rows that see nothing: it is −∞ whatever the arguments, its cotangent anything."""
    if w.lse is None or blind is None:
        return w
    return w._replace(lse=w.lse.masked_fill(blind.squeeze(-1), 0))


# ---- points ----------------------------------------------------------------------------------------------------------


def _tiles(given: Given, *sums: Gathered) -> Iterator[Tile]:
    """All tiles that have a key to see."""
    parts, windows = tiled(given.at, given.scores, by_head=given.products.by_head)
    at_once = given.products.by_head and len(windows) > 1  # else what was summed up for a head leaves the cache
    for together in [parts] if at_once else [[part] for part in parts]:
        tiles = [Tile(given, part) for part in together]
        for gathered in sums:
            for tile in tiles:
                gathered.open(tile)
        for window in windows:
            if window.c < window.d:
                yield from (tile.at(window) for tile in tiles)  # heads of one window: what hides keys is often the same
        for gathered in sums:
            gathered.close()


def _forward(given: Given, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """o, ℓ, and ȯ and ℓ̇ in each direction: o = P v, ℓ = max S − log max P, ℓ̇ = Σ P∘Ṡ, ȯ = (P∘Ṡ) v + P v̇ − ℓ̇ o."""
    q, v, count = given.at.q, given.at.v, len(given.dots)
    shape, scalars = (*q.shape[:-1], v.shape[-1]), (*q.shape[:-1], 1)
    turns = any(t is not None for dots in given.dots for t in (dots.q, dots.k, dots.bias))
    o, lse = q.new_zeros(shape, dtype=dtype), q.new_full(scalars, -torch.inf)
    o_dots = q.new_zeros((count, *shape), dtype=dtype) if turns or any(d.v is not None for d in given.dots) else None
    lse_dots = q.new_zeros((count, *scalars)) if turns else None
    for tile in _tiles(given):
        s = tile.scores()
        top = s.amax(-1, keepdim=True)
        blind = _blind(top)
        p = softmax_(s, blind)
        largest = p.amax(-1, keepdim=True)  # 1 / Σ exp(S − max S)
        tile.put(lse, top.sub_(largest.log_() if blind is None else largest.log_().masked_fill_(blind, 0)))
        o_rows = tile.product_of_scores(p, tile.v)
        tile.put(o, o_rows)
        for i, direction in enumerate(tile.directions if o_dots is not None else ()):
            assert o_dots is not None
            o_dot_rows = None if direction.v is None else tile.product_of_scores(p, direction.v)
            t = direction.scores()
            if t is not None:
                assert lse_dots is not None
                r = t.mul_(p).sum(-1, keepdim=True)
                tile.put(lse_dots[i], r)
                o_dot_rows = tile.product_of_scores(t, tile.v, o_dot_rows).addcmul_(r, o_rows, value=-1)
            assert o_dot_rows is not None
            tile.put(o_dots[i], o_dot_rows)
            del t
        del s, p  # for the next tile
    return o, lse.squeeze(-1), o_dots, None if lse_dots is None else lse_dots.squeeze(-1)


def _pull(given: Given, w: Cotangents, needs: Sequence[bool]) -> Operands:
    """The pullback of o and ℓ."""
    if not any(needs) or all(t is None for t in w):
        return NONE
    if given.products.by_head and w.o is not None and not needs[3]:
        parts, windows = tiled(given.at, given.scores, by_head=True)
        if len(windows) == 1:
            return pull_whole_heads(given, parts, windows[0], w, needs)
    sums = Gathered(given.at, needs)
    for tile in _tiles(given, sums):
        p, w_rows = tile.probabilities(), _adjoint(tile, w)
        sums.add_v(tile, (p, w_rows.o))
        if not sums.wants_scores:
            continue
        s_bar = tile.filled("a", 0.0) if w_rows.o is None else tile.product("a", w_rows.o, tile.v)
        s_bar = pulled(given.buffers, p, s_bar, w_rows.lse)
        sums.add_bias(tile, s_bar)
        sums.add_q(tile, (s_bar, tile.k))
        sums.add_k(tile, (s_bar, tile.rows(given.at.q)))
        del p, s_bar  # the next tile takes their memory, which the cache still holds
    return sums.sums


def _second(
    given: Given,
    w: Cotangents,
    u: Cotangents,
    needs_first: Sequence[bool],
    needs_second: Sequence[bool],
) -> tuple[Operands, Operands]:
    """The pullback of w and its tangent."""
    first, second = Gathered(given.at, needs_first), Gathered(given.at, needs_second)
    for tile in _tiles(given, first, second):
        p, w_rows, u_rows = tile.probabilities(), _adjoint(tile, w), _adjoint(tile, u)
        (direction,) = tile.directions
        t = direction.scores()
        if t is not None:
            t.sub_(sum_of_product(given.buffers, p, t))
        a = _inner(tile, p, w_rows)
        s_bar_dot = pulled(given.buffers, p, _moved_inner(tile, direction.v, t, a, w_rows, u_rows), u_rows.lse)
        s_bar, q_rows = a.mul_(p), tile.rows(given.at.q)
        first.add_bias(tile, s_bar)
        first.add_q(tile, (s_bar, tile.k))
        first.add_k(tile, (s_bar, q_rows))
        first.add_v(tile, (p, w_rows.o))
        second.add_bias(tile, s_bar_dot)
        second.add_q(tile, (s_bar_dot, tile.k), (s_bar, direction.k))
        second.add_k(tile, (s_bar_dot, q_rows), (s_bar, direction.q))
        second.add_v(tile, (p, u_rows.o))
        if t is not None and w_rows.o is not None:
            second.add_v(tile, (t.mul_(p), w_rows.o))
        del p, t, a, s_bar, s_bar_dot  # for the next tile
    return first.sums, second.sums


def _adjoint(tile: Tile, w: Cotangents) -> Adjoint:
    return Adjoint(tile.rows(w.o), None if w.lse is None else tile.rows(w.lse.unsqueeze(-1)))


def _inner(tile: Tile, p: Tensor, w: Adjoint) -> Tensor:
    """A = w vᵀ − D."""
    if w.o is None:
        assert w.lse is not None
        return tile.filled("a", w.lse)
    a = tile.product("a", w.o, tile.v)
    d = sum_of_product(tile.given.buffers, p, a)
    return a.sub_(d if w.lse is None else d - w.lse)


def _moved_inner(tile: Tile, v_dot: Tensor | None, t: Tensor | None, a: Tensor, w: Adjoint, u: Adjoint) -> Tensor:
    """X + C = u vᵀ + w v̇ᵀ + T∘A."""
    x = None if u.o is None else tile.product("x", u.o, tile.v)
    if w.o is not None and v_dot is not None:
        x = tile.product("x", w.o, v_dot, x)
    x = tile.filled("x", 0.0) if x is None else x
    return x if t is None else x.addcmul_(t, a)
