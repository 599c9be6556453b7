"""A plan applied to what its function is called with: at one point, or at all samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from ._torch import inside_transform
from ._torch_contexts import outside_inference, usable
from .autocasting import autocasts
from .batches import over_samples
from .execute import Execution, as_jacobian, count_chunks, execute
from .options import Options
from .plan import Plan
from .progress import bar
from .sparse import is_sparse
from .tracings import Tracing


def applied(
    plan: Plan, tracing: Tracing, source: Tensor, extras: Sequence[Tensor], options: Options, how: Execution
) -> Tensor:
    """The Jacobian of a function by a plan.

    Args:
        plan: The plan.
        tracing: The function.
        source: What the Jacobian is taken in, as one tensor; with samples in front if there is a batch.
        extras: The other arguments.
        options: How it is taken.
        how: How the plan is run.

    Returns:
        The Jacobian, (*batch as one axis, *outputs, *inputs), or its entries if it is sparse.
    """
    subject, traced = tracing.subject, tracing.traced

    def of_one(x: Tensor, *others: Tensor) -> Tensor:
        return _of_sample(plan, tracing, x, others, options, chosen)

    shown = bar(count_chunks(plan, traced.regions, how), how) if options.progress else nullcontext(how)
    with outside_inference(), shown as chosen:
        source, extras = usable(source), list(map(usable, extras))
        if not subject.batch_dims:
            return of_one(source, *extras)
        if not subject.batch.numel():
            return source.new_zeros((0, *traced.output.shape, *subject.sample.shape), dtype=traced.output.dtype)
        if (tracing.apart or (traced.opaque and autocasts())) and not inside_transform():
            return one_by_one(plan, tracing, source, extras, options, chosen)
        in_dims = (None if subject.in_parameters else 0, *(0 for _ in extras))
        return over_samples(subject, of_one, in_dims, options.randomness)(source, *extras)


def one_by_one(
    plan: Plan, tracing: Tracing, source: Tensor, extras: Sequence[Tensor], options: Options, how: Execution
) -> Tensor:
    """The Jacobians of some samples, taken one after another.

    Args:
        plan: The plan.
        tracing: The function.
        source: What the Jacobian is taken in, with samples in front.
        extras: The other arguments, likewise.
        options: How it is taken.
        how: How the plan is run.

    Returns:
        The Jacobians, (samples, *outputs, *inputs).
    """
    rows = range(extras[0].shape[0] if tracing.subject.in_parameters else source.shape[0])
    sources = [source if tracing.subject.in_parameters else source[row] for row in rows]
    others = [[extra[row] for extra in extras] for row in rows]
    return torch.stack([
        _of_sample(plan, tracing, x, other, options, how) for x, other in zip(sources, others, strict=True)
    ])


def _of_sample(
    plan: Plan, tracing: Tracing, x: Tensor, others: Sequence[Tensor], options: Options, how: Execution
) -> Tensor:
    """Return the Jacobian of one sample, or its entries if it is sparse."""
    x, others = x.contiguous(), tuple(other.contiguous() for other in others)  # as they were when recorded
    with tracing.subject.called_with(others):
        constants = {index: usable(constant) for index, constant in tracing.constants.items()}
        y, block = execute(plan, tracing.traced, x, constants | tracing.given(others), how)
    if options.sparse and (options.sparse is True or is_sparse(block.structure)):
        tracing.sparse = block.structure
        return block.structure.csr_values(block.values, y).to(y.dtype)
    return as_jacobian(block, y, x, made=len(plan.steps) > 1)
