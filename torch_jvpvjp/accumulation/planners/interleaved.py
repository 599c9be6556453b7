"""Fronts over all orders of steps: the operands of a product may be formed side by side.

Of every block the plans are kept that no other betters in both price and profile, the hills and valleys of what is held
while it is formed (`profiles`). A plan is dropped as soon as it, and the least that the rest of the chain can take,
come to no less than a plan that is known.
"""

from __future__ import annotations

from ..bracket import Action, Bracket, Mode
from ..cost import Price
from ..problem import Problem
from ..profiles import betters, formed
from ..structure import Structure
from .fronts import Front, Fronts, Point, Prices

_Cost = tuple[Price, int]
_Span = tuple[int, int]


class Interleaved(Fronts):
    """The fronts of every block, over all orders.

    Args:
        problem: What is to be planned.
        limit: The highest peak allowed.
        bound: Price and steps of a plan that is known; only better ones are looked for.
        priced: Whether prices matter; if not, only peaks do.
        prices: As in `Fronts`.
    """

    def __init__(
        self,
        problem: Problem,
        limit: int,
        *,
        bound: _Cost | None = None,
        priced: bool = True,
        prices: Prices | None = None,
    ) -> None:
        super().__init__(problem, limit, trade=True, priced=priced, prices=prices)
        self.bound = bound
        self.outside = {} if bound is None or not problem.associative else _outside(problem, self.prices)

    def _leaf(self, front: Front, bracket: Bracket, price: Price) -> None:
        profile = formed((), front.held)
        self._offer(front, Point(profile[0].hill, price, 1, bracket, (), profile))

    def _offer(self, front: Front, point: Point) -> None:
        """Add a point if it is of use, and drop those that it betters."""
        if point.peak > self.limit or self._too_dear(point.bracket.span, point.price, point.steps):
            return
        for other in front.points:
            if (not self.priced or other.cost <= point.cost) and betters(other.profile, point.profile):
                return
        kept = [
            other
            for other in front.points
            if (self.priced and other.cost < point.cost) or not betters(point.profile, other.profile)
        ]
        front.points = sorted([*kept, point], key=lambda kept: kept.cost, reverse=True)
        front.peaks = [kept.peak for kept in front.points]

    def _hopeless(self, front: Front, bracket: Bracket, peak: int, price: Price, steps: int) -> bool:
        return peak > self.limit or self._too_dear(bracket.span, price, steps)

    def _too_dear(self, span: _Span, price: Price, steps: int) -> bool:
        if self.bound is None:
            return False
        more = self.outside.get(span, (0, 0))
        return (price + more[0], steps + more[1]) >= self.bound

    def _join(self, front: Front, a: Front, b: Front, bracket: Bracket, price: Price) -> None:
        for one in a.points:
            for other in b.points:
                total, steps = one.price + other.price + price, one.steps + other.steps + 1
                if not self._too_dear(bracket.span, total, steps):
                    profile = formed((one.profile, other.profile), front.held)
                    self._offer(front, Point(profile[0].hill, total, steps, bracket, (one, other), profile))

    def _sweep(
        self, found: dict[Structure, Front], block: Front, bracket: Bracket, price: Price, structure: Structure
    ) -> None:
        front = self._front(found, bracket, structure)
        for point in block.points:
            total = point.price + price
            if not self._too_dear(bracket.span, total, point.steps + 1):
                profile = formed((point.profile,), front.held)
                self._offer(front, Point(profile[0].hill, total, point.steps + 1, bracket, (point,), profile))


class _Recorded(Fronts):
    """Fronts of one point, the cheapest, that remember every step that was looked at with its price."""

    def __init__(self, problem: Problem, prices: Prices) -> None:
        super().__init__(problem, None, trade=False, prices=prices)
        self.steps: dict[_Span, list[tuple[Bracket, Price]]] = {}

    def _hopeless(self, front: Front, bracket: Bracket, peak: int, price: Price, steps: int) -> bool:
        return bool(front.points) and front.points[0].cost <= (price, steps)

    def _multiply(self, found: dict[Structure, Front], a: Front, b: Front, bracket: Bracket) -> None:
        price = self._product_price(bracket, (a.structure, b.structure))
        self.steps.setdefault(bracket.span, []).append((bracket, price))
        front = self._front(found, bracket, self.problem.structure(*bracket.span))
        one, other = a.points[0], b.points[0]
        total, steps = one.price + other.price + price, one.steps + other.steps + 1
        self._offer(front, Point(0, total, steps, bracket, (one, other)))

    def _sweep(
        self, found: dict[Structure, Front], block: Front, bracket: Bracket, price: Price, structure: Structure
    ) -> None:
        assert bracket.action is Action.ELIMINATE and bracket.mode is not Mode.GIVEN
        self.steps.setdefault(bracket.span, []).append((bracket, price))
        super()._sweep(found, block, bracket, price, structure)


def _outside(problem: Problem, prices: Prices) -> dict[_Span, _Cost]:
    """Return the least that the rest of the chain takes beside each block, price and steps."""
    inside = _Recorded(problem, prices)
    inside.best()
    outside: dict[_Span, _Cost] = {(problem.length, 1): (0, 0)}
    for span in sorted(inside.steps, key=lambda span: span[1] - span[0]):  # the longest first
        price, steps = outside[span]
        for bracket, more in inside.steps[span]:
            for operand in bracket.operands:
                beside = [inside.fronts[part][0].points[0] for part in bracket.operands if part != operand]
                total = price + more + sum(point.price for point in beside)
                found = total, steps + 1 + sum(point.steps for point in beside)
                outside[operand] = min(outside.get(operand, found), found)
    return outside
