"""The planning problem that every strategy solves: factors, an objective, and what is allowed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from .bracket import Action, Bracket, Mode
from .cost import Objective
from .factor import Factor
from .structure import Dense, Structure, product


@dataclass(frozen=True)
class Problem:
    """A chain F_q ∘ … ∘ F_1, priced. Factors count from 1 and factor l maps R^dims[l-1] to R^dims[l].

    Attributes:
        factors: The factors, F_1 first.
        objective: What a step costs.
        tape_limit: Entries that one adjoint sweep over raw factors may hold; None for no limit.
        matrix_free: Whether raw factors may be eliminated; if not, each Jacobian is formed and multiplied.
    """

    factors: tuple[Factor, ...]
    objective: Objective
    tape_limit: int | None = None
    matrix_free: bool = True

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

    def factor(self, index: int) -> Factor:
        """Return factor F_index, counted from 1."""
        return self.factors[index - 1]

    # ---- what is allowed -------------------------------------------------------------------------------------------

    def leaf_modes(self, index: int) -> list[Mode]:
        """Return the modes in which the Jacobian of one factor can be formed; tangents before adjoints."""
        factor = self.factor(index)
        if factor.given:
            return [Mode.GIVEN]
        modes = [Mode.TANGENT] if factor.jvp_cost is not None else []
        if factor.vjp_cost is not None and self.tape_fits(index, index):
            modes.append(Mode.ADJOINT)
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

    @cached_property
    def tape_sums(self) -> tuple[int, ...]:
        """Σ of the tapes of the first 0, 1, .. q factors; a given Jacobian is resident and needs no tape."""
        return tuple(accumulate((0 if f.given else f.tape or 0 for f in self.factors), initial=0))

    def tape_fits(self, last: int, first: int) -> bool:
        """Return whether an adjoint sweep over the raw factors first .. last holds no more than the limit."""
        return self.tape_limit is None or self.tape_sums[last] - self.tape_sums[first - 1] <= self.tape_limit

    def allows(self, bracket: Bracket) -> bool:
        """Return whether a step may be taken at all."""
        if bracket.action is Action.MULTIPLY:
            return True
        if bracket.action is Action.ACCUMULATE:
            return bracket.mode in self.leaf_modes(bracket.j)
        raw = bracket.raw_factors
        if bracket.mode is Mode.TANGENT:
            return all(self.can_push(index) for index in raw)
        return self.tape_fits(raw[-1], raw[0]) and all(self.can_pull(index) for index in raw)

    # ---- what it costs ---------------------------------------------------------------------------------------------

    @cached_property
    def _folds(self) -> dict[int, list[Structure]]:
        return {}

    def structure(self, j: int, i: int) -> Structure:
        """Return the structure of the block J_j … J_i, the same for every bracketing of it."""
        if self.all_dense:
            return Dense(self.dims[j], self.dims[i - 1])
        fold = self._folds.setdefault(i, [self.factor(i).jacobian])  # J_i, J_i+1 J_i, ...
        while len(fold) <= j - i:
            fold.append(product(self.factor(i + len(fold)).jacobian, fold[-1]).result)
        return fold[j - i]

    def push_price(self, index: int, i: int) -> int:
        """Return the price of pushing the block J_index-1 … J_i through the raw factor `index`."""
        return self.objective.push(self.factor(index), self.structure(index - 1, i))

    def pull_price(self, index: int, j: int) -> int:
        """Return the price of pulling the block J_j … J_index+1 through the raw factor `index`."""
        return self.objective.pull(self.factor(index), self.structure(j, index + 1))

    def price(self, bracket: Bracket) -> int:
        """Return the price of one step."""
        _, mode, j, k, i = bracket
        if bracket.action is Action.ACCUMULATE:
            assert mode is not None
            return self.objective.accumulate(self.factor(j), mode)
        if bracket.action is Action.MULTIPLY:
            return self.objective.multiply(self.structure(j, k + 1), self.structure(k, i))
        if mode is Mode.TANGENT:
            return sum(self.push_price(index, i) for index in bracket.raw_factors)
        return sum(self.pull_price(index, j) for index in bracket.raw_factors)
