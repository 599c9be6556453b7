"""The Triton kernels of group norm at the points of its tower that have one."""

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Any

from torch import Tensor

from .._batched import as_many, batched
from .._devices import triton_devices
from .._shapes import broadcast
from .rules import op
from .second_order import Bars, Points, Wants

_DEVICES = triton_devices()


def _primal(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    ndim: int,
    channels_last: bool,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One program per group: y, m, r."""
    from ...triton_kernels.group_norm import group_norm_forward

    at = _Laid([x], [weight, bias], x, ndim, num_groups, channels_last)
    (row,), (w, b) = at.rows, at.weights
    y, mean, rstd = group_norm_forward(row, w, b, num_groups, channels_last, eps, _name(silu))
    return at.row_result(y), at.statistics(mean), at.statistics(rstd)


def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor]]:
    """One launch: y, m and r once, and ẏ for every tangent."""
    from ...triton_kernels.group_norm import group_norm_jvp

    x, weight, bias, num_groups, ndim, channels_last, eps, silu = primals
    at = _Laid([x, tangents.input], [weight, bias, tangents.weight, tangents.bias], x, ndim, num_groups, channels_last)
    (row, row_dot), (w, b, w_dot, b_dot) = at.rows, at.weights
    y, mean, rstd, y_dot = group_norm_jvp(row, w, b, row_dot, w_dot, b_dot, num_groups, channels_last, eps, _name(silu))
    leads = [t.shape[: max(0, t.dim() - ndim)] for t in (x, weight, bias) if t is not None]
    return (at.primal_result(y, leads), at.statistics(mean), at.statistics(rstd)), (at.row_result(y_dot),)


def _vjp(
    cotangents: Any, inputs: Any, *, needs: tuple[bool, ...], residuals: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """One launch for x̄ and each sample's share of w̄ and b̄, and one for each of those to add them up."""
    from ...triton_kernels.group_norm import group_norm_vjp

    x, weight, bias = inputs.input, inputs.weight, inputs.bias
    num_groups, channels_last = inputs.num_groups, inputs.channels_last
    at = _Laid([cotangents.y, x], [weight, bias], x, inputs.ndim, num_groups, channels_last, residuals)
    (y_bar, row), (w, b), (mean, rstd) = at.rows, at.weights, at.moments
    wanted: Any = needs
    bars = group_norm_vjp(y_bar, row, w, b, mean, rstd, num_groups, channels_last, _name(inputs.silu), wanted)
    return at.bars(bars, (x, weight, bias))


def _points(moments: Sequence[Tensor]) -> Points:
    """The points of the second order, with the moments that the primal left."""

    def pull(inputs: Any, y_bar: Tensor, needs: Any) -> tuple[Tensor | None, ...]:
        return _vjp(op.signature.cotangents_type(y_bar), inputs, needs=tuple(needs), residuals=tuple(moments))

    return Points(partial(_second_order, moments), pull)


def _second_order(
    moments: Sequence[Tensor],
    inputs: Any,
    tangents: Sequence[Any],
    a: Tensor,
    c: Tensor | None,
    wants: Wants,
    likes: Sequence[Any],
) -> tuple[Bars, Bars, Tensor | None]:
    """One launch, and one for each sum over samples; see `second_order.formulas`."""
    from ...triton_kernels.group_norm import Second, group_norm_second_order

    x, weight, bias = inputs.input, inputs.weight, inputs.bias
    x_dot, *weights_dot = tangents
    groups, last = inputs.num_groups, inputs.channels_last
    at = _Laid([x, x_dot, a, c], [weight, bias, *weights_dot], x, inputs.ndim, groups, last, moments)
    (row, row_dot, a_row, c_row), (w, b, w_dot, b_dot), (mean, rstd) = at.rows, at.weights, at.moments
    if wants.w_first or wants.b_first:  # the cotangent of a tangent of K weights is one for each
        w, b = as_many(w, w_dot), as_many(b, b_dot)
    got = group_norm_second_order(
        row, w, b, row_dot, w_dot, b_dot, a_row, c_row, mean, rstd, groups, last, _name(inputs.silu), Second(*wants)
    )
    y_dot = None if got.y_dot is None else at.row_result(got.y_dot, a)
    return at.bars(got[:3], likes), at.bars(got[3:6], (x, weight, bias)), y_dot


def _jvp_vjp(
    cotangents: Any, inputs: Any, *, needs: tuple[bool, ...], residuals: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    return _points(residuals).jvp_vjp(cotangents, inputs, needs=needs)


def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    return _points((primals.mean, primals.rstd)).vjp_jvp(primals, tangents)


def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    return _points((inputs.mean, inputs.rstd)).vjp_vjp(cotangents, inputs, needs=needs)


def _name(silu: bool) -> str:
    return "silu" if silu else "identity"


class _Laid:
    """Operands as launchers take them, and back.

    Rows are (K or 1, N, C, S) or (K or 1, N, S, C), weights (K or 1, C), moments (K or 1, N, G).
    """

    def __init__(
        self,
        rows: Any,
        weights: Any,
        x: Tensor,
        ndim: int,
        num_groups: int,
        channels_last: bool,
        moments: Sequence[Tensor] = (),
    ) -> None:
        self._ndim, self._lead_of_x = ndim, tuple(x.shape[: x.dim() - ndim])
        self.own = tuple(x.shape[x.dim() - ndim :])  # (N, C, *spatial) or (N, *spatial, C)
        self._groups = num_groups
        channels = self.own[-1] if channels_last else self.own[1]
        sites = prod(self.own[1:-1]) if channels_last else prod(self.own[2:])
        inner = (sites, channels) if channels_last else (channels, sites)
        self._batched = batched([*rows, *weights, *moments], ndim)
        tensors = self._batched.tensors
        self.rows: Any = [
            None if t is None else t.reshape(t.shape[0], self.own[0], *inner) for t in tensors[: len(rows)]
        ]
        stop = len(rows) + len(weights)
        self.weights: Any = [None if t is None else t.reshape(t.shape[0], channels) for t in tensors[len(rows) : stop]]
        self.moments: Any = [t.reshape(t.shape[0], self.own[0], num_groups) for t in tensors[stop:]]

    def row_result(self, result: Tensor, like: Tensor | None = None) -> Tensor:
        """(K or 1, N, ...) as (*lead, *own), or summed to the shape of an argument."""
        return self._batched.result(result.reshape(result.shape[0], *self.own), like)

    def primal_result(self, result: Tensor, leads: Any) -> Tensor:
        """(K or 1, N, ...) as (*lead of the primals, *own), taken once along the axes of tangents alone."""
        shape = (*broadcast(*leads), *self.own)
        return self._batched.shared_result(result.reshape(result.shape[0], *self.own), shape)

    def statistics(self, result: Tensor) -> Tensor:
        """(K or 1, N, G) as (*lead of x, N, G, 1, ..., 1)."""
        shape = (self.own[0], self._groups, *(1,) * (self._ndim - 2))
        return self._batched.shared_result(result.reshape(result.shape[0], *shape), (*self._lead_of_x, *shape))

    def bars(self, results: Any, likes: Any) -> Bars:
        """A launcher's cotangents of rows, a weight and a bias, shaped like what they belong to."""
        row, *weights = results
        like, *others = likes
        w_bar, b_bar = (
            None if bar is None or w is None else self.weight_result(bar, w)
            for bar, w in zip(weights, others, strict=True)
        )
        return None if row is None or like is None else self.row_result(row, like), w_bar, b_bar

    def weight_result(self, result: Tensor, like: Any) -> Tensor:
        """(K or 1, C) as the gradient of a weight."""
        return self._batched.result(result.reshape(result.shape[0], *(1,) * (self._ndim - 1), -1), like)


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(_jvp)
    op.vjp.kernel(*_DEVICES)(_vjp)
    op.jvp.vjp.kernel(*_DEVICES)(_jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(_vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(_vjp_vjp)
