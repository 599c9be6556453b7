"""A chain F = F_q ∘ … ∘ F_1: callables to be differentiated, or sizes and costs to be planned for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from .cost import Objective
from .factor import Factor
from .making import plan_at
from .plan import Plan
from .planning import plan_factors
from .sizes import Structured, factors_from_sizes
from .stages import Function, is_plain_module, label_of
from .uncompiled import uncompiled


class Chain:
    """A chain of stages, F_1 applied first.

    `Chain([f1, f2, ...])` is a chain of callables (modules too), each from one tensor to one tensor;
    `Chain.from_module` takes a network apart; `Chain.from_sizes` is a chain known by its sizes and costs only.

    Args:
        functions: The stages, f1 first; at least one.

    Raises:
        ValueError: If there is none.
        TypeError: If one is not callable.
    """

    def __init__(self, functions: Iterable[Function]) -> None:
        if not isinstance(functions, Iterable):
            way = "Chain.from_module(f)" if isinstance(functions, nn.Module) else "Chain([f])"
            raise TypeError(f"Chain: functions must be several callables, got {type(functions).__name__}; write {way}.")
        self.functions: tuple[Function, ...] = tuple(functions)
        self.factors: tuple[Factor, ...] | None = None  # known at once only to a chain that is made from sizes
        if not self.functions:
            raise ValueError("Chain: functions must hold at least one callable, got none.")
        for place, function in enumerate(self.functions):
            if not callable(function):
                raise TypeError(f"Chain: functions[{place}] must be callable, got {type(function).__name__}.")

    @classmethod
    def from_module(cls, module: nn.Module) -> Chain:
        """The chain of a network: an nn.Sequential is flattened, at any depth; any other module is one stage.

        Args:
            module: The network.

        Returns:
            The chain.

        Raises:
            TypeError: If it is not an nn.Module.
            ValueError: If it is an nn.Sequential without stages.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(f"Chain.from_module: module must be an nn.Module, got {type(module).__name__}.")
        stages = list(_flattened(module))
        if not stages:
            raise ValueError("Chain.from_module: module must have at least one stage, got an empty nn.Sequential.")
        return cls(stages)

    @classmethod
    def from_sizes(
        cls,
        dims: Sequence[int],
        *,
        edges: Sequence[int] | None = None,
        jvp_cost: Sequence[int] | None = None,
        vjp_cost: Sequence[int] | None = None,
        tape: Sequence[int] | None = None,
        structures: Sequence[Structured] | None = None,
    ) -> Chain:
        """A chain known by its sizes, to be planned without callables.

        Without costs the elemental Jacobians are given. With costs they are not, and the chain is matrix-free; where a
        structure says which entries there are, tangents may be compressed.

        Args:
            dims: Sizes d_0 .. d_q; factor i maps R^{d_i} to R^{d_{i+1}}.
            edges: For each factor the fma of one JVP, of one VJP, and the size of its tape; each of the next three
                takes the place of it.
            jvp_cost: fma of one JVP of each factor.
            vjp_cost: fma of one VJP of each factor.
            tape: Entries that one VJP of each factor holds.
            structures: For each factor a Structure, or an object such as {"kind": "banded", "kl": 1, "ku": 0} whose
                sizes may be left to dims, or None for a dense one.

        Returns:
            The chain.

        Raises:
            ValueError: If sizes are not positive, costs negative, their number is not that of the factors, only
                some of the costs are there, or a structure is unknown or does not fit its sizes.
            TypeError: If one of them is of the wrong type.
        """  # noqa: DOC502 (raised by factors_from_sizes)
        chain = cls.__new__(cls)
        chain.functions = ()
        costs = {"edges": edges, "jvp_cost": jvp_cost, "vjp_cost": vjp_cost, "tape": tape}
        chain.factors = factors_from_sizes(dims, costs, structures)
        return chain

    def __len__(self) -> int:
        return len(self.functions) if self.factors is None else len(self.factors)

    def __repr__(self) -> str:
        if self.factors is not None:
            return f"Chain.from_sizes({[self.factors[0].n, *(factor.m for factor in self.factors)]})"
        return f"Chain([{', '.join(label_of(function) for function in self.functions)}])"

    def __call__(self, x: Tensor) -> Tensor:
        """The value F(x) of a chain of callables.

        Args:
            x: What the first stage takes.

        Returns:
            What the last one returns.

        Raises:
            TypeError: If the chain was made from sizes.
        """
        if self.factors is not None:
            raise TypeError("Chain: to be called, a chain must be made of callables, got one made from sizes.")
        for function in self.functions:
            x = function(x)
        return x

    @uncompiled
    def plan(
        self,
        x: Tensor | None = None,
        *,
        left: Tensor | None = None,
        right: Tensor | None = None,
        objective: str | Objective = "fma",
        strategy: str = "dynamic_programming",
        tape_limit: int | None = None,
        peak_entries: int | None = None,
        matrix_free: bool = True,
        threads: int | None = None,
    ) -> Plan:
        """Plan the accumulation of the Jacobian.

        Args:
            x: Where the stages are callables, a floating tensor of the shape to plan for; its values are read only if
                a stage runs on nothing else. None where the chain was made from sizes.
            left: Seed U, (rows, entries of the output), for U · J without forming J: it takes part in the plan.
            right: Seed V, (entries of x, columns), for J · V; with both, U · J · V of shape (rows, columns).
            objective: What to minimise: "fma", "memory" (the least peak of held entries, then the least fma), "time",
                or an `Objective`.
            strategy: "forward", "reverse", "greedy", "dynamic_programming", "exhaustive", or a registered one.
            tape_limit: Most entries that one adjoint sweep over raw factors may hold; None for no limit.
            peak_entries: Most entries of computed blocks that may be held at any step, its result included; Jacobians
                that are given are resident and not counted. None for no limit.
            matrix_free: Whether blocks may be carried through raw factors; if not, each Jacobian is formed and
                multiplied.
            threads: Workers that steps may run on at once, for the least makespan; None to run them one after another.

        Returns:
            The plan.

        Raises:
            TypeError: If x or a seed is not a floating tensor, or a limit not an integer.
            ValueError: If x is missing or superfluous, an option is unknown or out of range, options exclude one
                another, stages do not fit one another, or no plan fits tape_limit.
            InfeasiblePlanError: If no plan fits peak_entries.
        """  # noqa: DOC502 (some are raised further down)
        options: dict[str, Any] = {
            "objective": objective,
            "strategy": strategy,
            "tape_limit": tape_limit,
            "peak_entries": peak_entries,
            "matrix_free": matrix_free,
            "threads": threads,
        }
        if self.factors is None:
            return plan_at(self.functions, x, left, right, options)
        if x is not None or left is not None or right is not None:
            raise ValueError("Chain.plan: x must be None for a chain that was made from sizes, got a value.")
        return plan_factors(self.factors, **options)


def _flattened(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the stages of nested nn.Sequentials; one that does more than apply its stages in turn is one stage."""
    if not isinstance(module, nn.Sequential) or not (
        type(module).forward is nn.Sequential.forward and is_plain_module(module)
    ):
        yield module
        return
    for stage in module:  # not children(), which leaves out a module that comes twice
        yield from _flattened(stage)
