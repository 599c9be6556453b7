"""A function taken apart for tensors of one kind, with what is recorded of it and what keeps that true."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_unflatten

from ._torch import inside_transform, same_forms, wraps_transform
from .carrying import random_state, set_random_state
from .guards import Guards, Opaque
from .program import Program
from .sparse import as_sparse
from .stages import label_of
from .structure import Structure
from .subject import Subject
from .tracing.agreement import agrees
from .tracing.traced import Traced, trace
from .trees import assembled, flattened

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
        forms_hold: Whether the tensors from outside still have the shapes, strides and dtypes that they had.
        sparse: The structure of the entries, if they are returned as they are.
        program: The straight line that a call replays, once recorded.
        compiled: The same, compiled.
        replayable: Whether there can be one.
        fits: The factors of the plan that was last found to be for it.
        form: The tree that the parts of the Jacobian stand in, once known.
        apart: Whether the samples of a batch go one after another, since PyTorch gets them wrong all at once.
    """

    subject: Subject
    traced: Traced
    constants: dict[int, Tensor]
    extras: list[int | None]
    guards: Guards | None
    forms_hold: Callable[[], bool]
    sparse: Structure | None = None
    program: Program | None = None
    compiled: Callable[..., Any] | None = None
    replayable: bool = True
    fits: tuple[Factor, ...] | None = None
    form: TreeSpec | None = None
    apart: bool = False

    def holds(self) -> bool:
        """Return whether the function is still what was traced, but for the values of tensors."""
        return self.forms_hold() and (self.guards is None or self.guards.hold())

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
        """Return the blocks of a Jacobian in their tree, or its entries as a sparse tensor."""
        if self.sparse is not None:
            output = self.traced.output
            return as_sparse(parts[0], self.sparse, (*output.shape, *self.subject.sample.shape))
        assert self.form is not None, "a Jacobian was put together before it was taken apart"
        return parts[0] if self.form.is_leaf() else tree_unflatten(list(parts), self.form)

    def timed(self, inputs: Sequence[Tensor]) -> list[float]:
        """Return the seconds of each segment of one run of the program."""
        assert self.program is not None
        return self.program.timed(*inputs)


def trace_subject(subject: Subject, watching: Sequence[Callable[..., Any]], sparse: bool | str) -> Tracing:
    """A subject taken apart, watched, and compared with what PyTorch says of it.

    Args:
        subject: The function and its arguments.
        watching: The functions whose change makes a recording stale.
        sparse: Whether a sparse result is asked for, so that irregular patterns are kept.

    Returns:
        The tracing.

    Raises:
        ValueError: If a sparse result is asked for of a tree of tensors, or the function does not run.
    """  # noqa: DOC502 (raised further down)
    with torch.inference_mode(mode=False):  # whose tensors autograd, which recording relies on, does not take
        return _traced_and_watched(subject, watching, sparse)


