"""A chain F = F_q ∘ … ∘ F_1: callables to be differentiated, or sizes and costs to be planned for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from operator import index as as_index

from torch import Tensor, nn

from .activations import is_plain_module
from .assemble import assemble
from .cost import OBJECTIVES, Objective, resolve_objective
from .factor import Factor
from .measure import measure
from .plan import Plan
from .planners import Strategy, resolve_strategy
from .problem import Problem
from .stages import Function, label_of
from .structure import Dense


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
    ) -> Chain:
        """A chain known by its sizes, to be planned without callables.

        Without costs the elemental Jacobians are given, dense. With costs they are not, and the chain is matrix-free.

        Args:
            dims: Sizes d_0 .. d_q; factor i maps R^{d_i} to R^{d_{i+1}}.
            edges: For each factor the fma of one JVP, of one VJP, and the size of its tape; each of the next three
                takes the place of it.
            jvp_cost: fma of one JVP of each factor.
            vjp_cost: fma of one VJP of each factor.
            tape: Entries that one VJP of each factor holds.

        Returns:
            The chain.

        Raises:
            ValueError: If sizes are not positive, costs negative, their number is not that of the factors, or only
                some of the costs are there.
            TypeError: If one of them is not an integer.
        """  # noqa: DOC502 (the TypeError is raised by _integers)
        sizes = _integers("dims", dims, least=1)
        if len(sizes) < 2:
            raise ValueError(f"Chain.from_sizes: dims must hold at least two sizes, got {sizes}.")
        given = {"edges": edges, "jvp_cost": jvp_cost, "vjp_cost": vjp_cost, "tape": tape}
        costs = {name: _integers(name, values, least=0) for name, values in given.items() if values is not None}
        for name, values in costs.items():
            if len(values) != len(sizes) - 1:
                raise ValueError(
                    f"Chain.from_sizes: {name} must hold one number for each of the {len(sizes) - 1} factors, "
                    f"got {len(values)}."
                )
        if "edges" in costs:
            costs = {name: costs.get(name, costs["edges"]) for name in ("jvp_cost", "vjp_cost", "tape")}
        if costs and not {"jvp_cost", "vjp_cost"} <= costs.keys():
            raise ValueError(
                f"Chain.from_sizes: jvp_cost and vjp_cost must be given together, or edges for all, got {list(costs)}."
            )
        chain = cls.__new__(cls)
        chain.functions = ()
        missing = [None] * (len(sizes) - 1)
        pushed, pulled, held = (costs.get(name, missing) for name in ("jvp_cost", "vjp_cost", "tape"))
        chain.factors = tuple(
            Factor(n, m, jvp, vjp, edge) if costs else Factor(n, m, structure=Dense(m, n))
            for (n, m), jvp, vjp, edge in zip(pairwise(sizes), pushed, pulled, held, strict=True)
        )
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

    def plan(
        self,
        x: Tensor | None = None,
        *,
        objective: str | Objective = "fma",
        strategy: str = "dynamic_programming",
        tape_limit: int | None = None,
        matrix_free: bool = True,
    ) -> Plan:
        """Plan the accumulation of the Jacobian.

        Args:
            x: Where the stages are callables, a floating tensor of the shape to plan for; its values are read only if
                a stage runs on nothing else. None where the chain was made from sizes.
            objective: What to minimise: "fma".
            strategy: "forward", "reverse", "greedy", "dynamic_programming", "exhaustive", or a registered one.
            tape_limit: Most entries that one adjoint sweep over raw factors may hold; None for no limit.
            matrix_free: Whether blocks may be carried through raw factors; if not, each Jacobian is formed and
                multiplied.

        Returns:
            The plan.

        Raises:
            TypeError: If x is not a floating tensor, or tape_limit not an integer.
            ValueError: If x is missing or superfluous, an objective or strategy is unknown, stages do not fit one
                another, or no plan fits tape_limit.
        """  # noqa: DOC502 (some are raised further down)
        target, planner = resolve_objective(objective), resolve_strategy(strategy)
        if tape_limit is not None and as_index(tape_limit) < 0:
            raise ValueError(f"Chain.plan: tape_limit must not be negative, got {tape_limit}.")
        if self.factors is not None:
            if x is not None:
                raise ValueError("Chain.plan: x must be None for a chain that was made from sizes, got a value.")
            factors, output_shape = self.factors, None
        else:
            check_input("Chain.plan", x)
            assert x is not None
            factors, output_shape = measure(self.functions, x)
        if tape_limit is not None and any(f.vjp_cost is not None and f.tape is None for f in factors):
            raise ValueError(
                f"Chain.plan: tape_limit={tape_limit} needs the tape of each factor; give from_sizes tape or edges."
            )
        problem = Problem(factors, target, tape_limit, matrix_free)
        # Ours give the same plan for the same factors; an objective or strategy of the user's own may change its mind.
        known = target in OBJECTIVES.values() and planner.__module__.startswith(f"{__package__}.planners.")
        plan = (_planned_before if known else _planned)(problem, planner, strategy)
        if x is None or output_shape is None:
            return plan
        return replace(plan, input_shape=tuple(x.shape), output_shape=tuple(output_shape), chain=self)


def _planned(problem: Problem, planner: Strategy, strategy: str) -> Plan:
    problem.check_feasible()
    return assemble(problem, planner(problem), strategy=strategy)


_planned_before = lru_cache(maxsize=256)(_planned)


def check_input(caller: str, x: object) -> None:
    """Check that x is a tensor that a Jacobian can be taken at.

    Args:
        caller: The function to name.
        x: What it was given.

    Raises:
        TypeError: If x is not a real floating tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{caller}: x must be a floating tensor, got {type(x).__name__}.")
    if not x.is_floating_point():
        raise TypeError(f"{caller}: x must be a floating tensor, got {x.dtype}; convert it, as by x.double().")


def _flattened(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the stages of nested nn.Sequentials; one that does more than apply its stages in turn is one stage."""
    if not isinstance(module, nn.Sequential) or not (
        type(module).forward is nn.Sequential.forward and is_plain_module(module)
    ):
        yield module
        return
    for stage in module:  # not children(), which leaves out a module that comes twice
        yield from _flattened(stage)


def _integers(name: str, values: Sequence[int], *, least: int) -> list[int]:
    """The values as Python integers, checked.

    Args:
        name: The argument to name.
        values: What it was given.
        least: The least value allowed.

    Returns:
        The values.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If one is less than the least.
    """
    try:
        numbers = [as_index(value) for value in values]
    except TypeError as error:
        raise TypeError(f"Chain.from_sizes: {name} must be a sequence of integers, got {values!r}.") from error
    wrong = [number for number in numbers if number < least]
    if wrong:
        raise ValueError(f"Chain.from_sizes: {name} must be at least {least} each, got {wrong[0]}.")
    return numbers
