"""The order of a plan's steps that holds least, over all orders there are."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from ..bracket import Bracket


def least_of_all_orders(brackets: Sequence[Bracket], held: Sequence[int]) -> tuple[int, list[Bracket]]:
    """The order in which the most entries that are held at one step, its result included, are fewest.

    Every set of steps that can have been done is a node and every step an edge that weighs what is held during it; the
    path of the least greatest weight is found as Dijkstra finds that of the least sum. It takes 2^steps at worst.

    Args:
        brackets: The steps of one plan.
        held: Entries that each leaves held.

    Returns:
        The peak, and the steps in that order.
    """
    place = {bracket.span: index for index, bracket in enumerate(brackets)}
    operands = [[place[span] for span in bracket.operands] for bracket in brackets]
    needs = [sum(1 << operand for operand in row) for row in operands]
    frees = [sum(held[operand] for operand in row) for row in operands]
    full = (1 << len(brackets)) - 1
    queue: list[tuple[int, int, int]] = [(0, 0, 0)]  # peak so far, steps done, entries held now
    came_by: dict[int, tuple[int, int]] = {}
    reached = {0: 0}
    while queue:
        peak, done, now = heapq.heappop(queue)
        if done == full:
            break
        if peak > reached[done]:
            continue
        for step, need in enumerate(needs):
            after = done | 1 << step
            if after == done or need & ~done:
                continue
            higher = max(peak, now + held[step])
            if higher < reached.get(after, higher + 1):
                reached[after], came_by[after] = higher, (done, step)
                heapq.heappush(queue, (higher, after, now + held[step] - frees[step]))
    order: list[Bracket] = []
    done = full
    while done:
        done, step = came_by[done]
        order.append(brackets[step])
    return reached[full], order[::-1]
