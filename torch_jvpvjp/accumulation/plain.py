"""The Jacobian without a plan: by tangents or by adjoints, whichever are fewer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._torch import batches_rightly, inside_vmap, jvp, vjp
from .carrying import carry_each, close
from .linear_map import Pullback
from .stages import BlackBox, label_of
from .subject import Subject


class Recorded(NamedTuple):
    """One run of a function at a point, with its pullback.

    Attributes:
        function: The function of one tensor.
        x: The point.
        y: The value.
        pullback: The recorded pullback.
        trusted: Whether derivatives of many vectors at once are known to be right.
        seconds: What the run took.
    """

    function: BlackBox
    x: Tensor
    y: Tensor
    pullback: Pullback
    trusted: bool
    seconds: float

    @property
    def width(self) -> int:
        """The tangents or adjoints that the Jacobian takes, whichever are fewer."""
        return min(self.x.numel(), self.y.numel())


def recorded(subject: Subject, x: Tensor) -> Recorded:
    """Return one run of a subject at its source vector, with its pullback."""

    def whole(value: Tensor) -> Any:
        for function in subject.functions:
            value = function(value)
        return value

    whole.__name__ = label_of(subject.stages[-1])
    function = BlackBox(whole)
    begin = perf_counter()
    y, pullback, trusted = pulled_back(function, x)
    return Recorded(function, x, y, pullback, trusted, perf_counter() - begin)


def pulled_back(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Pullback, bool]:
    """Return f(x), the pullback, and whether many cotangents at once are known to be pulled back rightly."""
    trusted: list[bool] = []

    def seen(value: Tensor) -> Tensor:
        y = function(value)
        trusted.append(batches_rightly(y))
        return y

    y, pullback = vjp(seen, x)
    return y, pullback, trusted[0]


def plain_jacobians(
    subject: Subject, source: Tensor, extras: Sequence[Tensor], randomness: str
) -> tuple[Tensor, Tensor]:
    """Return values and Jacobians of all samples of a batch, each behind one axis for the samples.

    The first sample is asked by itself, since PyTorch's derivatives of a few ops are wrong under `vmap`; if it differs,
    the samples go one after another.
    """

    def of_one(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        with subject.called_with(others):
            run = recorded(subject, x)
            return run.y, plain_jacobian(run)

    def of_sample(number: int) -> tuple[Tensor, Tensor]:
        return of_one(source if subject.in_parameters else source[number], *(extra[number] for extra in extras))

    in_dims = (None if subject.in_parameters else 0, *(0 for _ in extras))
    values, matrix = torch.func.vmap(of_one, in_dims, randomness=randomness)(source, *extras)
    if randomness != "error" or inside_vmap():
        return values, matrix
    first = of_sample(0)
    if close(matrix[0].detach(), first[1].detach()):
        return values, matrix
    rest = [of_sample(number) for number in range(1, values.shape[0])]
    values, matrix = (torch.stack(parts) for parts in zip(first, *rest, strict=True))
    return values, matrix


def jacobians_by_sums(subject: Subject, x: Any) -> tuple[Tensor, Tensor] | None:
    """Return values and Jacobians of a batch by the adjoints of its sums; None for trees, or if tangents are fewer.

    The samples being independent, ∂y_s/∂x_s = ∂(Σ_t y_t)/∂x_s: one adjoint of each output serves the whole batch, and f
    runs on the batch as it is.
    """
    if not (isinstance(x, Tensor) and subject.has_one_argument and not subject.in_parameters):
        return None
    dims = subject.batch_dims

    def values(batch: Tensor) -> Tensor:
        return subject.values_of_batch(batch)  # behind one axis for the samples

    y, pullback, trusted = pulled_back(values, x)
    output = y.shape[1:]
    m, n = output.numel(), x.shape[dims:].numel()
    if not subject.output or not subject.output.bare or not m or m > _ADJOINTS_A_TANGENT * n:
        return None
    rows = torch.eye(m, dtype=y.dtype, device=y.device).reshape(m, 1, *output).expand(m, *y.shape)
    (pulled,) = carry_each(pullback, [rows], asked=not trusted)
    of_each = pulled.to(y.dtype).reshape(m, y.shape[0], n).transpose(0, 1)
    return y, of_each.reshape((y.shape[0], *output, *x.shape[dims:]))


def plain_jacobian(run: Recorded) -> Tensor:
    """Return the Jacobian, of shape (*y.shape, *x.shape), in one sweep of all tangents or all adjoints."""
    x, y = run.x, run.y
    n, m = x.numel(), y.numel()
    if 0 in {n, m}:
        return y.new_zeros((*y.shape, *x.shape))
    if m <= _ADJOINTS_A_TANGENT * n:
        return _by_adjoints(run)
    try:
        return _by_tangents(run)
    except NotImplementedError:  # an op without a JVP; the pullback is there
        return _by_adjoints(run)


_ADJOINTS_A_TANGENT = 2  # an adjoint sweep spends less on each op than one of tangents does


def _by_adjoints(run: Recorded) -> Tensor:
    x, y, m = run.x, run.y, run.y.numel()
    rows = torch.eye(m, dtype=y.dtype, device=y.device).reshape(m, *y.shape)
    (pulled,) = carry_each(run.pullback, [rows], asked=not run.trusted)
    return pulled.to(y.dtype).reshape((*y.shape, *x.shape))


def _by_tangents(run: Recorded) -> Tensor:
    x, y, n = run.x, run.y, run.x.numel()
    columns = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, *x.shape)

    (pushed,) = carry_each(lambda x_dot: jvp(run.function, x, x_dot)[1:], [columns], asked=not run.trusted)
    return pushed.reshape(n, y.numel()).T.reshape((*y.shape, *x.shape)).contiguous()
