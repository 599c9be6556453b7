"""The reference of group norm and its rules of first order; the second order follows by differentiating them.

In the dispatcher the samples' own axes are the last `ndim` of input: (N, C, *spatial), or (N, *spatial, C) if
`channels_last`. Weight and bias are (C,); axes in front of all of that are where vmap puts a batch, and a batched
weight is (*batch, 1, ..., 1, C) with ndim - 1 ones.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...registration import differentiable_op, expanding_rule
from .._batched import leading_rule
from .._groups import sum_to


@differentiable_op("torch_jvpvjp::group_norm", residuals=("mean", "rstd"))
def op(
    input: Tensor,  # noqa: A002
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    ndim: int,
    channels_last: bool,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference: z = x̂ ∘ w + b with x̂ = (x − m) r;  y = z, or z σ(z).

    Args:
        input: x, shape (*batch, N, C, *spatial), or (*batch, N, *spatial, C).
        weight: w, shape (C,), or (*batch, 1, ..., 1, C); or None for ones.
        bias: b, likewise; or None for zeros.
        num_groups: Number of groups G, which divides C.
        ndim: Number of axes of (N, C, *spatial).
        channels_last: Whether the channels are the last axis.
        eps: ε.
        silu: Whether SiLU follows.

    Returns:
        y, of input's dtype and the broadcast shape; and for kernels m and r, (*batch of input, N, G, 1, ..., 1).
    """
    at = _At.of(input, num_groups, ndim, channels_last)
    unit, mean, r = _unit(at, at.rows(input), eps)
    z = _affine(unit, at.channels(weight), at.channels(bias))
    y = z * torch.sigmoid(z) if silu else z
    return at.back(y, input), at.statistics(mean, input), at.statistics(r, input)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor]]:
    """With v = r ẋ:  ż = (v − ⟨v⟩ − ⟨x̂ v⟩ x̂) ∘ w + x̂ ∘ ẇ + ḃ;  ẏ = ż, or silu′(z) ż."""
    x = primals.input
    at = _At.of(x, primals.num_groups, primals.ndim, primals.channels_last)
    unit, mean, r = _unit(at, at.rows(x), primals.eps)
    w, b = at.channels(primals.weight), at.channels(primals.bias)
    z = _affine(unit, w, b)
    parts = []
    if tangents.input is not None:
        v = r * at.rows(tangents.input)
        moved = v - v.mean(at.axes, keepdim=True) - unit * (unit * v).mean(at.axes, keepdim=True)
        parts.append(moved if w is None else moved * w)
    if tangents.weight is not None:
        parts.append(unit * at.channels(tangents.weight))
    if tangents.bias is not None:
        parts.append(at.channels(tangents.bias))
    # b + ḃ does not know of all batch axes; the tangent has them all the same.
    z_dot = sum(parts[1:], parts[0]) if parts else torch.zeros_like(z)
    z_dot = z_dot.expand(torch.broadcast_shapes(z.shape, z_dot.shape))
    if primals.silu:
        slope, s = _silu_slope(z)
        z, z_dot = z * s, z_dot * slope
    return (at.back(z, x), at.statistics(mean, x), at.statistics(r, x)), (at.back(z_dot, x),)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """With z̄ = ȳ, or silu′(z) ȳ, and g = w ∘ z̄:  x̄ = r (g − ⟨g⟩ − ⟨x̂ g⟩ x̂),  w̄ = Σ x̂ ∘ z̄,  b̄ = Σ z̄."""
    x = inputs.input
    at = _At.of(x, inputs.num_groups, inputs.ndim, inputs.channels_last)
    unit, _, r = _unit(at, at.rows(x), inputs.eps)
    w, b = at.channels(inputs.weight), at.channels(inputs.bias)
    z_bar = at.rows(cotangents.y)
    if inputs.silu:
        z_bar = z_bar * _silu_slope(_affine(unit, w, b))[0]
    x_bar = w_bar = b_bar = None
    if needs[0]:
        g = z_bar if w is None else z_bar * w
        x_bar = r * (g - g.mean(at.axes, keepdim=True) - unit * (unit * g).mean(at.axes, keepdim=True))
        x_bar = at.back(sum_to(x_bar, unit.shape), x)
    if needs[1] and w is not None:
        w_bar = sum_to(unit * z_bar, w.shape).reshape(inputs.weight.shape).to(inputs.weight.dtype)
    if needs[2] and b is not None:
        b_bar = sum_to(z_bar, b.shape).reshape(inputs.bias.shape).to(inputs.bias.dtype)
    return x_bar, w_bar, b_bar


