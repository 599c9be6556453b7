"""Whether the arguments of a call pass the checks that the function made where it was recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .conditions import sees_values
from .tracing.checks import runs_unseen, values_of

if TYPE_CHECKING:
    from .tracings import Tracing


def check_passes(tracing: Tracing, arguments: Any, leaves: Sequence[Tensor], extras: Sequence[Tensor]) -> None:
    """Let f raise what it raises where a check that it makes on its way does not pass.

    Args:
        tracing: The function.
        arguments: What it is called with.
        leaves: The tensors that the Jacobian is taken in.
        extras: The others.

    Raises:
        ValueError: If a check does not pass, and f goes on all the same.
    """
    subject, tape = tracing.subject, tracing.traced.tape
    if not tape.checked and not tape.raising:
        return
    with torch.no_grad():
        source, given = subject.source_of(leaves).contiguous(), [extra.contiguous() for extra in extras]  # as recorded
        if tape.raising and not sees_values([*leaves, *extras]):
            passes = runs_unseen(tape, source, tracing.constants | tracing.given(given))
        else:
            passes = not tape.checked or _passes(tracing, source, given)
        if passes:
            return
        if subject.batch_dims:
            subject.values_of_batch(arguments)
        else:
            subject.value(leaves)
    raise ValueError(
        f"{subject.caller}: f must go on as it did where it was recorded, but a check that passed there does not pass "
        f"here, and f catches what is raised then; write both ways into torch.where."
    )


def _passes(tracing: Tracing, source: Tensor, extras: Sequence[Tensor]) -> bool:
    subject, tape = tracing.subject, tracing.traced.tape

    def of_one(one: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        return values_of(tape, tape.checked, one, tracing.constants | tracing.given(others))

    if subject.batch_dims:
        in_dims = (None if subject.in_parameters else 0, *(0 for _ in extras))
        of_one = torch.func.vmap(of_one, in_dims)
    return all(bool(value.all()) for value in of_one(source, *extras))
