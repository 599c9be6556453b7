"""The functions that most users need: the Jacobian of a function at a point, and the plan for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from torch import Tensor, nn

from .branches import AT_ONCE
from .cache import remembered
from .chain import Chain
from .checked import truth, whole
from .cost import Objective
from .explain import stages_text
from .making import make_plan
from .one_shot import without_plan
from .options import Options
from .plan import Plan
from .runtime import Runtime
from .seeds import GaussNewton, check_seed
from .tracing.intercepted import NotRecordable
from .trees import Wrt, flattened, kind_of_leaf
from .uncompiled import uncompiled

Differentiable = Chain | nn.Module | Callable[..., Any] | Sequence[Callable[[Tensor], Tensor]]
Randomness = Literal["error", "same", "different"]


@uncompiled
def jacobian(
    f: Differentiable,
    x: Any,
    *,
    batch_dims: int = 0,
    wrt: Wrt = None,
    objective: str | Objective = "time",
    memory_limit: int | str | None = None,
    plan: Plan | None = None,
    chunk_size: int | None = None,
    progress: bool = False,
    create_graph: bool = False,
    compile: bool = False,
    strategy: str = "dynamic_programming",
    randomness: Randomness = "error",
    sparse: bool | Literal["auto"] = False,
    explain: bool = False,
) -> Any:
    """The Jacobian of f at x, accumulated in the best order.

    With f = F_q ∘ … ∘ F_1 the Jacobian is J_q · … · J_1, and how that product is formed decides what it costs. Equal to
    `torch.func.jacrev(f)(x)` to rounding.

    The first call for a function decides from sizes whether planning pays. If it does not, the Jacobian is taken by
    tangents or by adjoints, whichever are fewer. Plans are kept by function, shapes, dtypes and device, as long as
    nothing that the function refers to has changed, so that later calls reuse them. Where control flow of f looks at
    data, every call finds out which way it goes at x; a plan is for one of them.

    Args:
        f: A function, an nn.Module, a Chain, or a list of functions to be composed, the first applied first.
        x: Where: a floating tensor, a list or dict of them, or a tuple of positional arguments.
        batch_dims: How many leading axes of every argument and output are a batch of independent samples; the result is
            then the Jacobian of each sample, (*batch, *outputs, *inputs) without the batch on either side again.
        wrt: What the Jacobian is taken in: None for all arguments, an argument number or several, "parameters" for all
            parameters of a module, or the name of one or of several. Several numbers give a tuple, several names and
            "parameters" a dict.
        objective: What the plan minimises: "time", "fma" or "memory".
        memory_limit: Bytes, or a size such as "8GB", that a call is to hold at most beyond x and the parameters.
        plan: A plan made before, by `plan_jacobian`; it leaves nothing to choose.
        chunk_size: Most columns or rows that a sweep carries at once; None for as many as fit memory_limit.
        progress: Whether to show a progress bar, for long work.
        create_graph: Whether the result can be differentiated.
        compile: Whether what the plan does is compiled by Inductor; with create_graph its pullback too.
        strategy: How the plan is found; see `Chain.plan`.
        randomness: With batch_dims, what random numbers do: "error", "same" or "different", as in `torch.func.vmap`.
        sparse: "auto" for a sparse tensor where the structure of the Jacobian has zeros, True for one in any case.
        explain: Whether to print the stages found, with their sizes, structures and costs.

    Returns:
        The Jacobian: of shape (*f(x).shape, *x.shape) for one tensor in and out, dtype and device of f(x); for trees
        the same tree that `torch.func.jacrev` returns, outputs outside, inputs inside. Detached unless create_graph.

    Raises:
        TypeError: If x, f or what f returns is not differentiable, or an argument has the wrong type.
        ValueError: If stages do not fit one another or the plan, an option is unknown, or no plan fits memory_limit.
        NotImplementedError: If a stage has neither a JVP nor a VJP.

    Source: Naumann (2020), Optimization of Generalized Jacobian Chain Products without Memory Constraints,
        arXiv 2003.05755.
    """  # noqa: DOC501, DOC502 (some are raised further down, and what is not recorded is caught)
    stages = stages_of("jacobian", f)
    truth("jacobian", "explain", explain)
    options = _options("jacobian", wrt, batch_dims, chunk_size, create_graph, compile, randomness, progress, sparse)
    if plan is not None:
        return _by_plan(plan, stages, x, options, objective, strategy, memory_limit)
    kind = (_layout(x), options, objective, strategy, memory_limit)
    known = remembered(stages, kind)
    if known.plan is not None:
        try:
            return known.plan(x)
        except ValueError:  # f is another chain by now; whatever else is wrong will be raised again below
            known.plan = None
    if known.plan is None:
        free = objective == "time" and strategy == "dynamic_programming" and memory_limit is None and not explain
        free = free and options.leave_free
        if free:
            without = without_plan(stages, x, options, known)
            if without is not None:
                return without
        runtime = Runtime("jacobian", stages, options)
        runtime.only_recorded = free
        runtime.at_once = 0 if free else AT_ONCE
        runtime.apart = (lambda x, known: without_plan(stages, x, options, known)) if free else None
        try:
            made = make_plan(runtime, x, objective=objective, strategy=strategy, memory_limit=memory_limit)
        except (NotImplementedError, NotRecordable):
            if not free:
                raise
            # One stage has no order to choose, and autograd takes what `torch.func` refuses, such as batch
            # normalisation that counts its batches.
            known.plannable = runtime.only_recorded = False
            without = without_plan(stages, x, options, known)
            if without is not None:
                return without
            made = make_plan(runtime, x, objective=objective, strategy=strategy, memory_limit=memory_limit)
        runtime.only_recorded = False
        if explain:
            print(stages_text(made))
        known.plan = made
    return known.plan(x)


@uncompiled
def plan_jacobian(
    f: Differentiable,
    x: Any,
    *,
    batch_dims: int = 0,
    wrt: Wrt = None,
    objective: str | Objective = "time",
    memory_limit: int | str | None = None,
    chunk_size: int | None = None,
    progress: bool = False,
    create_graph: bool = False,
    compile: bool = False,
    strategy: str = "dynamic_programming",
    randomness: Randomness = "error",
    sparse: bool | Literal["auto"] = False,
    explain: bool = False,
    tape_limit: int | None = None,
    peak_entries: int | None = None,
    matrix_free: bool = True,
) -> Plan:
    """Plan the Jacobian of f for all x of one shape; `plan(x)` executes it, `print(plan)` explains it.

    The function is run once on a tensor without data, to see what it does; nothing it computes is used. Python values
    that it refers to (closed-over numbers, module attributes) are read at that time, and the plan notices when they
    change: calls then record the function again, and plan anew, as this plan was made, if it has become another chain.
    Whether a tensor requires grad is watched where the function's own code asks for it. A function whose control flow
    looks at data is recorded as it goes at x, with what it has seen; a call in which it sees something else records and
    plans the way that it takes there, and keeps it beside the first. A function that hands fractions made of x to
    Python otherwise than by `.item()`, or refers to what cannot be watched for changes, is called as it stands and is a
    single stage; `explain=True` says which and why.

    Args:
        f: As in `jacobian`, like all that is not listed here.
        x: Of the shapes to plan for; its values are read only where f looks at them.
        batch_dims: Leading axes that are a batch.
        wrt: What the Jacobian is taken in.
        objective: What to minimise: "time", "fma" or "memory".
        memory_limit: Bytes that a call is to hold at most beyond x and the parameters.
        chunk_size: Most columns or rows that a sweep carries at once.
        progress: Whether calls show a progress bar.
        create_graph: Whether results can be differentiated.
        compile: Whether calls run compiled; with create_graph their pullbacks too.
        strategy: How the plan is found; see `Chain.plan`.
        randomness: What random numbers do under a batch.
        sparse: Whether calls return sparse tensors.
        explain: Whether to print the stages found.
        tape_limit: Most entries that one adjoint sweep over raw factors may hold; None for no limit.
        peak_entries: Most entries of computed blocks that may be held at any step; None for no limit.
        matrix_free: Whether blocks may be carried through raw factors.

    Returns:
        The plan.

    Raises:
        TypeError: If x, f or what f returns is not differentiable, or an argument has the wrong type.
        ValueError: If an option is unknown, stages do not fit one another, or no plan fits a limit.
        NotImplementedError: If a stage has neither a JVP nor a VJP, by torch.func or autograd.
    """  # noqa: DOC502 (raised further down)
    truth("plan_jacobian", "explain", explain)
    options = _options(
        "plan_jacobian", wrt, batch_dims, chunk_size, create_graph, compile, randomness, progress, sparse
    )
    plan = make_plan(
        Runtime("plan_jacobian", stages_of("plan_jacobian", f), options),
        x,
        objective=objective,
        strategy=strategy,
        tape_limit=tape_limit,
        peak_entries=peak_entries,
        matrix_free=matrix_free,
        memory_limit=memory_limit,
    )
    if explain:
        print(stages_text(plan))
    return plan


@uncompiled
def gauss_newton(
    f: Differentiable,
    x: Tensor,
    hessian: Tensor | None = None,
    *,
    objective: str | Objective = "time",
    strategy: str = "dynamic_programming",
) -> Plan:
    """Plan the Gauss-Newton matrix Jᵀ H J of a loss after f, as one product.

    With f = F_q ∘ … ∘ F_1 the product is J_1ᵀ … J_qᵀ H J_q … J_1, a chain of 2 q + 1 factors, which is planned as a
    whole; J itself is formed only if that is best.

    Args:
        f: As in `jacobian`, of one tensor to one tensor.
        x: Where, a floating tensor of n entries.
        hessian: H, (m, m), the Hessian of the loss in the m outputs; None for the identity.
        objective: What to minimise.
        strategy: How the plan is found.

    Returns:
        A plan; `plan(x)` gives the matrix, (n, n).

    Raises:
        TypeError: If x or the Hessian is not a floating tensor.
        ValueError: If the Hessian has another shape, or f cannot be recorded.

    Source: Schraudolph (2002), Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent.
    """  # noqa: DOC502 (some are raised further down)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"gauss_newton: x must be a floating tensor, got {kind}.")
    stages = stages_of("gauss_newton", f)
    function = Runtime("gauss_newton", stages, Options())
    function.at_once = sys.maxsize  # every way that f goes is recorded: the product is made of recordings
    product = GaussNewton(function, hessian)
    product.arguments(x)
    if hessian is not None:
        y = product.way().traced.output
        check_seed("gauss_newton", "hessian", hessian, y.numel, 0, y, square=True)
    runtime = Runtime("gauss_newton", [product.product], Options(wrt=0), product.arguments, watched=stages)
    return make_plan(runtime, x, objective=objective, strategy=strategy)


def _by_plan(
    plan: Plan,
    stages: Sequence[Callable[..., Any]],
    x: Any,
    options: Options,
    objective: str | Objective,
    strategy: str,
    memory_limit: int | str | None,
) -> Any:
    """The Jacobian by a plan that was made before.

    Args:
        plan: The plan.
        stages: The function.
        x: The point.
        options: How the Jacobian is taken.
        objective: What the call asked for.
        strategy: What the call asked for.
        memory_limit: What the call asked for.

    Returns:
        The Jacobian.

    Raises:
        TypeError: If it is no plan.
        ValueError: If the call asks for a choice that the plan has made, or the plan does not fit.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"jacobian: plan must be a Plan, got {type(plan).__name__}.")
    if objective != "time" or strategy != "dynamic_programming" or memory_limit is not None:
        raise ValueError(
            f"jacobian: objective, strategy and memory_limit must be left out where a plan is given, got "
            f"{objective!r}, "
            f"{strategy!r} and {memory_limit!r}."
        )
    own = plan.runtime
    if own is not None and own.is_for(stages, options):
        return plan(x)
    known = remembered(stages, (options, plan.steps, plan.factors))
    if known.plan is None:
        known.plan = replace(plan, runtime=Runtime("jacobian", stages, options))
    return known.plan(x)


