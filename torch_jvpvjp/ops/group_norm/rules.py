"""The reference of group norm and its rules of first order; the second order follows by differentiating them.

In the dispatcher the samples' own axes are the last `ndim` of input: (N, C, *spatial), or (N, *spatial, C) if
`channels_last`. Weight and bias are (C,); axes in front of all of that are where vmap puts a batch, and a batched
weight is (*batch, 1, ..., 1, C) with ndim - 1 ones.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...registration import differentiable_op, expanding_rule
from .._batched import leading_rule
from .at import At, affine, silu_slope, unit_of
from .second_order import Points, formulas


@differentiable_op("torch_jvpvjp::group_norm", residuals=("mean", "rstd"), composite=True)
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
    at = At.of(input, num_groups, ndim, channels_last)
    unit, mean, r = unit_of(at, at.rows(input), eps)
    z = affine(unit, at.channels(weight), at.channels(bias))
    y = z * torch.sigmoid(z) if silu else z
    return at.back(y, input), at.statistics(mean, input), at.statistics(r, input)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor]]:
    """With v = r ẋ:  ż = (v − ⟨v⟩ − ⟨x̂ v⟩ x̂) ∘ w + x̂ ∘ ẇ + ḃ;  ẏ = ż, or silu′(z) ż."""
    x = primals.input
    at = At.of(x, primals.num_groups, primals.ndim, primals.channels_last)
    unit, mean, r = unit_of(at, at.rows(x), primals.eps)
    w, b = at.channels(primals.weight), at.channels(primals.bias)
    z = affine(unit, w, b)
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
        slope, s = silu_slope(z)
        z, z_dot = z * s, z_dot * slope
    return (at.back(z, x), at.statistics(mean, x), at.statistics(r, x)), (at.back(z_dot, x),)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """With z̄ = ȳ, or silu′(z) ȳ, and g = w ∘ z̄:  x̄ = r (g − ⟨g⟩ − ⟨x̂ g⟩ x̂),  w̄ = Σ x̂ ∘ z̄,  b̄ = Σ z̄."""
    x = inputs.input
    at = At.of(x, inputs.num_groups, inputs.ndim, inputs.channels_last)
    unit, _, r = unit_of(at, at.rows(x), inputs.eps)
    w, b = at.channels(inputs.weight), at.channels(inputs.bias)
    z_bar = at.rows(cotangents.y)
    if inputs.silu:
        z_bar = z_bar * silu_slope(affine(unit, w, b))[0]
    x_bar = None
    if needs[0]:
        g = z_bar if w is None else z_bar * w
        x_bar = r * (g - g.mean(at.axes, keepdim=True) - unit * (unit * g).mean(at.axes, keepdim=True))
    bars = x_bar, unit * z_bar if needs[1] else None, z_bar if needs[2] else None
    return at.bars(bars, (x, inputs.weight, inputs.bias))


points = Points(formulas, lambda inputs, y_bar, needs: _vjp(op.signature.cotangents_type(y_bar), inputs, needs=needs))
op.jvp.vjp(points.jvp_vjp)
op.vjp.jvp(points.vjp_jvp)
op.vjp.vjp(points.vjp_vjp)


# ---- vmap: a batch axis goes in front --------------------------------------------------------------------------------


def _own_axes(args: Sequence[Any]) -> int:
    return args[4]


op.vmap(leading_rule(op, [(0, 1, 2), (0,), (0,)], _own_axes))  # input, weight, bias, num_groups, ndim, ...
op.jvp.vmap(
    leading_rule(op.jvp.op, [(0, 1, 2), (0,), (0,), (0, 1, 2, 8, 9, 10)], _own_axes)
)  # ... input_dot, weight_dot, bias_dot
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1, 2, 3)))  # y_bar, input, weight, bias, ...
op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(2, 3, 4, 10, 11, 12)))  # y_bar, y_dot_bar, input, ...
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(1, 2, 3, 1, 2, 3)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(3, 4, 5, 6)))  # three cotangents, y_bar, input, ...
