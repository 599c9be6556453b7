"""One decision of a plan: which blocks are joined, by what action and in which mode."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Action(StrEnum):
    """What a step does."""

    ACCUMULATE = "accumulate"  # form the Jacobian of one factor
    MULTIPLY = "multiply"  # matrix · matrix
    ELIMINATE = "eliminate"  # carry a matrix through raw factors, matrix-free


class Mode(StrEnum):
    """How a step that meets raw factors treats them."""

    TANGENT = "tangent"  # columns are pushed forward by JVPs
    ADJOINT = "adjoint"  # rows are pulled back by VJPs
    GIVEN = "given"  # the Jacobian is there at no cost
    CLOSED = "closed"  # the Jacobian is formed by a formula of its own
    COMPRESSED = "compressed"  # columns are pushed forward, those that share no row of the result as one

    @property
    def pushes(self) -> bool:
        """Whether columns are pushed forward, one by one or compressed."""
        return self in {Mode.TANGENT, Mode.COMPRESSED}


class Bracket(NamedTuple):
    """The bracket (j, k, i) stands for the block J_j … J_i, split as (J_j … J_k+1)(J_k … J_i); factors count from 1.

    - ACCUMULATE: one factor, j = k = i.
    - MULTIPLY: both sides are matrices; `mode` is None.
    - ELIMINATE by tangents: the right side is a matrix, pushed through the raw factors k+1 .. j.
    - ELIMINATE compressed: the same, with as many columns as a colouring of the result has colours.
    - ELIMINATE by adjoints: the left side is a matrix, pulled through the raw factors k .. i.
    """

    action: Action
    mode: Mode | None
    j: int
    k: int
    i: int

    @property
    def span(self) -> tuple[int, int]:
        """The block (j, i) that the step computes."""
        return self.j, self.i

    @property
    def operands(self) -> list[tuple[int, int]]:
        """The blocks (j, i) that must have been computed before, upstream first."""
        upstream, downstream = (self.k, self.i), (self.j, self.k + 1)
        if self.action is Action.ACCUMULATE:
            return []
        if self.action is Action.MULTIPLY:
            return [upstream, downstream]
        return [upstream] if self._pushes else [downstream]

    @property
    def _pushes(self) -> bool:
        return self.mode is not None and self.mode.pushes

    @property
    def raw_factors(self) -> range:
        """The factors met as they are, in the order of the primal run."""
        if self.action is Action.ACCUMULATE:
            return range(self.j, self.j + 1)
        if self.action is Action.MULTIPLY:
            return range(0)
        return range(self.k + 1, self.j + 1) if self._pushes else range(self.i, self.k + 1)


def accumulate(factor: int, mode: Mode) -> Bracket:
    """Return the step that forms the Jacobian of one factor."""
    return Bracket(Action.ACCUMULATE, mode, factor, factor, factor)


def multiply(j: int, k: int, i: int) -> Bracket:
    """Return the step (J_j … J_k+1) · (J_k … J_i)."""
    return Bracket(Action.MULTIPLY, None, j, k, i)


def push(j: int, k: int, i: int) -> Bracket:
    """Return the step that pushes the columns of J_k … J_i through the raw factors k+1 .. j."""
    return Bracket(Action.ELIMINATE, Mode.TANGENT, j, k, i)


def pull(j: int, k: int, i: int) -> Bracket:
    """Return the step that pulls the rows of J_j … J_k+1 through the raw factors k .. i."""
    return Bracket(Action.ELIMINATE, Mode.ADJOINT, j, k, i)


def push_compressed(j: int, k: int, i: int) -> Bracket:
    """Return the step that pushes the columns of J_k … J_i, compressed, through the raw factors k+1 .. j."""
    return Bracket(Action.ELIMINATE, Mode.COMPRESSED, j, k, i)