def stages_of(caller: str, f: Differentiable) -> tuple[Callable[..., Any], ...]:
    """The chain of callables that a function is.

    Args:
        caller: The function to name in an error.
        f: A Chain, nn.Module, callable, or list or tuple of callables.

    Returns:
        Its stages: one, if it is not a chain.

    Raises:
        TypeError: If f is none of these.
        ValueError: If it is a chain made from sizes, or an empty list.
    """
    if isinstance(f, Chain):
        if f.factors is not None:
            raise ValueError(f"{caller}: f must be a chain of callables, got one that was made from sizes.")
        return f.functions
    if isinstance(f, (list, tuple)):
        return Chain(f).functions
    if isinstance(f, type) and issubclass(f, nn.Module):
        raise TypeError(f"{caller}: f must be a module, got its class {f.__name__}; make one by {f.__name__}(...).")
    if not callable(f):
        raise TypeError(f"{caller}: f must be a callable, or a list or tuple of callables, got {type(f).__name__}.")
    return (f,)


def _options(caller: str, wrt: Wrt, *how: Any) -> Options:
    """Return the options, checked; see `_checked_options`. Most calls have those of another."""
    if wrt is None or type(wrt) is str:
        with suppress(TypeError):  # what cannot be looked up is refused below
            return _known_options(caller, wrt, *how)
    return _checked_options(caller, tuple(wrt) if isinstance(wrt, list) else wrt, *how)


