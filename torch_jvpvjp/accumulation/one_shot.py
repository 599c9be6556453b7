"""A call of `jacobian` that makes no plan: one sweep of tangents or adjoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ._torch import inside_transform, updates_statistics, wraps_transform
from .batches import check_independent
from .cache import Remembered
from .carrying import random_state, set_random_state
from .nesting import differentiating, is_differentiated
from .options import Options
from .plain import Recorded, plain_jacobian
from .plain_batches import jacobians_by_samples, jacobians_of_batch
from .subject import Subject
from .trees import assembled_of


def without_plan(stages: Sequence[Callable[..., Any]], x: Any, options: Options, known: Remembered) -> Any | None:
    """Return the Jacobian by one sweep of tangents or adjoints; None if making a plan pays."""
    begin = perf_counter()
    subject = Subject("jacobian", stages, x, options.wrt, options.batch_dims)
    leaves, extras = subject.leaves()
    live = options.create_graph or is_differentiated() or any(map(wraps_transform, leaves))
    with nullcontext() if live else torch.no_grad(), differentiating():
        blocks = _blocks(subject, leaves, extras, x, options, known, live=live)
    if blocks is None:
        return None
    if not live:
        blocks = [_own(block.detach()) for block in blocks]
    assert subject.output is not None
    result = assembled_of(blocks, subject.output, subject.source, subject.batch)
    known.took(perf_counter() - begin)
    return result


def _own(block: Tensor) -> Tensor:
    """Return a block that can be written into: of y = Σᵢ xᵢ autograd gives one entry, seen n times."""
    if block.is_contiguous():
        return block
    seen_again = any(stride == 0 and size > 1 for size, stride in zip(block.shape, block.stride(), strict=True))
    return block.clone(memory_format=torch.contiguous_format) if seen_again else block


def _blocks(
    subject: Subject,
    leaves: Sequence[Tensor],
    extras: Sequence[Tensor],
    x: Any,
    options: Options,
    known: Remembered,
    *,
    live: bool,
) -> list[Tensor] | None:
    """Return the Jacobian in each leaf, those of a batch behind one axis for its samples; None if a plan pays."""
    if not subject.batch_dims:
        return _blocks_of_one(subject, leaves, known, live=live)
    if not subject.batch.numel() or known.planning_pays(0.0, 0):  # what earlier calls took is all that is known
        return None
    asked = options.randomness == "error" and not inside_transform()
    if asked and isinstance(x, Tensor) and subject.has_one_argument and not subject.in_parameters:
        together = jacobians_of_batch(subject, x, live=live)
        if together is not None:
            return [together]
    values, blocks = jacobians_by_samples(subject, leaves, extras, options.randomness, live=live)
    if asked:
        check_independent(subject, values, subject.values_of_batch(x))
    return blocks


def _blocks_of_one(subject: Subject, leaves: Sequence[Tensor], known: Remembered, *, live: bool) -> list[Tensor] | None:
    def function(*tensors: Tensor) -> Tensor:
        return subject.value(tensors)

    device = leaves[0].device
    before = random_state(device)
    try:
        run = Recorded(function, leaves, live=live)
    except RuntimeError as error:
        if not live or inside_transform() or "transform" not in str(error):
            raise
        return None  # no transform of torch.func takes f, but autograd may, as a plan finds out
    pays = known.planning_pays(run.seconds, run.width, lambda: run.recording)
    if not pays or (not live and updates_statistics(run.recorded)):  # what has counted a batch is not run again
        try:
            blocks = plain_jacobian(run)
            known.last = run.recording
            return blocks
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise  # autograd needs a value that f has written over since, which a recording keeps
    set_random_state(device, before)  # the plan draws what this run has drawn
    return None