def _traced_and_watched(subject: Subject, watching: Sequence[Callable[..., Any]], sparse: bool | str) -> Tracing:
    guards, unwatchable = _watched(subject, watching)

    def settle() -> None:
        """See to it that what the function keeps from a call, such as a table, is no tensor without data."""
        if guards is not None:
            guards.restore()
        _call_once(subject)

    def taken_apart() -> Traced:
        try:
            return trace(
                subject.functions, subject.sample, keep_patterns=bool(sparse), as_it_stands=unwatchable, settle=settle
            )
        except BaseException:
            if guards is not None:
                guards.restore()
            raise

    traced = taken_apart()
    if guards is not None and not guards.hold():
        settle()
        guards, unwatchable = _watched(subject, watching)
        traced = taken_apart()
    if sparse and not (subject.output and subject.output.bare and subject.source.bare):
        raise ValueError(
            f"{subject.caller}: sparse must be False where x or f(x) is a tree of tensors, got {sparse!r}."
        )
    constants, extras = _outside(traced, subject)
    why = None
    if guards is not None and not guards.hold():
        guards.restore()  # a value that was kept on the way was a fake one
        why = "it changes what it refers to"
    elif not _agrees(traced, subject, constants, extras):
        why = "what was recorded does not have the derivative that PyTorch gives it"
    if why is not None and not traced.opaque:
        traced = trace(subject.functions, subject.sample, as_it_stands=why, settle=settle)
        if guards is not None:
            guards.restore()
        constants, extras = _outside(traced, subject)
    if traced.opaque and guards is not None:  # a black box is called in any case
        guards = Guards([stage for stage in watching if label_of(stage) not in traced.refusals])
    if guards is not None:
        guards.watch_gradients(constants.values())
    outside = [*constants.values(), *subject.parameters, *(guards.tensors if guards is not None else ())]
    forms = same_forms(list({id(tensor): tensor for tensor in outside}.values()))
    subject.forget()
    traced.tape.constants |= {
        index: extra for index, extra in zip(extras, subject.extras, strict=True) if index is not None
    }
    return Tracing(subject, traced, constants, extras, guards, forms)


def _watched(subject: Subject, watching: Sequence[Callable[..., Any]]) -> tuple[Guards | None, str | None]:
    """Return what keeps a recording true; without it, why the function cannot be recorded."""
    try:
        return Guards([*watching, *subject.objects]), None
    except Opaque as reason:
        return None, f"it refers to what cannot be watched for changes, {reason}"


def _call_once(subject: Subject) -> None:
    """Call the function on its first sample; what goes wrong is raised when it is called again."""
    if inside_transform() or wraps_transform(subject.sample):
        return
    value, drawn = subject.sample.detach().clone(), random_state(subject.sample.device)
    with suppress(Exception), torch.enable_grad():
        for function in subject.functions:
            value = function(value)
    set_random_state(subject.sample.device, drawn)


def _agrees(traced: Traced, subject: Subject, constants: dict[int, Tensor], extras: list[int | None]) -> bool:
    """Return whether a recording agrees with the function; inside a transform values cannot be compared."""
    if inside_transform() or wraps_transform(subject.sample):
        return True
    given = {index: extra for index, extra in zip(extras, subject.extras, strict=True) if index is not None}
    return agrees(traced, subject.functions, subject.sample.detach().contiguous(), constants | given)


def check_fit(caller: str, plan: Plan, traced: Traced) -> None:
    """Check that a plan is for a function.

    Args:
        caller: The function to name in errors.
        plan: The plan.
        traced: The function, taken apart.

    Raises:
        ValueError: If the plan is for another chain.
    """
    if len(plan.factors) != max(len(traced.factors), 1):
        raise ValueError(
            f"{caller}: plan must be for a chain of {len(traced.factors)} stages, got one for {len(plan.factors)}; "
            f"make "
            f"a new one by plan_jacobian(f, x)."
        )
    for place, (planned, found) in enumerate(zip(plan.factors, traced.factors, strict=False)):
        if (planned.n, planned.m, planned.structure) != (found.n, found.m, found.structure):
            expected, came = (f"{factor.n} → {factor.m} entries, {factor.jacobian.name}" for factor in (planned, found))
            raise ValueError(
                f"{caller}: the plan must fit the function, but it expects {expected}, at factor F{place + 1} and "
                f"{found.label} takes {came}; make the plan for this function and this x by plan_jacobian(f, x)."
            )


def _outside(traced: Traced, subject: Subject) -> tuple[dict[int, Tensor], list[int | None]]:
    """Return the tensors from outside that a tape refers to, and which of its values the other arguments are."""
    number = {id(tensor): index for index, tensor in traced.tape.constants.items()}
    extras = [number.get(id(extra)) for extra in subject.extras]
    return {index: tensor for index, tensor in traced.tape.constants.items() if index not in extras}, extras
