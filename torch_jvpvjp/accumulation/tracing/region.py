"""A region of a tape between two cuts: the stage of a chain, through which blocks are carried op by op.

Its Jacobian is the sum over all paths of products of local Jacobians. Carrying a block forwards computes, op by op,

    Ẋ_v = Σ over operands u of v:  J_vu Ẋ_u,      and backwards      X̄_u = Σ over users v of u:  X̄_v J_vu.

The same walk is taken twice: with structures alone, which gives the structure of the Jacobian and its cost for
planning, and with tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, NamedTuple, Protocol, TypeVar

from ..structure import (
    Banded,
    BlockDiagonal,
    Dense,
    Diagonal,
    Identity,
    Kronecker,
    PlusLowRank,
    RowKronecker,
    ScaledIdentity,
    Stacked,
    Structure,
    Zero,
)
from .parts import Arc, Part
from .samples import keeps_to_samples
from .symbols import PastLimit, Symbols

T = TypeVar("T")

REGULAR = (Dense, Diagonal, Identity, ScaledIdentity, Zero, BlockDiagonal, Kronecker, Banded, PlusLowRank, RowKronecker)
_DIAGONAL = (Diagonal, ScaledIdentity, Zero)
_IN_BLOCKS = (BlockDiagonal, Kronecker, RowKronecker, Stacked)
_FAST_WITH_DENSE = (
    Dense, Diagonal, Identity, ScaledIdentity, Zero, BlockDiagonal, Kronecker, PlusLowRank, RowKronecker,
)  # fmt: skip


_OPS_OF_FACTORED = {"kronecker": 3, "row-kronecker": 3, "low-rank": 3, "identity-plus": 4, "stacked": 2, "pattern": 4}


class Algebra(Protocol[T]):
    """What carries blocks: structures with their cost, or tensors."""

    def structure(self, block: T) -> Structure:
        """Return the structure of a block."""
        ...

    def densified(self, block: T) -> T:
        """Return a block without structure."""
        ...

    def local(self, arc: Arc) -> T:
        """Return J_arc."""
        ...

    def multiply(self, left: T, right: T) -> T:
        """Return the product of two blocks."""
        ...

    def local_times(self, arc: Arc, block: T) -> T:
        """Return J_arc · block."""
        ...

    def times_local(self, block: T, arc: Arc) -> T:
        """Return block · J_arc."""
        ...

    def add(self, left: T, right: T) -> T:
        """Return the sum of two blocks."""
        ...

    def push(self, part: Part, operands: Sequence[int], blocks: Sequence[T]) -> Sequence[T]:
        """Return tangents of some operands of an op pushed through it, one for each active output.

        They are dense, or all of them keep to the samples of the op.
        """
        ...

    def pull(self, part: Part, operands: Sequence[int], blocks: Sequence[T | None]) -> Sequence[T]:
        """Return cotangents of its active outputs, likewise, pulled through it, one for each of some operands."""
        ...


class Region:
    """The ops between two cuts.

    Args:
        parts: Those that the derivative passes through, in order.
        source: The value that it starts from.
        target: The value that it ends with.
        most_pairs: Irregular patterns are multiplied as such if that takes no more products of two entries; a larger
            one is treated as dense.
        least: A matrix of no more entries is treated as dense, since a structure saves nothing.
    """

    def __init__(
        self, parts: Sequence[Part], source: int, target: int, *, most_pairs: int = 20_000, least: int = 1024
    ) -> None:
        self.parts = tuple(parts)
        self.source, self.target, self.most_pairs, self.least = source, target, most_pairs, least

    def forward(self, algebra: Algebra[T], block: T) -> T:
        """Return J · block."""
        carried: dict[int, _Scaled[T]] = {self.source: _Scaled(None, block)}

        def receive(index: int, term: _Scaled[T]) -> None:
            if index in carried:
                whole = algebra.add(self._pushed(algebra, carried[index]), self._pushed(algebra, term))
                term = _Scaled(None, whole)
            carried[index] = term

        for part in self.parts:
            others: list[int] = []  # operands that are pushed through the op itself
            for operand in part.op.active:
                arcs = part.arcs_from(operand)
                ready = self._ready(algebra, arcs, carried[operand], self._pushed) if arcs else None
                if ready is None:
                    others.append(operand)
                    continue
                for arc in arcs:
                    receive(arc.output, self._through(algebra, arc, ready))
            if others:
                blocks = _kept_apart(algebra, part, [self._pushed(algebra, carried[index]) for index in others])
                for index, pushed in zip(part.outputs, algebra.push(part, others, blocks), strict=True):
                    receive(index, _Scaled(None, pushed))
        return self._pushed(algebra, carried[self.target])

    def backward(self, algebra: Algebra[T], block: T) -> T:
        """Return block · J."""
        carried: dict[int, _Scaled[T]] = {self.target: _Scaled(None, block)}

        def receive(index: int, term: _Scaled[T]) -> None:
            if index in carried:
                whole = algebra.add(self._pulled(algebra, carried[index]), self._pulled(algebra, term))
                term = _Scaled(None, whole)
            carried[index] = term

        for part in reversed(self.parts):
            blocks = {index: carried.pop(index) for index in part.outputs if index in carried}
            others: list[int] = []
            for operand in part.op.active:
                arcs = [arc for arc in part.arcs_from(operand) if arc.output in blocks]
                ready = [self._ready(algebra, [arc], blocks[arc.output], self._pulled) for arc in arcs]
                if not arcs or any(scaled is None for scaled in ready):
                    others.append(operand)
                    continue
                for arc, scaled in zip(arcs, ready, strict=True):
                    assert scaled is not None
                    receive(arc.operand, self._back(algebra, scaled, arc))
            if others:
                there = _kept_apart(algebra, part, [self._pulled(algebra, scaled) for scaled in blocks.values()])
                by_output = dict(zip(blocks, there, strict=True))
                y_bars = [by_output.get(index) for index in part.outputs]
                for index, pulled in zip(others, algebra.pull(part, others, y_bars), strict=True):
                    receive(index, _Scaled(None, pulled))
        return self._pulled(algebra, carried[self.source])

    def _ready(
        self,
        algebra: Algebra[T],
        arcs: Sequence[Arc],
        scaled: _Scaled[T],
        settle: Callable[[Algebra[T], _Scaled[T]], T],
    ) -> _Scaled[T] | None:
        """Return a block in a form that local Jacobians are best multiplied with; None if the op itself is better."""
        if all(self._usable(arc, algebra.structure(scaled.block)) for arc in arcs):
            return scaled
        if type(algebra.structure(scaled.block)) is Dense:
            return None
        scaled = _Scaled(None, algebra.densified(settle(algebra, scaled)))
        return scaled if all(self._usable(arc, algebra.structure(scaled.block)) for arc in arcs) else None

    # A run of entrywise ops is a product of diagonals: D_2 (D_1 B) = (D_2 D_1) B, and D_2 D_1 is cheap. So a diagonal
    # is
    # held back beside the block until something else than a diagonal follows.

    def _through(self, algebra: Algebra[T], arc: Arc, scaled: _Scaled[T]) -> _Scaled[T]:
        if isinstance(arc.local.structure, Identity):
            return scaled
        if _scales(arc, algebra.structure(scaled.block)):
            scale = algebra.local(arc) if scaled.scale is None else algebra.local_times(arc, scaled.scale)
            return _Scaled(scale, scaled.block)
        return _Scaled(None, algebra.local_times(arc, self._pushed(algebra, scaled)))

    def _back(self, algebra: Algebra[T], scaled: _Scaled[T], arc: Arc) -> _Scaled[T]:
        if isinstance(arc.local.structure, Identity):
            return scaled
        if _scales(arc, algebra.structure(scaled.block)):
            scale = algebra.local(arc) if scaled.scale is None else algebra.times_local(scaled.scale, arc)
            return _Scaled(scale, scaled.block)
        return _Scaled(None, algebra.times_local(self._pulled(algebra, scaled), arc))

    def _pushed(self, algebra: Algebra[T], scaled: _Scaled[T]) -> T:
        return scaled.block if scaled.scale is None else algebra.multiply(scaled.scale, scaled.block)

    def _pulled(self, algebra: Algebra[T], scaled: _Scaled[T]) -> T:
        return scaled.block if scaled.scale is None else algebra.multiply(scaled.block, scaled.scale)

    def _usable(self, arc: Arc, block: Structure) -> bool:
        """Return whether a block is best multiplied by a local Jacobian, in structure.

        A dense block is moved through a view or a reduction by the op itself; two irregular patterns are multiplied
        only while they are small; and a structure saves nothing on a matrix of a few entries.
        """
        local = arc.local.structure
        if isinstance(local, Identity) or isinstance(block, Identity):
            return True
        if type(block) is Dense:
            return isinstance(local, _FAST_WITH_DENSE) or arc.local.through is not None
        if _aligned(local, block, self.least):
            return True
        if block.m * block.n <= self.least:
            return False
        return (
            local.entries * max(block.entries // max(block.n, 1), 1) <= self.most_pairs
            and block.entries <= self.most_pairs
        )

    @property
    def opaque(self) -> bool:
        """Whether it is a black box."""
        return self.parts[0].op.opaque

    @property
    def name(self) -> str:
        """What people call it: its ops, the last first."""
        names = [part.op.name for part in self.parts if not _is_identity(part)] or [p.op.name for p in self.parts[:1]]
        return " ∘ ".join(reversed(names)) if len(names) <= 3 else f"{names[-1]} ∘ … ∘ {names[0]} ({len(names)} ops)"

    @cached_property
    def closed(self) -> ClosedForm | None:
        """How the Jacobian is best formed from local Jacobians; None if an op has none, nor samples it keeps to."""
        if any(part.arcs is None and part.samples == 1 for part in self.parts):
            return None
        n, m = self.parts[0].meta(self.source).numel, self.parts[-1].meta(self.target).numel
        first = self._closed_from_one_end(forwards=n <= m, limit=None)
        second = self._closed_from_one_end(forwards=n > m, limit=None if first is None else first.fma)
        forms = [form for form in (first, second) if form is not None]
        return min(forms, key=lambda form: (form.fma, form.structure.entries, not form.forwards), default=None)

    def _closed_from_one_end(self, *, forwards: bool, limit: int | None) -> ClosedForm | None:
        """Return what the Jacobian takes from one end; None if that is more fma than `limit`, or an op cannot."""
        open_parts = [part for part in self.parts if part.arcs is None]
        if any((part.jvp_cost if forwards else part.vjp_cost) is None for part in open_parts):
            return None
        symbols = Symbols(limit)
        end = self.parts[0].meta(self.source) if forwards else self.parts[-1].meta(self.target)
        try:
            structure = (self.forward if forwards else self.backward)(symbols, Identity(end.numel))
        except PastLimit:
            return None
        return ClosedForm(structure, symbols.fma, forwards)

    def column_cost(self, *, forwards: bool) -> int | None:
        """Return the fma of carrying one tangent, or one cotangent; None if an op cannot."""
        costs = [part.jvp_cost if forwards else part.vjp_cost for part in self.parts if part.arcs is None]
        if any(cost is None for cost in costs):
            return None
        symbols = Symbols()
        if forwards:
            self.forward(symbols, Dense(self.parts[0].meta(self.source).numel, 1))
        else:
            self.backward(symbols, Dense(1, self.parts[-1].meta(self.target).numel))
        return symbols.fma

    def launches(self, *, forwards: bool) -> int:
        """The number of ops that carrying a block takes.

        One for each local Jacobian, more for one kept as factors; one for its values where a formula makes them; one
        for each sum where paths meet; and, for an op without closed form, its derivative with the axis of the vectors
        brought in front and back. A black box was counted.

        Args:
            forwards: Whether tangents are carried.

        Returns:
            The number.
        """
        profile = self.parts[0].profile
        if profile is not None:
            return profile.jvp_launches if forwards else profile.vjp_launches
        count, uses = 0, Counter[int]()
        for part in self.parts:
            uses.update(part.op.active)
            if part.arcs is None:
                count += part.launches(forwards=forwards)
            for arc in part.arcs or ():
                structure = arc.local.structure
                if not isinstance(structure, Identity):
                    count += _OPS_OF_FACTORED.get(structure.name, 1) + (arc.local.fma > 0)
        return max(count + sum(number - 1 for number in uses.values()), 1)

    @property
    def tape_entries(self) -> int:
        """The entries that an adjoint holds: one for each entry that an op on the way has made."""
        return sum(part.meta(index).numel for part in self.parts for index in part.outputs if not _is_identity(part))


@dataclass(frozen=True)
class ClosedForm:
    """The Jacobian of a region by local Jacobians: its structure, what it costs, and from which end."""

    structure: Structure
    fma: int
    forwards: bool


def _kept_apart(algebra: Algebra[T], part: Part, blocks: Sequence[T]) -> list[T]:
    """Return blocks as they are if all keep to the samples of an op, else without structure."""
    if all(keeps_to_samples(algebra.structure(block), part.samples) for block in blocks):
        return list(blocks)
    return [algebra.densified(block) for block in blocks]


class _Scaled(NamedTuple, Generic[T]):
    """A block with a diagonal beside it that is still to be multiplied; None for none."""

    scale: T | None
    block: T


def _scales(arc: Arc, block: Structure) -> bool:
    """Return whether a local Jacobian is a diagonal, and the block so large that it is better held back."""
    return isinstance(arc.local.structure, (Diagonal, ScaledIdentity)) and block.entries > max(block.m, block.n)


def _aligned(left: Structure, right: Structure, least: int) -> bool:
    """Return whether the product of two structures is regular, and quicker than that of dense matrices."""
    if isinstance(left, _DIAGONAL) or isinstance(right, _DIAGONAL):
        return (isinstance(left, REGULAR) and isinstance(right, REGULAR)) or left.m * right.n > least
    return isinstance(left, _IN_BLOCKS) and isinstance(right, _IN_BLOCKS)


def _is_identity(part: Part) -> bool:
    return part.arcs is not None and all(isinstance(arc.local.structure, Identity) for arc in part.arcs)
