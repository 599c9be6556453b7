"""Plans for several workers: the blocks that a plan forms side by side are computed at once.

Every step runs on one worker; the makespan is when the last ends. With p workers the program of Maertens and Naumann
takes the number t of workers as a further index of each block,

    C(j, i, t) = min over k of  price + min(C(k, i, t) + C(j, k+1, t),  max(C(k, i, t'), C(j, k+1, t − t')))

and the sweeps likewise. It is exact for one worker and for as many as there are factors, and an upper bound between,
because workers cannot change sides. So its plan is scheduled freely, beside the plan of the least sum, and on short
chains all plans that a bound leaves are searched. Sweeps go factor by factor while they are scheduled, which costs the
same and lets workers change in between, and are joined again where that does not delay the end.

Source: Maertens and Naumann (2025), arXiv 2505.06056.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import NamedTuple

from ..bracket import Action, Bracket, Mode, multiply, pull, push, push_compressed
from ..cost import Price
from ..problem import Problem, is_compressible
from ..timetable import Tasks, makespan

SEARCHED = 10  # factors up to which the plans are searched
MOST_TREES = 100_000  # kept of one block while searching
SEARCH_NODES = 2_000  # of the search for a schedule of one plan

_Span = tuple[int, int]


def parallel_plan(problem: Problem, sequential: Callable[[Problem], list[Bracket]]) -> list[Bracket]:
    """The plan whose makespan is the least that is found.

    Args:
        problem: What is to be planned, with threads.
        sequential: Finds the plan of the least sum.

    Returns:
        The brackets, operands before results.
    """
    best = _Shortest(problem)
    best.offer(_split(problem, sequential(problem)))
    if problem.threads != 1:
        best.offer(_by_threads(problem))
        if problem.length <= SEARCHED:
            _search(problem, best)
    return _rejoined(problem, best)


def shortest_of(problem: Problem, plans: Iterable[list[Bracket]]) -> list[Bracket]:
    """Return the plan of the least makespan of several; on ties the cheapest, then the one of fewest steps."""
    best = _Shortest(problem)
    for plan in plans:
        best.offer(plan)
    return best.brackets


class _Shortest:
    """The best plan so far."""

    def __init__(self, problem: Problem) -> None:
        assert problem.threads is not None
        self.problem, self.workers = problem, problem.threads
        self.price = cache(problem.price)
        self.brackets: list[Bracket] = []
        self.rank: tuple[Price, Price, int] | None = None  # makespan, sum, steps

    def offer(self, brackets: list[Bracket], nodes: int | None = None) -> None:
        """Take a plan, operands before results, if it is better."""
        prices = [self.price(bracket) for bracket in brackets]
        tasks = Tasks(brackets, prices, self.workers)
        if self.rank is not None and tasks.bound() > self.rank[0]:
            return
        slots = tasks.schedule() if nodes is None else tasks.schedule(self.rank and self.rank[0], nodes)
        rank = makespan(slots), sum(prices), len(prices)
        if self.rank is None or rank < self.rank:
            self.rank, self.brackets = rank, brackets


# ---- sweeps, split and joined --------------------------------------------------------------------------------------


def _split(problem: Problem, brackets: list[Bracket]) -> list[Bracket]:
    """Return a plan with its sweeps factor by factor, operands before results."""
    chosen = {bracket.span: bracket for bracket in brackets}
    order: list[Bracket] = []
    pending = [(problem.length, 1)]
    while pending:  # results before operands, reversed below
        bracket = chosen[pending.pop()]
        raw = bracket.raw_factors
        if bracket.action is Action.ELIMINATE and bracket.mode is Mode.TANGENT:
            order += [push(index, index - 1, bracket.i) for index in reversed(raw)]
        elif bracket.action is Action.ELIMINATE and bracket.mode is Mode.ADJOINT:
            order += [pull(bracket.j, index, index) for index in raw]
        else:
            order.append(bracket)
        pending += bracket.operands
    return order[::-1]


def _rejoined(problem: Problem, best: _Shortest) -> list[Bracket]:
    """Return the best plan with sweeps that continue one another joined where the makespan stays as it is."""
    brackets = best.brackets
    assert best.rank is not None
    for _ in range(len(brackets)):
        for joined in _joinings(problem, brackets):
            slots = Tasks(joined, [best.price(bracket) for bracket in joined], best.workers).schedule()
            if makespan(slots) <= best.rank[0]:
                brackets = joined
                break
        else:
            break
    return brackets


def _joinings(problem: Problem, brackets: list[Bracket]) -> Iterator[list[Bracket]]:
    """Yield the plan with each two sweeps joined that one mode carries on through."""
    sweeps = {bracket.span: bracket for bracket in brackets if bracket.action is Action.ELIMINATE}
    for bracket in sweeps.values():
        before = sweeps.get(bracket.operands[0])
        if before is None or before.mode is not bracket.mode or bracket.mode is Mode.COMPRESSED:
            continue
        joined = bracket._replace(k=before.k)
        if problem.allows(joined):
            yield [joined if other is bracket else other for other in brackets if other is not before]


# ---- the program with a number of workers ------------------------------------------------------------------------


class _Way(NamedTuple):
    """How a block is formed by some number of workers."""

    time: Price
    bracket: Bracket
    workers: tuple[int, ...]  # for each operand


def _joins(problem: Problem, j: int, k: int, i: int) -> Iterator[Bracket]:
    """Yield the steps that join at k, sweeps by one factor; a compressed one, which is no sum of its parts, by any."""
    yield multiply(j, k, i)
    if k == j - 1 and problem.allows(push(j, k, i)):
        yield push(j, k, i)
    if k == i and problem.allows(pull(j, k, i)):
        yield pull(j, k, i)
    compressed = push_compressed(j, k, i)
    if not problem.all_dense and problem.allows(compressed) and is_compressible(problem.structure(j, i)):
        yield compressed


def _by_threads(problem: Problem) -> list[Bracket]:
    """Return the plan of the program with the number of workers as an index."""
    q, most = problem.length, min(problem.threads or 1, problem.length)
    ways: dict[_Span, list[_Way]] = {}  # index t - 1
    for index in range(1, q + 1):
        leaf = problem.best_leaf(index)
        ways[index, index] = [_Way(problem.price(leaf), leaf, ())] * most
    for s in range(1, q):
        for i in range(1, q - s + 1):
            j = i + s
            best: list[_Way | None] = [None] * most
            for k in range(i, j):
                for bracket in _joins(problem, j, k, i):
                    _improve(best, ways, bracket, problem.price(bracket))
            ways[j, i] = [way for way in best if way is not None]
    order: list[Bracket] = []
    pending = [((q, 1), most)]
    while pending:
        span, workers = pending.pop()
        way = ways[span][workers - 1]
        order.append(way.bracket)
        pending += zip(way.bracket.operands, way.workers, strict=True)
    return order[::-1]


def _improve(best: list[_Way | None], ways: dict[_Span, list[_Way]], bracket: Bracket, price: Price) -> None:
    """Put a step in place of the best of its block wherever it is faster."""
    operands = [ways[span] for span in bracket.operands]
    for t in range(1, len(best) + 1):
        found = [(sum((row[t - 1].time for row in operands), start=price), (t,) * len(operands))]
        if len(operands) == 2:
            first, second = operands
            found += [(price + max(first[a - 1].time, second[t - a - 1].time), (a, t - a)) for a in range(1, t)]
        time, workers = min(found)
        now = best[t - 1]
        if now is None or time < now.time:
            best[t - 1] = _Way(time, bracket, workers)


# ---- the search over plans ---------------------------------------------------------------------------------------


class _Tree(NamedTuple):
    """One way to form a block: all its work, the longest path through it, its steps."""

    work: Price
    path: Price
    brackets: tuple[Bracket, ...]


def _search(problem: Problem, best: _Shortest) -> None:
    """Offer the plans that could still be shorter, the most promising first."""
    assert best.rank is not None
    limit, workers = best.rank[0], best.workers
    least = _least(problem, best)
    outside = _outside(problem, best, least)
    trees: dict[_Span, list[_Tree]] = {}
    for s in range(problem.length):
        for i in range(1, problem.length - s + 1):
            span = (i + s, i)
            work, path = outside[span]
            kept = [
                tree
                for tree in _ways(problem, best, trees, span)
                if tree.path + path < limit and tree.work + work < limit * workers
            ]
            if len(kept) > MOST_TREES:
                kept = sorted(kept, key=lambda tree: max(tree.path * workers, tree.work))[:MOST_TREES]
            trees[span] = kept
    for tree in sorted(trees[problem.length, 1], key=lambda tree: max(tree.path * workers, tree.work)):
        if tree.path >= best.rank[0] or tree.work >= best.rank[0] * workers:
            continue
        best.offer(list(tree.brackets), SEARCH_NODES)


def _ways(problem: Problem, best: _Shortest, trees: dict[_Span, list[_Tree]], span: _Span) -> Iterator[_Tree]:
    """Yield the ways to form a block from the ways that are kept of its parts."""
    j, i = span
    if i == j:
        leaf = problem.best_leaf(i)
        yield _Tree(best.price(leaf), best.price(leaf), (leaf,))
    for k in range(i, j):
        for bracket in _joins(problem, j, k, i):
            price = best.price(bracket)
            if len(bracket.operands) == 1:
                for tree in trees[bracket.operands[0]]:
                    yield _Tree(tree.work + price, tree.path + price, (*tree.brackets, bracket))
                continue
            for up in trees[k, i]:
                for down in trees[j, k + 1]:
                    path = max(up.path, down.path) + price
                    yield _Tree(up.work + down.work + price, path, (*up.brackets, *down.brackets, bracket))


def _least(problem: Problem, best: _Shortest) -> dict[_Span, tuple[Price, Price]]:
    """Return the least work and the least path of each block."""
    least: dict[_Span, tuple[Price, Price]] = {}
    for s in range(problem.length):
        for i in range(1, problem.length - s + 1):
            j = i + s
            found = [(best.price(problem.best_leaf(i)),) * 2] if i == j else []
            for k in range(i, j):
                for bracket in _joins(problem, j, k, i):
                    price, parts = best.price(bracket), [least[span] for span in bracket.operands]
                    found.append((price + sum(part[0] for part in parts), price + max(part[1] for part in parts)))
            least[j, i] = min(work for work, _ in found), min(path for _, path in found)
    return least


def _outside(
    problem: Problem, best: _Shortest, least: dict[_Span, tuple[Price, Price]]
) -> dict[_Span, tuple[Price, Price]]:
    """Return the least work beside each block, and the least path from it to the end."""
    q = problem.length
    outside: dict[_Span, tuple[Price, Price]] = {(q, 1): (0, 0)}
    for s in range(q - 1, 0, -1):
        for i in range(1, q - s + 1):
            j = i + s
            if (j, i) not in outside:
                continue
            for k in range(i, j):
                for bracket in _joins(problem, j, k, i):
                    work, path = (known + best.price(bracket) for known in outside[j, i])
                    for span in bracket.operands:
                        beside = sum(least[other][0] for other in bracket.operands if other != span)
                        known = outside.get(span, (work + beside, path))
                        outside[span] = min(known[0], work + beside), min(known[1], path)
    return outside
