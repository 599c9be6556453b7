"""A function taken apart for tensors of one kind, with what is recorded of it and what keeps that true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from ._torch import same_forms
from .conditions import Conditions, sees_values
from .executed import Executed
from .gradients import Gradients
from .guards import Guards
from .program import Program
from .sparse import Sparsity
from .stages import label_of
from .structure import Structure
from .subject import Subject
from .tracing.agreement import agrees
from .tracing.known import Unchanged
from .tracing.traced import Traced, trace
from .trees import assembled, flattened
from .unwritten import Unwritten
from .watched import Watched, call_once, is_transformed

if TYPE_CHECKING:
    from .factor import Factor
    from .plan import Plan


@dataclass(eq=False)
class Tracing:
    """A subject that was traced for tensors of some dtypes and devices.

    Attributes:
        subject: The function and its arguments.
        traced: What it does.
        constants: The values that are tensors from outside, without the other arguments.
        extras: The values of the tape that the other arguments are.
        guards: What the function refers to; None where that cannot be watched.
        forms_hold: Whether the tensors from outside still have the shapes, strides and dtypes that they had; None if
            there are none.
        numbers_hold: Whether the whole numbers that structures were made of are still what they were; None if there
            are none.
        sparse: The structure of the entries, if they are returned as they are.
        sparsity: Where they stand in the result, once known.
        program: The straight line that a call replays, once recorded.
        compiled: The same, compiled.
        replayable: Whether there can be one.
        fits: The factors of the plan that was last found to be for it.
        fitted: A plan that was made for the function as it was, and what became of it; see `fitted`.
        remade: Whether that was made anew, for another chain.
        form: The tree that the parts of the Jacobian stand in, once known.
        apart: Whether the samples of a batch go one after another, since PyTorch gets them wrong all at once.
        conditions: What the function looked at where it was recorded; None if it did not look at data.
        seconds: What it took to record and to plan it.
        in_a_row: The calls before this one that went the same way, one after another.
        sees_beside: Whether the program gives the conditions behind the Jacobian.
        gradients: What is recorded of a Jacobian that is differentiated.
    """

    subject: Subject
    traced: Traced
    constants: dict[int, Tensor]
    extras: list[int | None]
    guards: Guards | None
    forms_hold: Callable[[], bool] | None
    numbers_hold: Callable[[], bool] | None
    sparse: Structure | None = None
    sparsity: Sparsity | None = None
    program: Program | None = None
    compiled: Callable[..., Any] | None = None
    replayable: bool = True
    fits: tuple[Factor, ...] | None = None
    fitted: tuple[Plan, Plan] | None = None
    remade: bool = False
    form: TreeSpec | None = None
    apart: bool = False
    conditions: Conditions | None = None
    seconds: float = 0.0
    in_a_row: int = 0
    sees_beside: bool = False
    gradients: Gradients | None = None

    def requires_grad(self, given: Sequence[Tensor]) -> bool:
        """Return whether autograd is on, and something that the Jacobian depends on may require gradients."""
        if not torch.is_grad_enabled() or self.traced.opaque:
            return torch.is_grad_enabled()
        return any(tensor.requires_grad for tensor in (*given, *self.constants.values()))

    def holds(self) -> bool:
        """Return whether the function is still what was traced, but for the values of tensors that are no indices."""
        forms_hold, numbers_hold, guards = self.forms_hold, self.numbers_hold, self.guards
        return (
            (forms_hold is None or forms_hold())
            and (numbers_hold is None or numbers_hold())
            and (guards is None or guards.hold())
        )

    def given(self, others: Sequence[Tensor]) -> dict[int, Tensor]:
        """Return the values of the tape that the other arguments of a call are."""
        return {index: other for index, other in zip(self.extras, others, strict=True) if index is not None}

    def parts(self, matrix: Tensor) -> list[Tensor]:
        """Return the blocks of a Jacobian, for each output those in each input; the matrix if it is sparse."""
        if self.sparse is not None:
            return [matrix]
        output, subject = self.subject.output, self.subject
        assert output is not None, "a function was traced without being run"
        parts, self.form = flattened(assembled(matrix, output, subject.source, subject.batch))
        return parts

    def planted(self, parts: Sequence[Tensor]) -> Any:
        """Return the blocks of a Jacobian in their tree, or its entries as sparse tensors."""
        if self.sparse is not None:
            if self.sparsity is None or self.sparsity.structure is not self.sparse:
                output = self.subject.output
                assert output is not None, "a function was traced without being run"
                self.sparsity = Sparsity(self.sparse, output, self.subject.source, parts[0].device)
            return self.sparsity.planted(parts[0])
        assert self.form is not None, "a Jacobian was put together before it was taken apart"
        return parts[0] if self.form.is_leaf() else tree_unflatten(list(parts), self.form)

    def timed(self, inputs: Sequence[Tensor]) -> list[float]:
        """Return the seconds of each segment of one run of the program."""
        assert self.program is not None
        return self.program.timed(*inputs)


def trace_subject(
    subject: Subject,
    watching: Sequence[Callable[..., Any]],
    sparse: bool | str,
    *,
    only_recorded: bool = False,
    as_it_stands: str | None = None,
) -> Tracing:
    """A subject taken apart, watched, and compared with what PyTorch says of it.

    Args:
        subject: The function and its arguments.
        watching: The functions whose change makes a recording stale.
        sparse: Whether a sparse result is asked for, so that irregular patterns are kept.
        only_recorded: Whether a function that cannot be recorded is refused.
        as_it_stands: Why it is not to be recorded; None if it is.

    Returns:
        The tracing.

    Raises:
        ValueError: If the function does not run.
        NotRecordable: If it is refused.
    """  # noqa: DOC502 (raised further down)
    begin = perf_counter()
    with torch.inference_mode(mode=False), Unwritten() as unwritten:  # autograd, which records, takes no others
        tracing = _traced_and_watched(subject, watching, sparse, unwritten, only_recorded, as_it_stands)
    tracing.seconds = perf_counter() - begin
    return tracing


def _traced_and_watched(
    subject: Subject,
    watching: Sequence[Callable[..., Any]],
    sparse: bool | str,
    unwritten: Unwritten,
    only_recorded: bool,  # noqa: FBT001 (as it was given)
    as_it_stands: str | None,
) -> Tracing:
    watched = Watched.of(subject, watching, recorded=as_it_stands is None)
    attempt = _attempt(subject, watched, sparse, unwritten, only_recorded=only_recorded, as_it_stands=as_it_stands)
    for rounds in range(_MOST_ROUNDS):
        if attempt.missed is None:
            break
        if rounds + 1 < _MOST_ROUNDS:
            watched = Watched(subject, watching, attempt.executed)
        else:
            as_it_stands = f"it calls {attempt.missed}, which it finds in a way that cannot be watched"
        attempt = _attempt(subject, watched, sparse, unwritten, only_recorded=only_recorded, as_it_stands=as_it_stands)
    traced, guards = attempt.traced, watched.guards
    constants, extras = _outside(traced, subject)
    if traced.opaque and guards is not None:  # a black box is called in any case
        guards = Guards([stage for stage in watching if label_of(stage) not in traced.refusals], watched.executed)
    if guards is not None:
        guards.watch_gradients(constants.values())
    conditions = Conditions(traced.tape) if traced.tape.conditions else None
    outside = [*constants.values(), *subject.parameters, *(guards.tensors if guards is not None else ())]
    forms = same_forms(list({id(tensor): tensor for tensor in outside}.values())) if outside else None
    numbers = Unchanged(traced.numbers) if traced.numbers else None
    subject.forget()
    traced.tape.constants |= {
        index: extra for index, extra in zip(extras, subject.extras, strict=True) if index is not None
    }
    apart = traced.by_autograd
    return Tracing(subject, traced, constants, extras, guards, forms, numbers, apart=apart, conditions=conditions)


_MOST_ROUNDS = 4


class _Attempt(NamedTuple):
    """A function taken apart, once.

    Attributes:
        traced: What was found.
        executed: The code that has run.
        missed: What of that the guards do not know; None if they know all of it.
    """

    traced: Traced
    executed: Executed
    missed: str | None


def _attempt(
    subject: Subject,
    watched: Watched,
    sparse: bool | str,
    unwritten: Unwritten,
    *,
    only_recorded: bool,
    as_it_stands: str | None,
) -> _Attempt:
    """Take a function apart, and see whether what was found is true and what code has run."""
    seen = not subject.batch_dims and sees_values([subject.sample, *subject.extras])
    ran = Executed()
    functions = [ran.watching(function) for function in subject.functions]
    unwritten.keep(subject.stages, () if watched.guards is None else watched.guards.tensors)

    def settle() -> None:
        """See to it that what the function keeps from a call, such as a table, is no tensor without data."""
        watched.restore()
        call_once(subject)

    def taken_apart() -> Traced:
        # Without a transform around, the function runs once more, to be compared: that shows as well what it calls.
        from_now = watched.executed is not None or is_transformed(subject)
        try:
            return trace(
                functions if from_now else subject.functions,
                subject.sample,
                keep_patterns=bool(sparse),
                as_it_stands=as_it_stands or watched.unwatchable,
                settle=settle,
                varying=subject.extras,
                only_recorded=only_recorded,
                seen=seen,
            )
        except BaseException:
            watched.restore()
            raise

    traced = taken_apart()
    if not watched.hold():
        settle()
        watched.renew()
        traced = taken_apart()
    constants, extras = _outside(traced, subject)
    why = None
    if not watched.hold():
        watched.restore()  # a value that was kept on the way was a fake one
        why = "it changes what it refers to"
    elif not _agrees(traced, functions, subject, constants, extras):
        why = "what was recorded does not have the derivative that PyTorch gives it"
    if why is not None and not traced.opaque:
        traced = trace(subject.functions, subject.sample, as_it_stands=why, settle=settle, only_recorded=only_recorded)
        watched.restore()
    if watched.guards is None or not traced.regions or len(traced.refusals) == len(subject.functions):
        return _Attempt(traced, ran, None)
    if not ran.foreign:  # it was not compared
        call_once(subject, functions)
    executed = ran if watched.executed is None else ran | watched.executed
    return _Attempt(traced, executed, watched.guards.missed(ran))


def _agrees(
    traced: Traced,
    functions: Sequence[Callable[..., Any]],
    subject: Subject,
    constants: dict[int, Tensor],
    extras: list[int | None],
) -> bool:
    """Return whether a recording agrees with the function; inside a transform values cannot be compared."""
    if is_transformed(subject):
        return True
    given = {index: extra for index, extra in zip(extras, subject.extras, strict=True) if index is not None}
    return agrees(traced, functions, subject.sample.detach().contiguous(), constants | given)


def fitted(caller: str, plan: Plan, tracing: Tracing) -> Plan:
    """A plan for a function as it is now.

    Args:
        caller: The function to name in errors.
        plan: The plan.
        tracing: The function, taken apart.

    Returns:
        The plan itself, or its steps for the structures that indices with other values than they had then have now.

    Raises:
        ValueError: If the plan is for another chain.
    """  # noqa: DOC502 (raised by _check_fit)
    if tracing.fits is plan.factors:
        return plan
    if tracing.fitted is not None and tracing.fitted[0] is plan:
        return tracing.fitted[1]
    traced = tracing.traced
    if traced.numbers and tuple(map(_steps_of, plan.factors)) == tuple(map(_steps_of, traced.factors)):
        if plan.factors != traced.factors:
            tracing.fitted = plan, replace(plan, factors=traced.factors)
            return tracing.fitted[1]
    _check_fit(caller, plan, traced)
    tracing.fits = plan.factors
    return plan


def _steps_of(factor: Factor) -> tuple[Any, ...]:
    """Return what decides which steps there are for a factor: all but its structure and its prices."""
    ways = factor.jvp_cost, factor.vjp_cost, factor.forming_cost
    return factor.n, factor.m, factor.given, *(cost is None for cost in ways)


def _check_fit(caller: str, plan: Plan, traced: Traced) -> None:
    why = " (f looks at data, and may go another way here than where the plan was made)" if traced.looks else ""
    if len(plan.factors) != max(len(traced.factors), 1):
        raise ValueError(
            f"{caller}: plan must be for a chain of {len(traced.factors)} stages, got one for "
            f"{len(plan.factors)}{why}; make a new one by plan_jacobian(f, x)."
        )
    for place, (planned, found) in enumerate(zip(plan.factors, traced.factors, strict=False)):
        same = (planned.n, planned.m, planned.structure) == (found.n, found.m, found.structure)
        if not same or not _ways(planned) <= _ways(found):
            expected, came = (_described(factor, ways=same) for factor in (planned, found))
            raise ValueError(
                f"{caller}: the plan must fit the function, but it expects {expected}, at factor F{place + 1} and "
                f"{found.label} takes {came}{why}; make the plan for this function and this x by plan_jacobian(f, x)."
            )


def _described(factor: Factor, *, ways: bool) -> str:
    by = f", by {' or '.join(sorted(_ways(factor)))}" if ways else ""
    return f"{factor.n} → {factor.m} entries, {factor.jacobian.name}{by}"


def _ways(factor: Factor) -> set[str]:
    """Return how a plan may go through a factor."""
    closed = factor.given or factor.forming_cost is not None
    ways = {"a JVP": factor.jvp_cost is not None, "a VJP": factor.vjp_cost is not None, "a closed form": closed}
    return {name for name, there in ways.items() if there}


def _outside(traced: Traced, subject: Subject) -> tuple[dict[int, Tensor], list[int | None]]:
    """Return the tensors from outside that a tape refers to, and which of its values the other arguments are."""
    number = {id(tensor): index for index, tensor in traced.tape.constants.items()}
    extras = [number.get(id(extra)) for extra in subject.extras]
    return {index: tensor for index, tensor in traced.tape.constants.items() if index not in extras}, extras
