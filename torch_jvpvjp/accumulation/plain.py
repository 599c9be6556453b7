"""The Jacobian without a plan: by tangents or by adjoints, whichever are fewer."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._torch import load_jvp_rules, vjp
from .stages import BlackBox, label_of
from .subject import Subject


class Recorded(NamedTuple):
    """One run of a function at a point, with its pullback.

    Attributes:
        function: The function of one tensor.
        x: The point.
        y: The value.
        pullback: The recorded pullback of `torch.func`; None where autograd has recorded the run.
        leaf: Where autograd's record starts, then.
        seconds: What the run took.
    """

    function: BlackBox
    x: Tensor
    y: Tensor
    pullback: Any
    leaf: Tensor | None
    seconds: float

    @property
    def width(self) -> int:
        """The tangents or adjoints that the Jacobian takes, whichever are fewer."""
        return min(self.x.numel(), self.y.numel())


def recorded(subject: Subject, x: Tensor, *, by_autograd: bool = False) -> Recorded:
    """Return one run of a subject at its source vector, with its pullback.

    Autograd by itself records and replays with less ado than `torch.func`, which is needed only inside of transforms
    and for results that are differentiated again.
    """

    def whole(value: Tensor) -> Any:
        for function in subject.functions:
            value = function(value)
        return value

    whole.__name__ = label_of(subject.stages[-1])
    function = BlackBox(whole)
    begin = perf_counter()
    if by_autograd:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            y = function(leaf)
        return Recorded(function, x, y, None, leaf, perf_counter() - begin)
    y, pullback = vjp(function, x)
    return Recorded(function, x, y, pullback, None, perf_counter() - begin)


def plain_jacobians(
    subject: Subject, source: Tensor, extras: Sequence[Tensor], randomness: str
) -> tuple[Tensor, Tensor]:
    """Return values and Jacobians of all samples of a batch, each behind one axis for the samples."""

    def of_one(x: Tensor, *others: Tensor) -> tuple[Tensor, Tensor]:
        with subject.called_with(others):
            run = recorded(subject, x)
            return run.y, plain_jacobian(run)

    in_dims = (None if subject.in_parameters else 0, *(0 for _ in extras))
    return torch.func.vmap(of_one, in_dims, randomness=randomness)(source, *extras)


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

    y, pullback = vjp(values, x)
    output = y.shape[1:]
    m, n = output.numel(), x.shape[dims:].numel()
    if not subject.output or not subject.output.bare or not m or m > _ADJOINTS_A_TANGENT * n:
        return None
    rows = torch.eye(m, dtype=y.dtype, device=y.device).reshape(m, 1, *output).expand(m, *y.shape)
    pulled = torch.func.vmap(lambda y_bar: pullback(y_bar)[0], randomness="same")(rows)
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
    if run.leaf is not None:
        if not y.requires_grad:
            return y.new_zeros((*y.shape, *x.shape))
        (pulled,) = torch.autograd.grad(y, run.leaf, rows, is_grads_batched=True, materialize_grads=True)
        return pulled.to(y.dtype).reshape((*y.shape, *x.shape))
    if m == 1:
        return run.pullback(rows[0])[0].to(y.dtype).reshape((*y.shape, *x.shape))
    pulled = torch.func.vmap(lambda y_bar: run.pullback(y_bar)[0], randomness="same")(rows)
    return pulled.to(y.dtype).reshape((*y.shape, *x.shape))


def _by_tangents(run: Recorded) -> Tensor:
    load_jvp_rules()
    x, y, n = run.x, run.y, run.x.numel()
    columns = torch.eye(n, dtype=x.dtype, device=x.device).reshape(n, *x.shape)

    def push(x_dot: Tensor) -> Any:
        results: Any = torch.func.jvp(run.function, (x,), (x_dot,))
        return results[1]

    if n == 1:
        return push(columns[0]).reshape((*y.shape, *x.shape))
    pushed = torch.func.vmap(push, randomness="same")(columns)
    return pushed.reshape(n, y.numel()).T.reshape((*y.shape, *x.shape)).contiguous()