class _At(NamedTuple):
    """Samples, groups, channels and sites: (*lead, N, G, D, S), or (*lead, N, S, G, D) if channels come last."""

    ndim: int
    own: tuple[int, ...]  # (N, G, D, S) or (N, S, G, D)
    axes: list[int]  # those of a group: its channels and sites
    weight: tuple[int, ...]  # (1, G, D, 1) or (1, 1, G, D)
    groups: int
    wide: torch.dtype

    @staticmethod
    def of(x: Tensor, num_groups: int, ndim: int, channels_last: bool) -> "_At":
        shape = x.shape[x.dim() - ndim :]
        n, channels = shape[0], shape[-1] if channels_last else shape[1]
        sites = prod(shape[1:-1]) if channels_last else prod(shape[2:])
        depth = channels // num_groups
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        if channels_last:
            return _At(ndim, (n, sites, num_groups, depth), [-3, -1], (1, 1, num_groups, depth), num_groups, wide)
        return _At(ndim, (n, num_groups, depth, sites), [-2, -1], (1, num_groups, depth, 1), num_groups, wide)

    def rows(self, x: Tensor) -> Tensor:
        """The tensor as (*lead, *own), in the dtype the op computes in."""
        return x.to(self.wide).reshape((*x.shape[: x.dim() - self.ndim], *self.own))

    def channels(self, w: Tensor | None) -> Any:
        """A weight so that it broadcasts against (*lead, *own), in the dtype the op computes in."""
        return None if w is None else w.to(self.wide).reshape((*w.shape[: max(0, w.dim() - self.ndim)], *self.weight))

    def back(self, y: Tensor, x: Tensor) -> Tensor:
        """(*lead, *own) as (*lead, N, C, *spatial), in the dtype of x."""
        return y.reshape((*y.shape[:-4], *x.shape[x.dim() - self.ndim :])).to(x.dtype)

    def statistics(self, m: Tensor, x: Tensor) -> Tensor:
        """One value per group as (*lead, N, G, 1, ..., 1)."""
        return m.reshape((*x.shape[: x.dim() - self.ndim], self.own[0], self.groups, *(1,) * (self.ndim - 2)))


def _unit(at: _At, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x̂ = (x − m) r, m and r, the last two one per group."""
    mean = x.mean(at.axes, keepdim=True)
    centred = x - mean
    r = torch.rsqrt(centred.square().mean(at.axes, keepdim=True) + eps)
    return centred * r, mean, r


def _affine(unit: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    z = unit if w is None else unit * w
    return z if b is None else z + b


def _silu_slope(z: Tensor) -> tuple[Tensor, Tensor]:
    """silu′(z) = σ(z) (1 + z (1 − σ(z))), and σ(z)."""
    s = torch.sigmoid(z)
    return s * (1 + z * (1 - s)), s


# ---- vmap: a batch axis goes in front --------------------------------------------------------------------------------


def _own_axes(args: Sequence[Any]) -> int:
    return args[4]


op.vmap(leading_rule(op, [(0, 1, 2), (0,), (0,)], _own_axes))  # input, weight, bias, num_groups, ndim, ...
op.jvp.vmap(
    leading_rule(op.jvp.op, [(0, 1, 2), (0,), (0,), (0, 1, 2, 8, 9, 10)], _own_axes)
)  # ... input_dot, weight_dot, bias_dot
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1, 2, 3)))  # y_bar, input, weight, bias, ...
