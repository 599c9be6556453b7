"""A call of `jacobian` that makes no plan: one sweep of tangents or adjoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ._torch import inside_transform, wraps_transform
from .batches import check_independent, values_apart
from .cache import Remembered
from .options import Options
from .plain import jacobians_by_sums, plain_jacobian, plain_jacobians, recorded
from .subject import Subject
from .trees import assembled


def without_plan(stages: Sequence[Callable[..., Any]], x: Any, options: Options, known: Remembered) -> Any | None:
    """Return the Jacobian by one sweep of tangents or adjoints; None if making a plan pays."""
    begin = perf_counter()
    subject = Subject("jacobian", stages, x, options.wrt, options.batch_dims)
    source, extras = subject.bind(x)
    outside = options.create_graph or inside_transform() or wraps_transform(source)
    try:
        with nullcontext() if outside else torch.no_grad():
            matrix = _plain(subject, source, extras, x, options, known)
    except RuntimeError:  # some functions (an LSTM on the CPU) have a derivative only where gradients are on
        matrix = _plain(subject, source, extras, x, options, known)
    if matrix is None:
        return None
    if not outside:
        matrix = matrix.detach()
    assert subject.output is not None
    result = assembled(matrix, subject.output, subject.source, subject.batch)
    known.seconds += perf_counter() - begin
    return result


def _plain(
    subject: Subject,
    source: Tensor,
    extras: Sequence[Tensor],
    x: Any,
    options: Options,
    known: Remembered,
) -> Tensor | None:
    if not subject.batch_dims:
        run = recorded(subject, source)
        return None if known.planning_pays(run.seconds, run.width) else plain_jacobian(run)
    if not subject.batch.numel() or known.planning_pays(0.0, 0):  # what earlier calls took is all that is known
        return None
    asked = options.randomness == "error" and not inside_transform()
    by_sums = jacobians_by_sums(subject, x) if asked else None
    if by_sums is not None:
        check_independent(subject, values_apart(subject, source, extras, options.randomness), by_sums[0])
        return by_sums[1]
    values, matrix = plain_jacobians(subject, source, extras, options.randomness)
    if asked:
        check_independent(subject, values, subject.values_of_batch(x))
    return matrix
