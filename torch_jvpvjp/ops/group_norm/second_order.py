"""The second order of group norm: what its three points share, and the formulas.

With α = f′(z) a and β = f′(z) c + f″(z) ż a for cotangents a of ẏ and c of y, g = w ∘ α, f = w ∘ β, h = ẇ ∘ α,
P v = v − ⟨v⟩, μ = ⟨x̂ v⟩, û = P v − μ x̂ (which is the tangent of x̂) and B = ⟨x̂ g⟩:

    Jᵀa:               x = r (P g − B x̂),                                     w = Σ α ∘ x̂,            b = Σ α
    Jᵀc + ∂⟨a, ẏ⟩:     x = r (P (f + h) − ⟨x̂ (f + h) + g û − μ g x̂⟩ x̂ − B û − μ P g),
                       w = Σ β ∘ x̂ + α ∘ û,                                   b = Σ β
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arithmetic import total
from .._groups import sum_to
from .at import At, affine, silu_slope, unit_of


class Wants(NamedTuple):
    """Which results are wanted: cotangents of the tangents, of the primals, and ẏ."""

    x_first: bool = False
    w_first: bool = False
    b_first: bool = False
    x_second: bool = False
    w_second: bool = False
    b_second: bool = False
    y_dot: bool = False


Bars = tuple[Tensor | None, Tensor | None, Tensor | None]
# (inputs, tangents, a, c, wants, shapes of the first three) -> Jᵀa, Jᵀc + ∂⟨a, ẏ⟩ and ẏ, shaped like their arguments
Engine = Callable[[Any, Sequence[Any], Tensor, Tensor | None, Wants, Sequence[Any]], tuple[Bars, Bars, Tensor | None]]
Pull = Callable[[Any, Tensor, Sequence[bool]], tuple[Tensor | None, ...]]


class Points(NamedTuple):
    """The points of the second order, made of one function for all of them and one for the pullback of y alone."""

    engine: Engine
    pull: Pull

    def jvp_vjp(self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over forward: the tangents get Jᵀa, the primals Jᵀc + ∂⟨a, ẏ⟩."""
        a, c = cotangents.y_dot, cotangents.y
        if a is None:
            assert c is not None  # a pullback has a cotangent
            return (*self.pull(inputs, c, needs[:3]), None, None, None)
        tangents = inputs.input_dot, inputs.weight_dot, inputs.bias_dot
        primals = inputs.input, inputs.weight, inputs.bias
        # A cotangent of y is shared by all tangents and counts once; one of ẏ counts for each.
        together = c is None or c.shape == a.shape
        likes = [p if t is None else t for t, p in zip(tangents, primals, strict=True)]
        wants = Wants(*needs[3:], *needs[:3])
        first, second, _ = self.engine(inputs, tangents, a, c if together else None, wants, likes)
        seconds: Sequence[Tensor | None] = second
        if c is not None and not together:
            seconds = [total(*pair) for pair in zip(self.pull(inputs, c, needs[:3]), second, strict=True)]
        return (*seconds, *(None if t is None else f for f, t in zip(first, tangents, strict=True)))

    def vjp_jvp(self, primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
        """Forward over reverse: the tangent of Jᵀȳ is Jᵀȳ′ + ∂⟨ȳ, ẏ⟩, second derivatives being symmetric."""
        needs, likes = tuple(primals.needs), (primals.input, primals.weight, primals.bias)
        moved = tangents.input, tangents.weight, tangents.bias
        wants = Wants(*needs, *needs)
        first, second, _ = self.engine(primals, moved, primals.y_bar, tangents.y_bar, wants, likes)
        return first, second

    def vjp_vjp(self, cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """Reverse over reverse: with cotangents of x̄, w̄ and b̄ as tangents, ȳ gets ẏ, and the primals ∂⟨ȳ, ẏ⟩."""
        x_second, w_second, b_second = needs[1:4]
        wants = Wants(False, False, False, x_second, w_second, b_second, needs[0])  # noqa: FBT003
        likes = inputs.input, inputs.weight, inputs.bias
        _, second, y_dot = self.engine(inputs, tuple(cotangents), inputs.y_bar, None, wants, likes)
        return y_dot, *second


def formulas(
    inputs: Any, tangents: Sequence[Any], a: Tensor, c: Tensor | None, wants: Wants, likes: Sequence[Any]
) -> tuple[Bars, Bars, Tensor | None]:
    """The results in plain PyTorch, to be differentiated further.

    Args:
        inputs: Primals and options.
        tangents: ẋ, ẇ and ḃ, each may be None.
        a: Cotangent of ẏ.
        c: Cotangent of y, or None.
        wants: Which results.
        likes: What the first three have the shapes of.

    Returns:
        Jᵀa, Jᵀc + ∂⟨a, ẏ⟩ and ẏ; None where not wanted.
    """
    x = inputs.input
    at = At.of(x, inputs.num_groups, inputs.ndim, inputs.channels_last)
    unit, _, r = unit_of(at, at.rows(x), inputs.eps)
    w, b, w_dot, b_dot = (at.channels(t) for t in (inputs.weight, inputs.bias, *tangents[1:]))
    mean: Any = lambda t: t.mean(at.axes, keepdim=True)  # noqa: E731
    mu = u = None
    if tangents[0] is not None:
        v = r * at.rows(tangents[0])
        mu = mean(unit * v)
        u = v - mean(v) - mu * unit
    z_dot = total(None if u is None else times(u, w), None if w_dot is None else unit * w_dot, b_dot)
    alpha, beta = at.rows(a), None if c is None else at.rows(c)
    slope = None
    if inputs.silu:
        z = affine(unit, w, b)
        slope, s = silu_slope(z)
        if z_dot is not None:
            bend = s * (1 - s) * (2 + z * (1 - 2 * s))
            beta = total(None if beta is None else beta * slope, alpha * bend * z_dot)
        elif beta is not None:
            beta = beta * slope
        alpha = alpha * slope
    g = times(alpha, w)
    along = mean(unit * g)
    across = g - mean(g)
    x_first = x_second = None
    if wants.x_first:
        x_first = r * (across - along * unit)
    if wants.x_second:
        straight = total(None if beta is None else times(beta, w), None if w_dot is None else w_dot * alpha)
        bent = None if straight is None else straight - mean(straight) - mean(unit * straight) * unit
        if u is not None:
            moved = (mean(g * u) - mu * along) * unit + along * u + mu * across
            bent = -moved if bent is None else bent - moved
        x_second = None if bent is None else r * bent
    w_second = total(None if beta is None else beta * unit, None if u is None else alpha * u)
    firsts = at.bars((x_first, alpha * unit if wants.w_first else None, alpha if wants.b_first else None), likes)
    seconds = at.bars(
        (x_second, w_second if wants.w_second else None, beta if wants.b_second else None),
        (x, inputs.weight, inputs.bias),
    )
    y_dot = None
    if wants.y_dot and z_dot is not None:
        full = z_dot if slope is None else z_dot * slope
        full = full.expand(torch.broadcast_shapes(full.shape, at.rows(a).shape))
        y_dot = at.back(sum_to(full, at.rows(a).shape), a)
    return firsts, seconds, y_dot


def times(t: Tensor, w: Tensor | None) -> Tensor:
    """t ∘ w, w being ones where absent."""
    return t if w is None else t * w
