"""The Jacobians of a batch of independent samples without a plan."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._torch import inside_vmap
from .batches import check_independent, over_samples, values_of_parts
from .carrying import close, random_state
from .plain import Recorded, plain_jacobian, prefers_adjoints
from .subject import Subject


def jacobians_of_batch(subject: Subject, x: Tensor, *, live: bool) -> Tensor | None:
    """The Jacobians of a batch by running f on batches; they stand behind one axis for the samples.

    Args:
        subject: A function of one tensor.
        x: The batch.
        live: Whether the results are to be differentiated.

    Returns:
        The Jacobians; None if f draws random numbers, returns a tree, or does not take batches of another size.

    Raises:
        ValueError: If f mixes its samples.
    """  # noqa: DOC502 (raised by check_independent)
    dims, count = subject.batch_dims, subject.batch.numel()
    samples = x if dims == 1 else x.reshape(count, *(1,) * (dims - 1), *x.shape[dims:])
    try:
        parts = values_of_parts(subject, samples.detach() if live else samples)
    except RuntimeError:
        return None
    if subject.before is None or not torch.equal(subject.before, random_state(x.device)):
        return None  # f draws random numbers, whatever they do to its values: at 0 they may do nothing
    if not subject.output or not subject.output.bare or any([part.shape[0] != apart.shape[0] for part, apart in parts]):
        return None
    output, own = subject.output.leaves[0].shape, x.shape[dims:]
    m, n = output.numel(), own.numel()
    if not m or not n:
        return None
    y, of_each = (
        _by_copies(subject, samples, m, live) if _is_small(m, n, count) else _by_sums(subject, samples, m, n, live)
    )
    y = y.detach() if live else y
    for part, apart in parts:
        check_independent(subject, apart, y.index_select(0, part))
    if dims > 1:  # what mixes along the other axes of the batch does not show where all samples stand along one
        with torch.no_grad():
            check_independent(subject, y[:count], subject.values_of_batch(x.detach()))
    return of_each.reshape((count, *output, *own))


def _is_small(m: int, n: int, count: int) -> bool:
    return m <= _FEW_COPIES and m * n * count <= _SMALL_BATCH


_FEW_COPIES = 4  # c copies take 3 c / (1 + 2 c) times as long, 1.3 at most, where it is arithmetic that takes the time
_SMALL_BATCH = 1 << 16  # entries


def _by_copies(subject: Subject, samples: Tensor, m: int, live: bool) -> tuple[Tensor, Tensor]:
    """Return values of m copies of the batch and Jacobians, by one adjoint of the copies, an output for each.

    The samples being independent, f of a batch of m copies is m copies of f; with the cotangent e_k for copy k one
    plain pullback gives all rows. For small samples that takes less time than m pullbacks under `vmap`.
    """
    count = samples.shape[0]
    run = _run(subject, torch.cat([samples] * m), live=live)
    rows = run.y.new_zeros((m, count, m))
    rows.diagonal(0, 0, 2).fill_(1)
    (pulled,) = run.row(rows.reshape(run.y.shape))
    pulled = pulled if pulled.dtype is run.y.dtype else pulled.to(run.y.dtype)
    return run.y, pulled.reshape(m, count, -1).transpose(0, 1)


def _by_sums(subject: Subject, samples: Tensor, m: int, n: int, live: bool) -> tuple[Tensor, Tensor]:
    """Return values and Jacobians by derivatives of sums over the batch.

    The samples being independent, ∂y_s/∂x_s = ∂(Σ_t y_t)/∂x_s, and the same tangent at every sample moves each by its
    own Jacobian: one adjoint of each output, or one tangent of each input, serves the whole batch.
    """
    run = _run(subject, samples, live=live)
    y, count = run.y, samples.shape[0]
    if not prefers_adjoints(run, m, n):
        ones = (1,) * subject.batch_dims
        eye = torch.eye(n, dtype=samples.dtype, device=samples.device)
        columns = eye.reshape(n, *ones, *samples.shape[len(ones) :]).expand(n, *samples.shape)
        try:
            pushed = run.columns([columns])
            return y, pushed.reshape(n, count, m).permute(1, 2, 0)
        except RuntimeError:  # an op without a JVP, or one that takes no vectors at once; the pullback is there
            pass
    rows = torch.eye(m, dtype=y.dtype, device=y.device).reshape(m, 1, *y.shape[1:]).expand(m, *y.shape)
    (pulled,) = run.rows(rows)
    return y, pulled.to(y.dtype).reshape(m, count, n).transpose(0, 1)


def _run(subject: Subject, samples: Tensor, *, live: bool) -> Recorded:
    before = None if subject.attends else subject.before
    run = Recorded(lambda batch: subject.values_of_arguments([batch]), [samples], live=live, before=before)
    subject.made = run.recording
    return run


def jacobians_by_samples(
    subject: Subject, leaves: Sequence[Tensor], extras: Sequence[Tensor], randomness: str, *, live: bool
) -> tuple[Tensor, list[Tensor]]:
    """Return values and Jacobians of all samples of a batch, each behind one axis for the samples.

    The first sample is asked by itself, since PyTorch's derivatives of a few ops are wrong under `vmap`; if it differs,
    the samples go one after another.
    """

    def of_one(leaves: Sequence[Tensor], others: Sequence[Tensor], *, live: bool) -> tuple[Tensor, ...]:
        with subject.called_with(others):
            run = Recorded(lambda *tensors: subject.value(tensors), leaves, live=live)
            subject.made = run.recording
            return run.y, *plain_jacobian(run)

    def of_sample(number: int) -> tuple[Tensor, ...]:
        own = leaves if subject.in_parameters else [leaf[number] for leaf in leaves]
        return of_one(own, [extra[number] for extra in extras], live=live)

    in_dims = ([None if subject.in_parameters else 0] * len(leaves), [0] * len(extras))
    of_all = over_samples(subject, lambda a, b: of_one(a, b, live=True), in_dims, randomness)
    together = of_all(list(leaves), list(extras))
    if randomness == "error" and not inside_vmap():
        first = of_sample(0)
        if not all(close(all_of[0].detach(), one.detach()) for all_of, one in zip(together, first, strict=True)):
            rest = [of_sample(number) for number in range(1, together[0].shape[0])]
            together = tuple(torch.stack(parts) for parts in zip(first, *rest, strict=True))
    return together[0], list(together[1:])
