"""Executing a plan at a point. The executor never chooses: it does what the plan says, and runs the primal once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bracket import Mode
from .plan import Plan
from .primal import PrimalRun
from .schedule import Span, Task, modes, schedule
from .structure import Block, Dense, Identity, Structure, Zero, multiply, product
from .tensors import Tensors
from .tracing.region import Region
from .tracing.symbols import Symbols
from .tracing.traced import Traced


@dataclass(frozen=True)
class Execution:
    """How a plan is run.

    Attributes:
        chunk_size: Most columns or rows that a sweep carries at once; None for all.
        before: Told each task before it is done.
        advanced: Told when a task, or a chunk of it, is done.
        most_chunks: Most chunks of a sweep that are done, for a run without data that only tells what it holds.
        live: Whether the result is differentiated in turn.
    """

    chunk_size: int | None = None
    before: Callable[[Task], None] | None = None
    advanced: Callable[[], None] | None = None
    most_chunks: int | None = None
    live: bool = False


def execute(
    plan: Plan, traced: Traced, x: Tensor, constants: Mapping[int, Tensor], how: Execution
) -> tuple[Tensor, Block]:
    """Accumulate the Jacobian of a traced function at x as the plan says.

    Args:
        plan: A plan for these factors.
        traced: The function.
        x: The point.
        constants: The tensors from outside that the tape refers to.
        how: Chunks, and who watches.

    Returns:
        The value y, and the Jacobian as a block of y.numel() rows and x.numel() columns, in its structure.
    """
    tasks = schedule(step.decision for step in plan.steps)
    primal = PrimalRun(traced.tape, traced.regions, modes(tasks, len(traced.regions)), x, constants, live=how.live)
    if not traced.regions or 0 in plan.dims:  # y does not depend on x, or there is nothing on the way
        y = primal.finish()
        return y, Block(Zero(y.numel(), x.numel()), ())
    run = _Run(plan, traced, primal, x, how)
    blocks: dict[Span, Block] = {}
    for task in tasks:
        if how.before is not None:
            how.before(task)
        operands = [blocks.pop(span) for span in task.operands]  # freed as soon as used
        blocks[task.result] = run.do(task, operands)
        del operands
    (block,) = blocks.values()
    return primal.finish(), block


def as_jacobian(block: Block, y: Tensor, x: Tensor, *, made: bool) -> Tensor:
    """Return a block as the Jacobian, (*y.shape, *x.shape), dtype of y; a copy unless it was `made` by a product."""
    matrix = block.structure.dense(block.values, y).to(y.dtype)
    # While it is a matrix, which is transposed in a third of the time that more axes take. The Jacobian of a lone
    # Linear is its weight, which is not ours to hand out.
    matrix = matrix.contiguous() if made else matrix.clone(memory_format=torch.contiguous_format)
    return matrix.reshape((*y.shape, *x.shape))


def count_chunks(plan: Plan, regions: Sequence[Region], how: Execution) -> int:
    """Return how many times `how.advanced` is called in a run."""
    count = 0
    for task in schedule(step.decision for step in plan.steps):
        chunks = 1
        if task.mode in {Mode.TANGENT, Mode.ADJOINT}:
            start = _structure(plan, *task.operands[0]) if task.operands else _identity(plan, task)
            if _is_cut(start, regions, task, how.chunk_size):
                chunks = -(-_width(start, task) // (how.chunk_size or 1))
        count += max(chunks, 1)
    return count


def _identity(plan: Plan, task: Task) -> Identity:
    """Return what a sweep begins with that carries no block."""
    return Identity(plan.dims[task.places[0] if task.mode is Mode.TANGENT else task.places[-1] + 1])


def _width(start: Structure, task: Task) -> int:
    return start.n if task.mode is Mode.TANGENT else start.m


def _is_cut(start: Structure, regions: Sequence[Region], task: Task, chunk_size: int | None) -> bool:
    """Return whether a sweep carries a few columns, or rows, at a time.

    Not where what it makes on the way to its result holds no more in its structure, as diagonals do: a chunk would be
    a slice of the matrix.
    """
    if chunk_size is None or _width(start, task) <= chunk_size:
        return False
    places, pushes = task.places, task.mode is Mode.TANGENT
    if type(start) is Dense or any(regions[place].opaque for place in places):
        return True
    symbols, block = Symbols(), start
    for place in places if pushes else reversed(places):
        region = regions[place]
        block = region.forward(symbols, block) if pushes else region.backward(symbols, block)
    between = [made for made in symbols.made if made is not block]
    longest = max(made.m if pushes else made.n for made in (start, *between))
    return any(made.entries > chunk_size * longest for made in between)


class _Run:
    """The tasks of one execution."""

    def __init__(self, plan: Plan, traced: Traced, primal: PrimalRun, x: Tensor, how: Execution) -> None:
        self.plan, self.regions, self.primal, self.how = plan, traced.regions, primal, how
        self.tensors = Tensors(primal, x)

    def do(self, task: Task, operands: list[Block]) -> Block:
        """Return the block that a task makes."""
        if task.mode is None:
            self._advanced()
            return multiply(*operands)
        block = operands[0] if operands else None
        if task.mode in {Mode.GIVEN, Mode.CLOSED}:
            done = self._closed(task.places[0])
            self._advanced()
        elif task.mode is Mode.COMPRESSED:
            done = self._compressed(task, block)
            self._advanced()
        else:
            start = block or Block(_identity(self.plan, task), ())
            if _is_cut(start.structure, self.regions, task, self.how.chunk_size):
                done = self._in_chunks(start, task)
            else:
                done = self._sweep(start, task)
                self._advanced()
        for place in task.places:
            self.primal.release(place)
        return done

    def _advanced(self) -> None:
        if self.how.advanced is not None:
            self.how.advanced()

    def _closed(self, place: int) -> Block:
        """Return the Jacobian of a region from its local Jacobians."""
        self.primal.advance(place + 1)
        region = self.regions[place]
        closed = region.closed
        assert closed is not None, "a plan took the Jacobian of a black box as known"
        if closed.forwards:
            return region.forward(self.tensors, Block(Identity(self.plan.dims[place]), ()))
        return region.backward(self.tensors, Block(Identity(self.plan.dims[place + 1]), ()))

    def _sweep(self, block: Block, task: Task) -> Block:
        """Return a block carried through the regions of a task."""
        if task.mode is Mode.TANGENT:
            for place in task.places:
                block = self._push(place, block)
        else:
            self.primal.advance(task.places[-1] + 1)
            for place in reversed(task.places):
                block = self._pull(place, block)
        return block

    def _push(self, place: int, block: Block) -> Block:
        region = self.regions[place]
        if not region.opaque:
            self.primal.advance(place + 1)
            return region.forward(self.tensors, block)
        block = self.tensors.densified(block)
        self.primal.advance(place)
        # In chunks, the black box is recorded by the first and replayed by the others.
        pushed = self.primal.push_through(place, block) if self.how.chunk_size is None else None
        self.primal.advance(place + 1)
        return self.primal.linear_map(place).push(block) if pushed is None else pushed

    def _pull(self, place: int, block: Block) -> Block:
        region = self.regions[place]
        if not region.opaque:
            return region.backward(self.tensors, block)
        return self.primal.linear_map(place).pull(self.tensors.densified(block))

    def _in_chunks(self, start: Block, task: Task) -> Block:
        """Return what `_sweep` does, a few columns (or rows) at a time, written into one matrix."""
        pushes = task.mode is Mode.TANGENT
        size, axis = self.how.chunk_size or 1, 1 if pushes else 0
        width = _width(start.structure, task)
        first, last = task.places[0], task.places[-1]
        shape = (self.plan.dims[last + 1], width) if pushes else (width, self.plan.dims[first])
        whole: Tensor | None = None
        parts: list[Tensor] = []
        for begin in range(0, width, size)[: self.how.most_chunks]:
            piece = self._slice(start, begin, min(begin + size, width), pushes)
            done = self.tensors.matrix(self._sweep(piece, task))
            self._advanced()
            if torch.is_grad_enabled() and done.requires_grad:
                parts.append(done)
                continue
            if whole is None:
                whole = done.new_empty(shape)
            whole.narrow(axis, begin, done.shape[axis]).copy_(done)
        matrix = torch.cat(parts, axis) if parts else whole
        assert matrix is not None
        return Block(Dense(*shape), matrix)

    def _slice(self, block: Block, begin: int, end: int, pushes: bool) -> Block:
        """Return some columns, or rows, of a block as a dense block, without the matrix of all of them."""
        structure, like = block.structure, self.tensors.like
        if type(structure) is Dense:
            values = self.tensors.matrix(block).narrow(1 if pushes else 0, begin, end - begin)
            return Block(Dense(*values.shape), values)
        rows = torch.zeros(end - begin, structure.n if pushes else structure.m, dtype=like.dtype, device=like.device)
        rows.diagonal(begin).fill_(1)
        chosen = rows.T if pushes else rows
        part = Block(Dense(*chosen.shape), chosen)
        if isinstance(structure, Identity):
            return part
        return self.tensors.densified(multiply(block, part) if pushes else multiply(part, block))

    def _compressed(self, task: Task, block: Block | None) -> Block:
        """Return a sparse block, pushed with its columns compressed by a colouring of the result.

        Columns of one colour share no row of the result, so their sum holds each entry by itself.
        """
        j, i = task.result
        structure = _structure(self.plan, j, i)
        colours = torch.from_numpy(structure.colouring()).to(self.tensors.like.device)
        none = torch.zeros(structure.n, structure.colours, dtype=self.tensors.like.dtype, device=colours.device)
        columns = none.scatter(1, colours.unsqueeze(1), 1.0)
        seeds = Block(Dense(*columns.shape), columns)
        start = seeds if block is None else self.tensors.densified(multiply(block, seeds))
        pushed = self.tensors.matrix(self._sweep(start, task._replace(mode=Mode.TANGENT)))
        return Block(structure, structure.decompress(pushed))


def _structure(plan: Plan, j: int, i: int) -> Structure:
    """Return the structure of the block J_j … J_i."""
    structure = plan.factors[i - 1].jacobian
    for factor in plan.factors[i:j]:
        structure = product(factor.jacobian, structure).result
    return structure