def _checked_options(
    caller: str,
    wrt: Any,
    batch_dims: int,
    chunk_size: int | None,
    create_graph: bool,
    compile: bool,
    randomness: Randomness,
    progress: bool,
    sparse: bool | Literal["auto"],
) -> Options:
    """Return the options, checked; a TypeError or ValueError says of which `caller` one is refused."""
    batch_dims = whole(caller, "batch_dims", batch_dims, least=0)
    if chunk_size is not None:
        chunk_size = whole(caller, "chunk_size", chunk_size, least=1)
    for name, value in (("progress", progress), ("create_graph", create_graph), ("compile", compile)):
        truth(caller, name, value)
    if randomness not in ("error", "same", "different"):  # which may be asked of anything
        raise ValueError(f"{caller}: randomness must be 'error', 'same' or 'different', got {randomness!r}.")
    if sparse != "auto" and not isinstance(sparse, bool):
        raise ValueError(f"{caller}: sparse must be True, False or 'auto', got {sparse!r}.")
    if sparse and batch_dims:
        raise ValueError(
            f"{caller}: sparse must be False with batch_dims={batch_dims}, got {sparse!r}; the result holds one small "
            f"Jacobian for each sample as it is."
        )
    return Options(
        wrt=wrt,
        batch_dims=batch_dims,
        chunk_size=chunk_size,
        create_graph=create_graph,
        compile=compile,
        randomness=randomness,
        progress=progress,
        sparse=sparse,
    )


_known_options = lru_cache(maxsize=64, typed=True)(_checked_options)


def _layout(x: Any) -> Any:
    """Return what a plan depends on of x: everything but the values of its tensors."""
    if type(x) is Tensor:
        return x.shape, x.dtype, x.device
    leaves, spec = flattened(x)
    kinds = tuple(
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else kind_of_leaf(leaf) for leaf in leaves
    )
    return kinds, spec
