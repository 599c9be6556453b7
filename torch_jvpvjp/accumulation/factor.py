"""What the planner knows of one link of a chain: sizes, costs and structure, never a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from .structure import Dense, Structure


@dataclass(frozen=True)
class Factor:
    """An elemental F: R^n → R^m and what its Jacobian costs.

    Attributes:
        n: Number of inputs.
        m: Number of outputs.
        jvp_cost: fma of one tangent evaluation ẏ = J ẋ, or None where F cannot be pushed through matrix-free.
        vjp_cost: fma of one adjoint evaluation x̄ = Jᵀ ȳ, or None where F cannot be pulled through matrix-free.
        tape: Entries an adjoint evaluation must hold, or None if unknown; a given Jacobian needs none.
        structure: Structure of J if J is given, that is, known in closed form at no cost; None if it is not.
        label: What the stage is, for people.
    """

    n: int
    m: int
    jvp_cost: int | None = None
    vjp_cost: int | None = None
    tape: int | None = None
    structure: Structure | None = None
    label: str = ""

    @property
    def given(self) -> bool:
        """Whether the elemental Jacobian is known in closed form."""
        return self.structure is not None

    @property
    def jacobian(self) -> Structure:
        """Structure of the elemental Jacobian once it is formed; dense unless it is given as something better."""
        return Dense(self.m, self.n) if self.structure is None else self.structure
