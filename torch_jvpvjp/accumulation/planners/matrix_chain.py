"""The best bracketing of a chain of dense matrices whose products cost m · k · n, from the geometry of the problem.

A bracketing of J_q … J_1 is a triangulation of the polygon with the vertices d_0 .. d_q: the block J_j … J_i is the
chord from d_{i-1} to d_j, and a product (m, k) · (k, n) is the triangle m, k, n. Turn the polygon so that it begins at
a least vertex. Hu and Shing show that some best triangulation is made of fans between *arcs* from a list of fewer than
q, none of which cross: the vertices that an arc (u, v) spans are no smaller than its ends, and the region between an
arc and those taken above it is a fan from `low`, the smaller end.

Let w be the sizes and P(u, v) the sum of w w' over the sides from u to v. A fan from x costs w_x · w w' for each side
of its region that does not end at x, so with the arcs taken above it

    F(arc) = w_low · P(arc) − w_low · w_low w_next     (the side at `low`, unless an arc taken stands there)
           + Σ over the arcs a taken above:  F(a) − w_low · (P(a) − w_u w_v),   F(a) − w_low · P(a) if a ends at `low`

and each arc chooses, for every region below it, between being taken and leaving the fan to those above it. All regions
below an arc are solved as one vector: O(q · depth of nesting) in all, at most O(q²), in exact integers of any size.

Source: Hu and Shing, Computation of matrix chain products, SIAM J. Comput. 11 (1982) and 13 (1984).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from ..bracket import Bracket, multiply

_Vector = np.ndarray[Any, Any]


@dataclass
class _Arc:
    """An arc (u, v) of the turned polygon."""

    u: int
    v: int
    low: int  # the end with the smaller size
    lows: list[int]  # `low` of the arcs below it, the lowest first, then its own
    above: list[_Arc] = field(default_factory=list)  # the arcs right above it, from left to right
    taken: _Vector | None = None  # whether it is taken, for each region below it

    @property
    def depth(self) -> int:
        """How many arcs are below it."""
        return len(self.lows) - 1


def multiply_order(dims: Sequence[int]) -> list[Bracket]:
    """The products of the best bracketing.

    Args:
        dims: The sizes d_0 .. d_q.

    Returns:
        The q - 1 MULTIPLY steps.
    """
    size = len(dims)
    turn = min(range(size), key=lambda place: dims[place])
    weights = [*dims[turn:], *dims[:turn]]
    arcs = _nested(weights)
    _choose(weights, arcs)
    brackets: list[Bracket] = []
    for triangle in _triangles(arcs[0]):
        first, middle, last = sorted((place + turn) % size for place in triangle)
        brackets.append(multiply(last, middle, first + 1))
    return brackets


def _nested(w: list[int]) -> list[_Arc]:
    """Return the arcs that a best triangulation may take, each after the one below it; the first is the side (0, q)."""
    spans: list[tuple[int, int]] = []
    stack = [0]
    for place in range(1, len(w)):
        while w[stack[-1]] > w[place]:  # never at the bottom, which is a least vertex
            stack.pop()
            if stack[-1] != 0:  # a chord from vertex 0 belongs to its fan
                spans.append((stack[-1], place))
        stack.append(place)
    arcs = [_Arc(0, len(w) - 1, 0, [0])]
    open_arcs = arcs[:]
    for u, v in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_arcs[-1].v <= u:
            open_arcs.pop()
        below, low = open_arcs[-1], u if w[u] <= w[v] else v
        arc = _Arc(u, v, low, [*below.lows, low])
        below.above.append(arc)
        arcs.append(arc)
        open_arcs.append(arc)
    return arcs


def _choose(w: list[int], arcs: list[_Arc]) -> None:
    """Decide for each arc, those above first, for which regions below it is taken."""
    prefix = list(accumulate((a * b for a, b in pairwise(w)), initial=0))  # P(u, v) = prefix[v] - prefix[u]
    exact = np.int64 if 4 * len(w) * max(w) ** 3 < 2**63 else object
    sizes = np.array(w, exact)
    best: dict[int, _Vector] = {}  # by arc: what the arcs from it upwards add to each region below it
    for arc in reversed(arcs):
        lows = np.array(arc.lows)
        added = np.zeros(len(lows), exact)  # what the arcs above it add to each region below, its own region last
        for above in arc.above:
            added = added + best.pop(id(above))
        ends = {end for above in arc.above for end in (above.u, above.v)}
        for end, neighbour in ((arc.u, arc.u + 1), (arc.v, arc.v - 1)):
            if end not in ends:
                added[lows == end] -= w[end] * w[end] * w[neighbour]
        span, chord = prefix[arc.v] - prefix[arc.u], w[arc.u] * w[arc.v]
        price = w[arc.low] * span + added[-1]
        touching = (lows[:-1] == arc.u) | (lows[:-1] == arc.v)
        taking = price - sizes[lows[:-1]] * np.array([span - chord, span], exact)[touching.astype(np.intp)]
        arc.taken = taken = np.asarray(taking < added[:-1], bool)
        best[id(arc)] = np.where(taken, taking, added[:-1])


def _triangles(root: _Arc) -> Iterator[tuple[int, int, int]]:
    """Yield the triangles of the fans between the arcs that are taken."""
    regions = [root]
    while regions:
        base = regions.pop()
        boundary = list(range(base.u, base.v + 1))
        hidden: set[int] = set()  # vertices behind the arcs taken
        pending = base.above[:]
        while pending:
            arc = pending.pop()
            assert arc.taken is not None
            if arc.taken[base.depth]:
                regions.append(arc)
                hidden.update(range(arc.u + 1, arc.v))
            else:
                pending += arc.above
        rim = [place for place in boundary if place not in hidden and place != base.low]
        yield from ((base.low, first, second) for first, second in pairwise(rim))
