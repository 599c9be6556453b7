"""Blocks carried by structure alone, which tells what carrying tensors would cost."""

from __future__ import annotations

from collections.abc import Sequence

from ..structure import Dense, Identity, Kronecker, Structure, addition, product
from .parts import Arc, Part
from .samples import in_samples


class PastLimit(Exception):
    """More fma than the limit."""


class Symbols:
    """The algebra of structures: no tensors, only what their products would cost.

    Args:
        limit: `PastLimit` is raised as soon as the cost exceeds it; None for none.

    Attributes:
        fma: What has been counted.
        made: The structures of the blocks that were made, in order.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.fma = 0
        self.limit = limit
        self.made: list[Structure] = []

    def _made(self, block: Structure) -> Structure:
        self.made.append(block)
        return block

    def _count(self, fma: int) -> None:
        self.fma += fma
        if self.limit is not None and self.fma > self.limit:
            raise PastLimit

    def structure(self, block: Structure) -> Structure:
        """Return the structure itself."""
        return block

    def densified(self, block: Structure) -> Structure:
        """Return a dense structure of that shape."""
        return self._made(Dense(block.m, block.n))

    def local(self, arc: Arc) -> Structure:
        """Return the structure of a local Jacobian."""
        return arc.local.structure

    def local_times(self, arc: Arc, block: Structure) -> Structure:
        """Return the structure of the product, and count it."""
        through = arc.local.through
        if through is not None and type(block) is Dense:
            self._count(block.n * through.fma)
            return self._made(Dense(arc.local.structure.m, block.n))
        self._count_forming(arc, block)
        return self.multiply(arc.local.structure, block)

    def times_local(self, block: Structure, arc: Arc) -> Structure:
        """Return the structure of the product, and count it."""
        through = arc.local.through
        if through is not None and type(block) is Dense:
            self._count(block.m * through.fma)
            return self._made(Dense(block.m, arc.local.structure.n))
        self._count_forming(arc, block)
        return self.multiply(block, arc.local.structure)

    def _count_forming(self, arc: Arc, block: Structure) -> None:
        """Count what a full matrix takes to form that vectors go through without, as through a Fourier transform."""
        full = isinstance(arc.local.structure, (Dense, Kronecker)) and arc.local.through is not None
        if full and isinstance(block, Identity):
            self._count(arc.local.fma)

    def multiply(self, left: Structure, right: Structure) -> Structure:
        """Return the structure of the product, and count it."""
        if isinstance(left, Identity) or isinstance(right, Identity):
            return self._made(right if isinstance(left, Identity) else left)
        joined = product(left, right)
        self._count(joined.fma)
        return self._made(joined.result)

    def add(self, left: Structure, right: Structure) -> Structure:
        """Return the structure of the sum, and count it."""
        joined = addition(left, right)
        self._count(joined.fma)
        return self._made(joined.result)

    def push(self, part: Part, operands: Sequence[int], blocks: Sequence[Structure]) -> list[Structure]:
        """Return dense structures, and count a JVP for each column; of each sample, where they keep to those."""
        samples = part.samples_in(blocks[0])
        self._count(blocks[0].n // samples * (part.jvp_cost or 0) * len(operands) // len(part.op.active))
        return [self._made(in_samples(samples, part.meta(index).numel, blocks[0].n)) for index in part.outputs]

    def pull(self, part: Part, operands: Sequence[int], blocks: Sequence[Structure | None]) -> list[Structure]:
        """Return dense structures, and count a VJP for each row; of each sample, where they keep to those."""
        block = next(block for block in blocks if block is not None)
        samples = part.samples_in(block)
        self._count(block.m // samples * (part.vjp_cost or 0) * len(operands) // len(part.op.active))
        return [self._made(in_samples(samples, block.m, part.meta(index).numel)) for index in operands]
