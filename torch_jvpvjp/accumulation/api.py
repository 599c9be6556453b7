"""The two functions that most users need: the Jacobian of a function at a point, and the plan for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .chain import Chain, check_input
from .cost import Objective
from .execute import execute
from .plan import Plan

Differentiable = Chain | nn.Module | Callable[[Tensor], Tensor] | Sequence[Callable[[Tensor], Tensor]]


def jacobian(
    f: Differentiable,
    x: Tensor,
    *,
    objective: str | Objective = "fma",
    plan: Plan | None = None,
    strategy: str = "dynamic_programming",
) -> Tensor:
    """The Jacobian of f at x, accumulated in the best order.

    With f = F_q ∘ … ∘ F_1 the Jacobian is J_q · … · J_1, and how that product is formed decides what it costs. Equal to
    `torch.func.jacrev(f)(x)` to rounding.

    Args:
        f: A function of one tensor that returns one: a Chain, an nn.Sequential or a list of callables, whose stages
            are planned; or any other callable or nn.Module, which is one stage.
        x: Where, a floating tensor of any shape.
        objective: What the plan minimises: "fma".
        plan: A plan made before, by `plan_jacobian`, for x of this shape; it leaves nothing to choose, so objective
            and strategy must then be left out.
        strategy: How the plan is found; see `Chain.plan`.

    Returns:
        The Jacobian, of shape (*f(x).shape, *x.shape), detached from autograd; dtype and device of f(x).

    Raises:
        TypeError: If x is not a floating tensor, or f or a stage of it not a callable that returns one.
        ValueError: If stages do not fit one another or the plan, or both a plan and how to make one are given.

    Source: Naumann (2020), Optimization of Generalized Jacobian Chain Products without Memory Constraints,
        arXiv 2003.05755.
    """  # noqa: DOC502 (some are raised further down)
    if plan is None:
        return plan_jacobian(f, x, objective=objective, strategy=strategy)(x)
    if not isinstance(plan, Plan):
        raise TypeError(f"jacobian: plan must be a Plan, got {type(plan).__name__}.")
    if objective != "fma" or strategy != "dynamic_programming":
        raise ValueError(
            f"jacobian: objective and strategy must be left out where a plan is given, got {objective!r} and "
            f"{strategy!r}."
        )
    return execute(plan, as_chain("jacobian", f), x)


def plan_jacobian(
    f: Differentiable,
    x: Tensor,
    *,
    objective: str | Objective = "fma",
    strategy: str = "dynamic_programming",
    tape_limit: int | None = None,
    matrix_free: bool = True,
) -> Plan:
    """Plan the Jacobian of f for all x of one shape; `plan(x)` executes it, `print(plan)` explains it.

    Args:
        f: As in `jacobian`.
        x: A floating tensor of the shape to plan for.
        objective: What to minimise: "fma".
        strategy: How the plan is found; see `Chain.plan`.
        tape_limit: Most entries that one adjoint sweep over raw factors may hold; None for no limit.
        matrix_free: Whether blocks may be carried through raw factors.

    Returns:
        The plan.

    Raises:
        TypeError: If x is not a floating tensor, or f or a stage of it not a callable that returns one.
        ValueError: If an option is unknown, stages do not fit one another, or no plan fits tape_limit.
        NotImplementedError: If a stage has neither a JVP nor a VJP.
    """  # noqa: DOC502 (raised further down)
    check_input("plan_jacobian", x)
    chain = as_chain("plan_jacobian", f)
    return chain.plan(x, objective=objective, strategy=strategy, tape_limit=tape_limit, matrix_free=matrix_free)


def as_chain(caller: str, f: Differentiable) -> Chain:
    """The chain that a function is.

    Args:
        caller: The function to name in an error.
        f: A Chain, nn.Module, callable, or list or tuple of callables.

    Returns:
        Its chain: of one stage, if nothing else is known of it.

    Raises:
        TypeError: If f is none of these.
        ValueError: If it is a chain made from sizes.
    """
    if isinstance(f, Chain):
        if f.factors is not None:
            raise ValueError(f"{caller}: f must be a chain of callables, got one that was made from sizes.")
        return f
    if isinstance(f, nn.Module):
        return Chain.from_module(f)
    if isinstance(f, (list, tuple)):
        return Chain(f)
    if not callable(f):
        raise TypeError(f"{caller}: f must be a callable, or a list or tuple of callables, got {type(f).__name__}.")
    return Chain([f])
