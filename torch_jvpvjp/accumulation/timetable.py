"""When each step runs on which of several workers, once the steps are known.

Steps are tasks of a tree: each runs on one worker without a break once its operands are there. Which worker and when is
found by list scheduling, longest way to the end first, and for short plans by branch and bound, which is exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from .bracket import Bracket
from .cost import Price

NODE_LIMIT = 20_000  # of one search; deterministic, as a limit on time would not be


class Slot(NamedTuple):
    """When a step runs, in the unit of the objective.

    Attributes:
        worker: Which worker, from 0.
        start: When it starts.
        end: When it ends.
    """

    worker: int
    start: Price
    end: Price


def timetable(order: Sequence[Bracket], prices: Sequence[Price], workers: int) -> tuple[Slot, ...]:
    """The slots of the steps of a plan.

    Args:
        order: The steps, operands before results.
        prices: How long each takes.
        workers: How many may run at once.

    Returns:
        A slot for each step, in their order. The whole is exact for short plans, else what list scheduling finds.
    """
    return tuple(Tasks(order, prices, workers).schedule())


class Tasks:
    """The steps of one plan as a tree of tasks."""

    def __init__(self, order: Sequence[Bracket], prices: Sequence[Price], workers: int) -> None:
        place = {bracket.span: index for index, bracket in enumerate(order)}
        self.operands = [[place[span] for span in bracket.operands] for bracket in order]
        self.prices, self.workers = list(prices), workers
        self.tails = list(prices)  # how long from the start of a step to the end of the plan, at least
        for index in range(len(order) - 1, -1, -1):
            for operand in self.operands[index]:
                self.tails[operand] = self.prices[operand] + self.tails[index]

    def bound(self) -> Price:
        """Return a makespan that no schedule beats: by paths, and by the work ahead of each length of way."""
        best, work = max(self.tails), self.prices[0] * 0
        # What has at least x ahead of it after its end must be done x before the end of all.
        steps = zip(self.tails, self.prices, strict=True)
        ahead = sorted(((tail - price, price) for tail, price in steps), reverse=True)
        for rest, price in ahead:
            work += price
            share = -(-work // self.workers) if isinstance(work, int) else work / self.workers
            best = max(best, rest + share)
        return best

    def listed(self) -> list[Slot]:
        """Return the schedule that always starts the ready step with the longest way to the end."""
        waiting = [len(row) for row in self.operands]
        result_of = {operand: index for index, row in enumerate(self.operands) for operand in row}
        slots: list[Slot | None] = [None] * len(self.prices)
        ready = [(-self.tails[index], index) for index, count in enumerate(waiting) if count == 0]
        heapq.heapify(ready)
        free = list(range(self.workers))
        running: list[tuple[Price, int, int]] = []  # end, worker, step
        now = self.prices[0] * 0
        while ready or running:
            while ready and free:
                index = heapq.heappop(ready)[1]
                worker = heapq.heappop(free)
                slots[index] = Slot(worker, now, now + self.prices[index])
                heapq.heappush(running, (now + self.prices[index], worker, index))
            now = running[0][0]
            while running and running[0][0] == now:
                _, worker, index = heapq.heappop(running)
                heapq.heappush(free, worker)
                result = result_of.get(index)
                if result is not None:
                    waiting[result] -= 1
                    if waiting[result] == 0:
                        heapq.heappush(ready, (-self.tails[result], result))
        return [slot for slot in slots if slot is not None]

    def schedule(self, below: Price | None = None, nodes: int = NODE_LIMIT) -> list[Slot]:
        """Return the best schedule found.

        Args:
            below: A makespan that is known from elsewhere; search no further than for a shorter one.
            nodes: How many partial schedules the search may look at.

        Returns:
            The schedule, which is the best there is, or not below `below`, unless the nodes ran out.
        """
        best = self.listed()
        bound = self.bound()
        limit = makespan(best) if below is None else min(below, makespan(best))
        if bound >= limit:
            return best
        return _Search(self, limit, bound, nodes).run() or best


class _Search:
    """Branch and bound over the orders in which the steps can start."""

    def __init__(self, tasks: Tasks, limit: Price, bound: Price, nodes: int) -> None:
        self.tasks, self.limit, self.bound, self.nodes = tasks, limit, bound, nodes
        self.best: list[Slot] | None = None
        count = len(tasks.prices)
        self.slots: list[Slot | None] = [None] * count
        self.order = sorted(range(count), key=lambda index: (-tasks.tails[index], index))

    def run(self) -> list[Slot] | None:
        """Return the best schedule shorter than the limit, None if none was found."""
        if len(self.order) <= 64:  # it recurses once for each step
            zero = self.tasks.prices[0] * 0
            self._extend([(zero, worker) for worker in range(self.tasks.workers)], zero, sum(self.tasks.prices))
        return self.best

    def _extend(self, free: list[tuple[Price, int]], since: Price, work: Price) -> None:
        """Start each step that can start next, not before `since`, and go on from there."""
        self.nodes -= 1
        tasks, slots = self.tasks, self.slots
        if all(slot is not None for slot in slots):
            self.best = [slot for slot in slots if slot is not None]
            self.limit = makespan(self.best)
            return
        if sum(end for end, _ in free) + work >= self.limit * tasks.workers:
            return
        ready: list[tuple[Price, int]] = []
        for index in self.order:
            if slots[index] is not None:
                continue
            ends = [slots[operand] for operand in tasks.operands[index]]
            known = [slot.end for slot in ends if slot is not None]
            start = max([free[0][0], *known])
            if start + tasks.tails[index] >= self.limit:
                return
            if len(known) == len(ends) and start >= since:
                ready.append((start, index))
        for start, index in ready:
            if self.nodes <= 0 or self.limit <= self.bound:
                return
            if start + tasks.tails[index] >= self.limit:
                continue
            price = tasks.prices[index]
            # Of the workers that are free by then the one that was so last, which wastes least.
            place = max(place for place, (end, _) in enumerate(free) if end <= start)
            worker = free[place][1]
            slots[index] = Slot(worker, start, start + price)
            after = sorted([*free[:place], *free[place + 1 :], (start + price, worker)])
            self._extend(after, start, work - price)
            slots[index] = None


def makespan(slots: Sequence[Slot]) -> Price:
    """Return when the last step ends."""
    return max(slot.end for slot in slots)
