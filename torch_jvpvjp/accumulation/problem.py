"""The planning problem that every strategy solves: factors, an objective, and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

from .bracket import Action, Bracket, Mode
from .cost import Objective, Price, for_copies
from .factor import Factor
from .structure import Dense, Identity, Kronecker, Structure, product

_SWEEPS = frozenset({Mode.TANGENT, Mode.ADJOINT, Mode.COMPRESSED})


def is_shared_weight(structure: Structure) -> bool:
    """Return whether a structure is I ⊗ W with a dense W."""
    return (
        isinstance(structure, Kronecker) and isinstance(structure.left, Identity) and isinstance(structure.right, Dense)
    )


@dataclass(frozen=True)
class Problem:
    """A chain F_q ∘ … ∘ F_1, priced. Factors count from 1 and factor l maps R^dims[l-1] to R^dims[l].

    A factor's sizes and costs are those of one sample. What is done for each sample of a batch is priced, and held,
    `batch` times; a block all of whose factors are shared is one matrix for all samples, made and held once.

    Attributes:
        factors: The factors, F_1 first.
        objective: What a step costs.
        tape_limit: Entries that one adjoint sweep over raw factors may hold; None for no limit.
        matrix_free: Whether raw factors may be eliminated; if not, each Jacobian is formed and multiplied.
        peak_entries: Entries of computed blocks that may be held at any step, its result included; None for no limit.
        threads: Workers that steps may run on at once; None if they run one after another.
        batch: Samples of the batch.
    """

    factors: tuple[Factor, ...]
    objective: Objective
    tape_limit: int | None = None
    matrix_free: bool = True
    peak_entries: int | None = None
    threads: int | None = None
    batch: int = 1

    @property
    def length(self) -> int:
        """The number q of factors."""
        return len(self.factors)

    @cached_property
    def dims(self) -> tuple[int, ...]:
        """The sizes d_0 .. d_q."""
        return (self.factors[0].n, *(factor.m for factor in self.factors))

    @cached_property
    def all_dense(self) -> bool:
        """Whether every block of this chain is dense."""
        return all(isinstance(factor.jacobian, Dense) for factor in self.factors)

    @cached_property
    def associative(self) -> bool:
        """Whether the structure of a block is the same for every bracketing.

        So it is where factors are patterns, or one weight for several rows, I ⊗ W: products of those alone are of that
        kind, and any other product with one is a pattern. Other factored structures depend on the bracketing.
        """
        structures = (factor.jacobian for factor in self.factors)
        return all(structure.listed or structure.constant or is_shared_weight(structure) for structure in structures)

    @property
    def least_peak(self) -> bool:
        """Whether the least peak comes before the least price."""
        return getattr(self.objective, "least_peak", False)

    def factor(self, index: int) -> Factor:
        """Return factor F_index, counted from 1."""
        return self.factors[index - 1]

    # ---- what is allowed -------------------------------------------------------------------------------------------

    def leaf_modes(self, index: int) -> list[Mode]:
        """Return the modes in which the Jacobian of one factor can be formed, in the order of preference on ties."""
        factor = self.factor(index)
        if factor.given:
            return [Mode.GIVEN]
        modes = [Mode.CLOSED] if factor.forming_cost is not None else []
        modes += [Mode.TANGENT] if factor.jvp_cost is not None else []
        if factor.vjp_cost is not None and self.tape_fits(index, index):
            modes.append(Mode.ADJOINT)
        if self.can_compress(index) and is_compressible(factor.jacobian):
            modes.append(Mode.COMPRESSED)
        return modes

    def best_leaf(self, index: int) -> Bracket:
        """The cheapest way to form the Jacobian of one factor.

        Args:
            index: The factor, counted from 1.

        Returns:
            The ACCUMULATE step.

        Raises:
            ValueError: If there is none, because the tape of the only mode there is exceeds the limit.
        """
        leaves = [Bracket(Action.ACCUMULATE, mode, index, index, index) for mode in self.leaf_modes(index)]
        if not leaves:
            raise ValueError(
                f"plan: factor F{index} has no tangent evaluation and its tape of {self.factor(index).tape} entries "
                f"exceeds tape_limit={self.tape_limit}; raise tape_limit."
            )
        return min(leaves, key=self.price)

    def check_feasible(self) -> None:
        """Check that there is a plan at all, which is so if each factor's Jacobian can be formed.

        Raises:
            ValueError: If the tape of the only mode there is for a factor exceeds the limit.
        """  # noqa: DOC502 (raised by best_leaf)
        for index in range(1, self.length + 1):
            self.best_leaf(index)

    def can_push(self, index: int) -> bool:
        """Return whether columns can be pushed through a raw factor."""
        return self.matrix_free and self.factor(index).jvp_cost is not None

    def can_pull(self, index: int) -> bool:
        """Return whether rows can be pulled through a raw factor, tape apart."""
        return self.matrix_free and self.factor(index).vjp_cost is not None

    def can_compress(self, index: int) -> bool:
        """Return whether a factor can take compressed columns: one whose entries are not there anyway."""
        factor = self.factor(index)
        return not factor.given and factor.jvp_cost is not None and hasattr(self.objective, "compressed")

    @cached_property
    def tape_sums(self) -> tuple[int, ...]:
        """Σ of the tapes of the first 0, 1, .. q factors; a given Jacobian is resident and needs no tape."""
        tapes = ((0 if f.given else (f.tape or 0) * (1 if f.shared else self.batch)) for f in self.factors)
        return tuple(accumulate(tapes, initial=0))

    def tape_fits(self, last: int, first: int) -> bool:
        """Return whether an adjoint sweep over the raw factors first .. last holds no more than the limit."""
        return self.tape_limit is None or self.tape_sums[last] - self.tape_sums[first - 1] <= self.tape_limit

    def allows(self, bracket: Bracket) -> bool:
        """Return whether a step may be taken at all, the structure of its result apart."""
        if bracket.action is Action.MULTIPLY:
            return bracket.mode is None
        if bracket.action is Action.ACCUMULATE:
            return bracket.mode in self.leaf_modes(bracket.j)
        if bracket.mode not in _SWEEPS:
            return False
        raw = bracket.raw_factors
        first, last = raw[0], raw[-1]
        if bracket.mode is Mode.ADJOINT:
            return self.tape_fits(last, first) and self._barred_pulls[last] == self._barred_pulls[first - 1]
        barred = self._barred_compressed if bracket.mode is Mode.COMPRESSED else self._barred_pushes
        return barred[last] == barred[first - 1]

    @cached_property
    def _barred_pushes(self) -> tuple[int, ...]:
        """How many of the first 0, 1, .. q factors cannot be pushed through; the next two likewise."""
        return _barred(self.can_push(index) for index in range(1, self.length + 1))

    @cached_property
    def _barred_pulls(self) -> tuple[int, ...]:
        return _barred(self.can_pull(index) for index in range(1, self.length + 1))

    @cached_property
    def _barred_compressed(self) -> tuple[int, ...]:
        indices = range(1, self.length + 1)
        return _barred(self.can_push(index) and self.can_compress(index) for index in indices)

    # ---- structures and copies of blocks ---------------------------------------------------------------------------

    @cached_property
    def _dense_blocks(self) -> dict[tuple[int, int], Structure]:
        return {}

    def _dense(self, j: int, i: int) -> Structure:
        if (j, i) not in self._dense_blocks:
            self._dense_blocks[j, i] = Dense(self.dims[j], self.dims[i - 1])
        return self._dense_blocks[j, i]

    @cached_property
    def _folds(self) -> dict[int, list[Structure]]:
        return {}

    def structure(self, j: int, i: int) -> Structure:
        """Return the structure of the block J_j … J_i, the same for every bracketing where products are associative."""
        if self.all_dense:
            return self._dense(j, i)
        fold = self._folds.setdefault(i, [self.factor(i).jacobian])  # J_i, J_i+1 J_i, ...
        while len(fold) <= j - i:
            fold.append(product(self.factor(i + len(fold)).jacobian, fold[-1]).result)
        return fold[j - i]

    def outcome(self, bracket: Bracket, operands: Sequence[Structure]) -> Structure:
        """Return the structure of what a step computes from blocks of these structures, upstream first."""
        if self.all_dense:
            return self._dense(bracket.j, bracket.i)
        if bracket.action is Action.ACCUMULATE:
            return self.factor(bracket.j).jacobian
        if bracket.action is Action.MULTIPLY:
            upstream, downstream = operands
            return product(downstream, upstream).result
        return self._swept(bracket, operands[0])[-1]

    def _swept(self, bracket: Bracket, block: Structure) -> list[Structure]:
        """Return the structures of a block before a sweep and after each of its raw factors."""
        blocks = [block]
        down = bracket.mode is Mode.ADJOINT
        for index in reversed(bracket.raw_factors) if down else bracket.raw_factors:
            jacobian = self.factor(index).jacobian
            blocks.append(product(blocks[-1], jacobian).result if down else product(jacobian, blocks[-1]).result)
        return blocks

    @cached_property
    def shared_since(self) -> tuple[int, ...]:
        """For j = 0 .. q the first factor i for which all of i .. j are shared; j + 1 if j itself is not."""
        since = [1]
        for index, factor in enumerate(self.factors, 1):
            since.append(min(since[-1], index) if factor.shared else index + 1)
        return tuple(since)

    def copies(self, j: int, i: int) -> int:
        """Return how many matrices J_j … J_i stands for: one if every factor is shared, else one for each sample."""
        return 1 if self.batch == 1 or i >= self.shared_since[j] else self.batch

    def held(self, bracket: Bracket, structure: Structure) -> int:
        """Return the entries that a step leaves held: none if the Jacobian was given, and so resident anyway."""
        if bracket.mode is Mode.GIVEN:
            return 0
        return structure.entries * self.copies(*bracket.span)

    # ---- what it costs ---------------------------------------------------------------------------------------------

    def objective_of(self, copies: int) -> Objective:
        """Return the objective by which so many copies of a thing are priced, all of them together."""
        if copies == 1:
            return self.objective
        if copies not in self._objectives:
            self._objectives[copies] = for_copies(self.objective, copies)
        return self._objectives[copies]

    @cached_property
    def _objectives(self) -> dict[int, Objective]:
        return {}

    def push_price(self, index: int, i: int) -> Price:
        """Return the price of pushing the block J_index-1 … J_i through the raw factor `index`."""
        return self.objective_of(self.copies(index, i)).push(self.factor(index), self.structure(index - 1, i))

    def pull_price(self, index: int, j: int) -> Price:
        """Return the price of pulling the block J_j … J_index+1 through the raw factor `index`."""
        return self.objective_of(self.copies(j, index)).pull(self.factor(index), self.structure(j, index + 1))

    def compressed_price(self, index: int, i: int, colours: int) -> Price:
        """Return the price of pushing so many columns of the block J_index-1 … J_i through the raw factor `index`."""
        objective: Any = self.objective_of(self.copies(index, i))
        return objective.compressed(self.factor(index), colours)

    def price(self, bracket: Bracket, operands: Sequence[Structure] | None = None) -> Price:
        """Return the price of one step.

        Args:
            bracket: The step.
            operands: Structures of its operands, upstream first; those of `structure` by default.

        Returns:
            The price, for all samples.
        """
        action, mode, j, k, i = bracket
        if operands is None:
            operands = [self.structure(*span) for span in bracket.operands]
        objective = self.objective_of(self.copies(j, i))
        if action is Action.MULTIPLY:
            return objective.multiply(operands[1], operands[0])
        if mode is Mode.COMPRESSED:
            colours = colours_of(self.outcome(bracket, operands))
            return sum(self.compressed_price(index, i, colours) for index in bracket.raw_factors)
        if action is Action.ACCUMULATE:
            assert mode is not None
            return objective.accumulate(self.factor(j), mode)
        if mode is Mode.TANGENT:
            blocks = self._swept(bracket, operands[0])
            return sum(
                self.objective_of(self.copies(index, i)).push(self.factor(index), block)
                for index, block in zip(bracket.raw_factors, blocks[:-1], strict=True)
            )
        blocks = self._swept(bracket, operands[0])
        return sum(
            self.objective_of(self.copies(j, index)).pull(self.factor(index), block)
            for index, block in zip(reversed(bracket.raw_factors), blocks[:-1], strict=True)
        )


def _barred(allowed: Iterable[bool]) -> tuple[int, ...]:
    return tuple(accumulate((not can for can in allowed), initial=0))


MOST_COLOURED = 2**22  # rows, columns or entries of a pattern that is coloured while planning


def is_compressible(structure: Structure) -> bool:
    """Return whether a block can be read out of compressed columns: one that stores its pattern, and not all of it."""
    if isinstance(structure, Dense) or not (structure.listed or structure.constant):
        return False
    return max(structure.m, structure.n, structure.nnz) <= MOST_COLOURED


@lru_cache(maxsize=65536)
def colours_of(structure: Structure) -> int:
    """Return the number of colours of a column colouring: columns of one colour share no row."""
    return structure.colours
