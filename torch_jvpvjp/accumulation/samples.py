"""Whether the samples of a batch may be taken all at once, asked of a function before it is planned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ._torch import inside_transform
from .application import one_by_one
from .batches import check_independent, values_apart
from .carrying import close
from .execute import Execution
from .plan import Plan
from .runtime import Runtime


def check_samples(runtime: Runtime, plan: Plan, x: Any) -> None:
    """Find out whether samples that are taken all at once have the Jacobians that they have one after another.

    PyTorch's derivatives of a few ops are wrong under two `vmap`, one for samples and one for columns
    (`torch.linalg.solve`, in 2.11 to 2.13). Where all Jacobians are known in closed form there is none of columns.

    Args:
        runtime: The function.
        plan: The plan.
        x: The point.
    """
    tracing = runtime.tracing(x)
    if tracing.traced.by_autograd:
        return
    open_parts = any(part.arcs is None for region in tracing.traced.regions for part in region.parts)
    draws = any(op.draws for op in tracing.traced.tape.ops)
    unseen = inside_transform() or tracing.subject.sample.is_meta
    if not open_parts or draws or runtime.options.randomness != "error" or unseen:
        return
    source, extras = tracing.subject.bind(runtime.arguments(x))
    source, extras = source if tracing.subject.in_parameters else source[:2], [extra[:2] for extra in extras]
    how = Execution(runtime.options.chunk_size)
    with torch.set_grad_enabled(tracing.traced.opaque):
        try:
            together = runtime.executed(plan, tracing, source, extras, how).detach()
        except RuntimeError:  # an op that `vmap` does not take; what else is wrong is raised one by one
            tracing.apart = True
            return
        if together.numel():
            tracing.apart = not close(
                together, one_by_one(plan, tracing, source, extras, runtime.options, how).detach()
            )


def check_batch(runtime: Runtime, x: Any) -> None:
    """Check that f treats the samples of a batch independently, by its values.

    Args:
        runtime: The function.
        x: The point.

    Raises:
        ValueError: If f of the batch is not the batch of f of its samples.
    """
    tracing = runtime.tracing(x)
    subject, traced = tracing.subject, tracing.traced
    source, extras = subject.bind(runtime.arguments(x))
    random = runtime.options.randomness != "error" or any(op.draws for op in traced.tape.ops)
    if random or inside_transform() or subject.sample.is_meta or not subject.batch.numel():
        return

    asks = traced.by_autograd  # f may take gradients in x
    with torch.set_grad_enabled(asks):
        apart = values_apart(subject, source.detach().requires_grad_(asks), extras, "same").detach()
        given = runtime.arguments(x)
        together = subject.values_of_batch(_asking(given) if asks else given).detach()
    check_independent(subject, apart, together)


def _asking(x: Any) -> Any:
    """Return the arguments with gradients asked for in all that have one."""
    return tree_map_only(Tensor, lambda one: one.detach().requires_grad_(one.is_floating_point()), x)
