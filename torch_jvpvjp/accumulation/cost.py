"""Objectives: what a step costs, as values that the planner is given."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, ClassVar, Protocol, TypeVar

from .bracket import Mode
from .factor import Factor
from .structure import Dense, Structure, product

Number = TypeVar("Number")
Price = int | float


class Objective(Protocol):
    """Prices of the things that a step can do; prices add up over a plan.

    Integers are added exactly, whatever their size; floats as floats. An objective may also have

    - `compressed(factor, colours)`, the price of pushing so many compressed columns through one raw factor; without it
      no plan compresses;
    - `batched(copies)`, the objective that prices so many copies of each thing, one for each sample of a batch, done at
      once; without it they cost so many times as much;
    - `least_peak = True`, by which the planner first takes the least peak of held entries, then the least price.
    """

    @property
    def name(self) -> str:
        """What `chain.plan(objective=...)` and a plan call it."""
        ...

    @property
    def unit(self) -> str:
        """What a price counts."""
        ...

    def accumulate(self, factor: Factor, mode: Mode) -> Price:
        """Price of forming the Jacobian of one factor; COMPRESSED is priced by `compressed`."""
        ...

    def multiply(self, left: Structure, right: Structure) -> Price:
        """Price of the product of two matrices."""
        ...

    def multiply_dense(self, m: Number, k: Number, n: Number) -> Number:
        """Price of an (m, k) by (k, n) product of dense matrices; m, k and n may be arrays."""
        ...

    def push(self, factor: Factor, block: Structure) -> Price:
        """Price of pushing the columns of a block through one raw factor."""
        ...

    def pull(self, factor: Factor, block: Structure) -> Price:
        """Price of pulling the rows of a block through one raw factor."""
        ...


@dataclass(frozen=True)
class Fma:
    """Fused multiply-adds, counted exactly in Python integers.

    With T and A the cost of one tangent and one adjoint evaluation of a factor R^n → R^m:

        accumulate = n · T by tangents, m · A by adjoints, what the formula takes in closed form, 0 if given
        multiply   = Σ_l nnz(A[:, l]) · nnz(B[l, :]),   m · k · n when dense
        push       = (columns of the block) · T,   pull = (rows of the block) · A
        compressed = (colours of the result) · T

    Through a factor whose Jacobian is given, a push or a pull is a product with that Jacobian in its structure.
    """

    name: str = "fma"
    unit: str = "fma"

    def accumulate(self, factor: Factor, mode: Mode) -> int:
        """Return n · T by tangents, m · A by adjoints, the cost of its formula, 0 if the Jacobian is given."""
        if mode is Mode.GIVEN:
            return 0
        if mode is Mode.CLOSED:
            return _known(factor.forming_cost)
        return factor.n * _known(factor.jvp_cost) if mode is Mode.TANGENT else factor.m * _known(factor.vjp_cost)

    def multiply(self, left: Structure, right: Structure) -> int:
        """Return the multiply-adds of the product in the structure of its operands."""
        if isinstance(left, Dense) and isinstance(right, Dense):
            return self.multiply_dense(left.m, left.n, right.n)
        return product(left, right).fma

    def multiply_dense(self, m: Number, k: Number, n: Number) -> Number:
        """Return m · k · n."""
        return m * n * k  # pyright: ignore[reportOperatorIssue] (integers, or arrays of integers)

    def push(self, factor: Factor, block: Structure) -> int:
        """Return one tangent evaluation for each column of the block."""
        if factor.given:
            return self.multiply(factor.jacobian, block)
        return block.n * _known(factor.jvp_cost)

    def pull(self, factor: Factor, block: Structure) -> int:
        """Return one adjoint evaluation for each row of the block."""
        if factor.given:
            return self.multiply(block, factor.jacobian)
        return block.m * _known(factor.vjp_cost)

    def compressed(self, factor: Factor, colours: int) -> int:
        """Return one tangent evaluation for each colour."""
        return colours * _known(factor.jvp_cost)


@dataclass(frozen=True)
class Memory(Fma):
    """The least peak of held entries; among the plans that reach it, the least fma, which are its price."""

    name: str = "memory"
    least_peak: ClassVar[bool] = True


@dataclass(frozen=True)
class Repeated:
    """Prices of so many copies of each thing, each of which costs what one costs.

    Attributes:
        objective: What one costs.
        copies: How many there are.
    """

    objective: Objective
    copies: int

    @property
    def name(self) -> str:
        """That of one."""
        return self.objective.name

    @property
    def unit(self) -> str:
        """That of one."""
        return self.objective.unit

    def accumulate(self, factor: Factor, mode: Mode) -> Price:
        """Return the price of forming the Jacobian of one factor in every copy."""
        return self.objective.accumulate(factor, mode) * self.copies

    def multiply(self, left: Structure, right: Structure) -> Price:
        """Return the price of the products."""
        return self.objective.multiply(left, right) * self.copies

    def multiply_dense(self, m: Number, k: Number, n: Number) -> Number:
        """Return the price of the dense products."""
        return self.objective.multiply_dense(m, k, n) * self.copies  # pyright: ignore[reportOperatorIssue]

    def push(self, factor: Factor, block: Structure) -> Price:
        """Return the price of pushing a block of each copy."""
        return self.objective.push(factor, block) * self.copies

    def pull(self, factor: Factor, block: Structure) -> Price:
        """Return the price of pulling a block of each copy."""
        return self.objective.pull(factor, block) * self.copies

    def compressed(self, factor: Factor, colours: int) -> Price:
        """Return the price of pushing the colours of each copy."""
        objective: Any = self.objective
        return objective.compressed(factor, colours) * self.copies


def for_copies(objective: Objective, copies: int) -> Objective:
    """Return the objective that prices so many copies of each thing together."""
    batched = getattr(objective, "batched", None)
    return Repeated(objective, copies) if batched is None else batched(copies)


def _known(cost: int | None) -> int:
    assert cost is not None, "a planner priced a sweep through a factor that has none"
    return cost


def check_finite(price: Price) -> None:
    """Check that a sum of prices is a number.

    Args:
        price: The sum.

    Raises:
        OverflowError: If a float cannot hold it; integers can be of any size.
    """
    if isinstance(price, float) and not isfinite(price):
        raise OverflowError(f"a price must be finite, got {price}")


_MEMBERS = ("name", "unit", "accumulate", "multiply", "multiply_dense", "push", "pull")
OBJECTIVES: dict[str, Objective] = {"fma": Fma(), "memory": Memory()}


def resolve_objective(objective: str | Objective) -> Objective:
    """The objective of that name, or the objective itself.

    Args:
        objective: A name in `OBJECTIVES`, "time", or any object with the methods of `Objective`.

    Returns:
        The objective as a value.

    Raises:
        ValueError: If no objective has that name.
        TypeError: If it is neither a name nor has what an objective must have.
    """
    if not isinstance(objective, str):
        missing = [name for name in _MEMBERS if not hasattr(objective, name)]
        if missing:
            raise TypeError(
                f"plan: objective must be a name such as 'fma', or an object with {', '.join(_MEMBERS)}, got "
                f"{objective!r} without {missing[0]}."
            )
        return objective
    if objective in OBJECTIVES:
        return OBJECTIVES[objective]
    if objective == "time":  # measured on first use, so not made when this is imported
        from .timing import time_objective

        return time_objective()
    known = ", ".join(repr(name) for name in (*OBJECTIVES, "time"))
    raise ValueError(f"plan: objective must be one of {known}, got {objective!r}.")
