"""What the planner knows of one link of a chain: sizes, costs and structure, never a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from .structure import Dense, Structure


@dataclass(frozen=True)
class Factor:
    """An elemental F: R^n → R^m and what its Jacobian costs, for one sample of a batch.

    Attributes:
        n: Number of inputs.
        m: Number of outputs.
        jvp_cost: fma of one tangent evaluation ẏ = J ẋ, or None where F cannot be pushed through matrix-free.
        vjp_cost: fma of one adjoint evaluation x̄ = Jᵀ ȳ, or None where F cannot be pulled through matrix-free.
        tape: Entries an adjoint evaluation must hold, or None if unknown; a given Jacobian needs none.
        structure: Structure of J, or None if nothing is known, which makes it dense.
        label: What the stage is, for people.
        given: Whether the entries of J are there at no cost. If not said, they are where the structure is known; False
            with a structure says that the pattern is known and the entries are not.
        forming_cost: fma that form J in closed form where it is not given, or None where no formula is known.
        shared: Whether J is one matrix for all samples of a batch, as a weight is.
        launches: Operations that one sweep through F launches, for objectives that price them.
        pull_launches: The same for a sweep of adjoints, where it launches another number.
    """

    n: int
    m: int
    jvp_cost: int | None = None
    vjp_cost: int | None = None
    tape: int | None = None
    structure: Structure | None = None
    label: str = ""
    given: bool | None = None
    forming_cost: int | None = None
    shared: bool = False
    launches: int = 1
    pull_launches: int | None = None

    def __post_init__(self) -> None:
        if self.given is None:  # so that two ways to say the same are equal
            object.__setattr__(self, "given", self.structure is not None)

    @property
    def jacobian(self) -> Structure:
        """Structure of the elemental Jacobian once it is formed; dense unless something better is known."""
        return Dense(self.m, self.n) if self.structure is None else self.structure
