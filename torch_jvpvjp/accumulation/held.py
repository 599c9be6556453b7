"""What a call of a plan holds at most, told by running it on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ._torch import FakeTensorMode, unharmed
from .footprint import Footprint
from .program import Program, ProgramRecorder
from .replay import Worth
from .tracing.results import Known
from .tracings import Tracing


def held_bytes(
    tracing: Tracing,
    executed: Callable[[Tensor, Sequence[Tensor]], Tensor],
    most_folded: int,
    worth: Worth | None,
    known: Known | None = None,
) -> int | None:
    """The most bytes that a call holds beyond what it is given, its result included.

    Args:
        tracing: The function.
        executed: The Jacobian by the plan, of the source vector and the other tensors.
        most_folded: Most entries of a value that is held between calls.
        worth: When like calls of what is recorded are worth running as one; None where they never are.
        known: What ops return, remembered from one such run to the next.

    Returns:
        Bytes; None if only data can tell.
    """
    with unharmed(), FakeTensorMode(allow_non_fake_inputs=True) as fake, torch.no_grad():
        leaves, extras = _empty_arguments(tracing)
        constants = [fake.from_tensor(constant) for constant in tracing.constants.values()]  # kept, and so reused
        inputs = [*leaves, *extras, *constants]
        recorder = ProgramRecorder([*leaves, *extras, *tracing.constants.values()], most_folded)
        try:
            source = tracing.subject.source_of(leaves)
            with Footprint(fake, [source, *inputs], known) as footprint, recorder:
                parts = tracing.parts(executed(source, extras))
                numbers = recorder.numbers(parts)
            del parts
            first = footprint.peak + bytes_of(recorder.tables)
            program = recorder.program(numbers, worth)
            return first if program is None else max(first, _held_by(program, inputs, fake, known))
        except RuntimeError:  # what PyTorch raises where it needs data
            return None


def _empty_arguments(tracing: Tracing) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors that the Jacobian is taken in, and the others, without data."""
    subject = tracing.subject
    batch = [subject.batch.numel()] if subject.batch_dims else []
    shared = [] if subject.in_parameters else batch
    device = subject.sample.device
    leaves = [torch.empty((*shared, *leaf.shape), dtype=leaf.dtype, device=device) for leaf in subject.source.leaves]
    extras = [torch.empty((*batch, *one.shape), dtype=one.dtype, device=one.device) for one in subject.extras]
    return leaves, extras


def _held_by(program: Program, inputs: Sequence[Tensor], fake: FakeTensorMode, known: Known | None) -> int:
    """Return the most bytes that a run of a program holds, with what is kept between runs."""
    kept = list(program.fixed.values())
    with Footprint(fake, [*inputs, *kept], known) as footprint:
        program.run(*inputs)
    return footprint.peak + bytes_of(kept) + program.kernel_bytes


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the memory that tensors look at."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
