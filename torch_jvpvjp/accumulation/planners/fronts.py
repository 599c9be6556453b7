"""Pareto fronts of price and peak, over plans that form one operand of a product after the other.

Of every block the plans are kept that no other beats in both, for each structure that the block can come in: patterns
do not depend on the bracketing, but factored structures may. With E the entries that a block leaves held, two blocks a
and b that are joined to c, a first, have

    peak(c) = max(peak(a), E(a) + peak(b), E(a) + E(b) + E(c)),

b first likewise, and a sweep from a to c has max(peak(a), E(a) + E(c)): what a sweep holds on its way is not a block of
the plan. Prices add and peaks are monotone in those of the parts, so no part of a best plan is beaten in both.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..bracket import Bracket, Mode, accumulate, multiply, pull, push, push_compressed
from ..cost import Price
from ..problem import Problem, is_compressible
from ..profiles import Profile
from ..structure import Structure

_UNLIMITED = float("inf")


class Point(NamedTuple):
    """One way to form a block."""

    peak: int
    price: Price
    steps: int
    bracket: Bracket
    operands: tuple[Point, ...]
    profile: Profile = ()  # where operands may be formed side by side

    @property
    def cost(self) -> tuple[Price, int]:
        """What is compared: the price and, at one price, the number of steps."""
        return self.price, self.steps


@dataclass
class Front:
    """The ways to form a block in one structure, of falling cost."""

    structure: Structure
    held: int
    points: list[Point] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)  # of the points; they rise where `beats` and `add` are used
    swept: dict[Mode, list[tuple[Price, Structure]]] = field(default_factory=dict)  # price and result of sweeps from it

    def beats(self, peak: int, cost: tuple[Price, int]) -> bool:
        """Return whether some point has neither a higher peak nor a higher cost."""
        place = bisect_right(self.peaks, peak)
        return place > 0 and self.points[place - 1].cost <= cost

    def add(self, point: Point) -> None:
        """Add a point, and drop those that it beats."""
        if self.beats(point.peak, point.cost):
            return
        place = bisect_right(self.peaks, point.peak)
        if place and self.peaks[place - 1] == point.peak:
            place -= 1
        end = place
        while end < len(self.points) and self.points[end].cost >= point.cost:
            end += 1
        self.points[place:end], self.peaks[place:end] = [point], [point.peak]


def brackets_of(best: Point) -> list[Bracket]:
    """Return the steps of a way to form a block, results before operands."""
    brackets: list[Bracket] = []
    pending = [best]
    while pending:
        point = pending.pop()
        brackets.append(point.bracket)
        pending += point.operands
    return brackets


@dataclass
class Prices:
    """Prices of steps, and the structures of their results, in a chain where those do not depend on the bracketing."""

    products: dict[Bracket, Price] = field(default_factory=dict)
    sweeps: dict[tuple[int, int], dict[Mode, list[tuple[Price, Structure]]]] = field(default_factory=dict)


class Fronts:
    """The fronts of every block.

    Args:
        problem: What is to be planned.
        limit: The highest peak allowed.
        trade: Whether peaks matter beside prices; if not, a front is one point.
        priced: Whether prices matter; if not, only peaks do.
        prices: Prices of steps that another program for this problem has found; those that this one finds are added.
    """

    def __init__(
        self,
        problem: Problem,
        limit: int | None,
        *,
        trade: bool,
        priced: bool = True,
        prices: Prices | None = None,
    ) -> None:
        self.problem, self.trade, self.priced = problem, trade, priced
        self.limit = _UNLIMITED if limit is None else limit
        self.prices = Prices() if prices is None else prices
        self.fronts: dict[tuple[int, int], list[Front]] = {}

    def best(self) -> Point | None:
        """Return the cheapest way to form the whole Jacobian, None if there is none."""
        q = self.problem.length
        for length in range(1, q + 1):
            for i in range(1, q - length + 2):
                self._form(i + length - 1, i)
        points = [point for front in self.fronts[q, 1] for point in front.points]
        return min(points, key=lambda point: point.cost if self.priced else point.peak, default=None)

    # ---- one block -------------------------------------------------------------------------------------------------

    def _form(self, j: int, i: int) -> None:
        found: dict[Structure, Front] = {}
        if i == j:
            for bracket in (accumulate(i, mode) for mode in self.problem.leaf_modes(i)):
                front = self._front(found, bracket, self.problem.factor(i).jacobian)
                self._leaf(front, bracket, self.problem.price(bracket) if self.priced else 0)
        ways = [
            (front, k, sweep)
            for k in range(i, j)
            for fronts, sweep in ((self.fronts[k, i], self._push), (self.fronts[j, k + 1], self._pull))
            for front in fronts
        ]
        if not self.priced:  # then what holds least comes first, and leaves no room for others
            ways.sort(key=lambda way: way[0].held)
        room = self._room(found, j, i)
        for front, k, sweep in ways:
            if front.held <= room:
                sweep(found, front, j, k, i)
                room = self._room(found, j, i)
        pairs = [
            (upstream.points[-1].price + downstream.points[-1].price, k, upstream, downstream)
            for k in range(i, j)
            for upstream in self.fronts[k, i]
            for downstream in self.fronts[j, k + 1]
            if upstream.held + downstream.held <= room
        ]
        for _, k, upstream, downstream in sorted(pairs, key=lambda pair: pair[0]):
            self._multiply(found, upstream, downstream, multiply(j, k, i))
        self.fronts[j, i] = [front for front in found.values() if front.points]
        if self.priced and self.problem.associative:
            for front in self.fronts[j, i]:
                front.swept = self.prices.sweeps.setdefault((j, i), {})

    def _room(self, found: dict[Structure, Front], j: int, i: int) -> float:
        """Return the most that the operands of a step may hold for it to be of use, beside the block J_j … J_i itself.

        It is known where the structure of the block does not depend on the bracketing.
        """
        if not self.problem.associative or i == j:
            return _UNLIMITED
        structure = self.problem.structure(j, i)
        most = self.limit
        if not (self.priced or self.trade) and structure in found and found[structure].points:
            most = min(most, found[structure].points[0].peak - 1)
        return most - structure.entries * self.problem.copies(j, i)

    def _front(self, found: dict[Structure, Front], bracket: Bracket, structure: Structure) -> Front:
        if structure not in found:
            found[structure] = Front(structure, self.problem.held(bracket, structure))
        return found[structure]

    def _leaf(self, front: Front, bracket: Bracket, price: Price) -> None:
        self._offer(front, Point(front.held, price, 1, bracket, ()))

    def _offer(self, front: Front, point: Point) -> None:
        if point.peak > self.limit:
            return
        if self.trade:
            front.add(point)
        elif not self._hopeless(front, point.bracket, point.peak, point.price, point.steps):
            front.points, front.peaks = [point], [point.peak]

    def _hopeless(self, front: Front, bracket: Bracket, peak: int, price: Price, steps: int) -> bool:
        """Return whether nothing of at least that peak and that cost can be of use."""
        if peak > self.limit:
            return True
        if self.trade:
            return front.beats(peak, (price, steps))
        if not front.points:
            return False
        return front.points[0].cost <= (price, steps) if self.priced else front.points[0].peak <= peak

    # ---- products --------------------------------------------------------------------------------------------------

    def _multiply(self, found: dict[Structure, Front], a: Front, b: Front, bracket: Bracket) -> None:
        """Offer the products of an upstream block a and a downstream block b."""
        problem, associative = self.problem, self.problem.associative
        structures = a.structure, b.structure
        structure = problem.structure(*bracket.span) if associative else problem.outcome(bracket, structures)
        front = self._front(found, bracket, structure)
        lowest = max(min(a.peaks), min(b.peaks), a.held + b.held + front.held)
        least = a.points[-1].price + b.points[-1].price
        if not self._hopeless(front, bracket, lowest, least, 3):
            self._join(front, a, b, bracket, self._product_price(bracket, structures))

    def _product_price(self, bracket: Bracket, structures: tuple[Structure, Structure]) -> Price:
        if not self.priced:
            return 0
        if not self.problem.associative:
            return self.problem.price(bracket, structures)
        price = self.prices.products.get(bracket)
        if price is None:
            price = self.prices.products[bracket] = self.problem.price(bracket, structures)
        return price

    def _join(self, front: Front, a: Front, b: Front, bracket: Bracket, price: Price) -> None:
        base = a.held + b.held + front.held
        for first, second in ((a, b), (b, a)):
            for peak, one, other in _merged(first, second, base, self.limit):
                operands = (one, other) if first is a else (other, one)
                total = one.price + other.price + price
                self._offer(front, Point(peak, total, one.steps + other.steps + 1, bracket, operands))

    # ---- sweeps ----------------------------------------------------------------------------------------------------

    def _push(self, found: dict[Structure, Front], block: Front, j: int, k: int, i: int) -> None:
        """Offer the sweeps, compressed and not, of an upstream block through k+1 .. j."""
        problem = self.problem
        bracket = push(j, k, i)
        if problem.allows(bracket):
            self._sweep(found, block, bracket, *self._carried(block, bracket))
        bracket = push_compressed(j, k, i)
        if not problem.all_dense and problem.allows(bracket):
            structure = problem.outcome(bracket, (block.structure,))
            if is_compressible(structure):
                price = problem.price(bracket, (block.structure,)) if self.priced else 0
                self._sweep(found, block, bracket, price, structure)

    def _pull(self, found: dict[Structure, Front], block: Front, j: int, k: int, i: int) -> None:
        """Offer the sweeps of a downstream block through k .. i."""
        bracket = pull(j, k, i)
        if self.problem.allows(bracket):
            self._sweep(found, block, bracket, *self._carried(block, bracket))

    def _carried(self, block: Front, bracket: Bracket) -> tuple[Price, Structure]:
        """Return price and result of a sweep from a block, which continues the one that is one factor shorter."""
        assert bracket.mode is not None
        passed = block.swept.setdefault(bracket.mode, [(0, block.structure)])
        raw = bracket.raw_factors
        order = raw if bracket.mode is Mode.TANGENT else raw[::-1]
        while len(passed) <= len(order):
            price, structure = passed[-1]
            index = order[len(passed) - 1]
            if bracket.mode is Mode.TANGENT:
                step = push(index, index - 1, bracket.i)
            else:
                step = pull(bracket.j, index, index)
            price += self.problem.price(step, (structure,)) if self.priced else 0
            passed.append((price, self.problem.outcome(step, (structure,))))
        return passed[len(order)]

    def _sweep(
        self, found: dict[Structure, Front], block: Front, bracket: Bracket, price: Price, structure: Structure
    ) -> None:
        front = self._front(found, bracket, structure)
        for point in block.points:
            peak = max(point.peak, block.held + front.held)
            self._offer(front, Point(peak, point.price + price, point.steps + 1, bracket, (point,)))


def _merged(first: Front, second: Front, base: int, limit: float) -> Iterator[tuple[int, Point, Point]]:
    """Yield the best pairs of points by rising peak, where the first block is held while the second is formed."""
    one, other = first.points, second.points
    a = b = 0
    peak = max(base, one[0].peak, first.held + other[0].peak)
    while peak <= limit:
        while a + 1 < len(one) and one[a + 1].peak <= peak:
            a += 1
        while b + 1 < len(other) and first.held + other[b + 1].peak <= peak:
            b += 1
        yield peak, one[a], other[b]
        following = [one[a + 1].peak] if a + 1 < len(one) else []
        following += [first.held + other[b + 1].peak] if b + 1 < len(other) else []
        if not following:
            return
        peak = min(following)
