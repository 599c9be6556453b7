"""The linear maps that the rules of RMS norm are made of, in plain PyTorch.

Notation, row by row:  r = (mean(x²) + ε)^(-1/2),  x̂ = r x,  and ⟨·⟩ the mean over the normalised axes. Tensors are in
the dtype the op computes in and broadcast from the right; results are not yet summed over what was broadcast.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def inverse_rms(x: Tensor, ndim: int, eps: float) -> Tensor:
    """r = (mean(x²) + ε)^(-1/2), one per row."""
    return torch.rsqrt(x.square().mean(axes(ndim), keepdim=True) + eps)


def push(x: Tensor, w: Tensor | None, x_dot: Tensor | None, w_dot: Tensor | None, ndim: int, eps: float) -> Tensor:
    """J(ẋ, ẇ) = r (ẋ − ⟨x̂ ẋ⟩ x̂) ∘ w + x̂ ∘ ẇ."""
    r = inverse_rms(x, ndim, eps)
    unit = x * r
    parts = []
    if x_dot is not None:
        moved = r * (x_dot - unit * (unit * x_dot).mean(axes(ndim), keepdim=True))
        parts.append(moved if w is None else moved * w)
    if w_dot is not None:
        parts.append(unit * w_dot)
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def pull(
    x: Tensor, w: Tensor | None, y_bar: Tensor | None, ndim: int, eps: float, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Jᵀȳ = (r (g − ⟨x̂ g⟩ x̂), x̂ ∘ ȳ) with g = w ∘ ȳ, not yet summed over what was broadcast."""
    if y_bar is None:
        return None, None
    r = inverse_rms(x, ndim, eps)
    unit, x_bar = x * r, None
    if needs[0]:
        g = y_bar if w is None else y_bar * w
        x_bar = r * (g - unit * (unit * g).mean(axes(ndim), keepdim=True))
    return x_bar, unit * y_bar if needs[1] else None


def bend(
    x: Tensor,
    w: Tensor | None,
    x_dot: Tensor | None,
    w_dot: Tensor | None,
    a: Tensor | None,
    ndim: int,
    eps: float,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None]:
    """∂⟨a, J(ẋ, ẇ)⟩/∂(x, w), not yet summed over what was broadcast.

    In unit coordinates (x̂ = r x) the formula of the public docstring reads, with g = a∘w, h = a∘ẇ and μ = ⟨x̂ ẋ⟩:

        r (h − ⟨h x̂⟩ x̂) − r² [⟨g ẋ⟩ x̂ + ⟨g x̂⟩ ẋ + μ g − 3 μ ⟨g x̂⟩ x̂],      a ∘ r (ẋ − μ x̂)

    Args:
        x: Input.
        w: Weight, or None for ones.
        x_dot: ẋ, or None for zero.
        w_dot: ẇ, or None for zero.
        a: Cotangent of ẏ, or None for zero.
        ndim: Number of normalised axes.
        eps: ε.
        needs: Whether the cotangents of x and of w are wanted.

    Returns:
        The two cotangents, None where zero or not wanted.
    """
    if a is None:
        return None, None
    over = axes(ndim)
    r = inverse_rms(x, ndim, eps)
    unit = x * r
    x_part: Tensor | None = None
    w_part: Tensor | None = None
    mu = None if x_dot is None else (unit * x_dot).mean(over, keepdim=True)
    if needs[0]:
        if w_dot is not None:
            h = a * w_dot
            x_part = r * (h - unit * (h * unit).mean(over, keepdim=True))
        if x_dot is not None and mu is not None:
            g = a if w is None else a * w
            along = (g * unit).mean(over, keepdim=True)  # ⟨g x̂⟩
            across = (g * x_dot).mean(over, keepdim=True)  # ⟨g ẋ⟩
            curved = r.square() * ((across - 3 * mu * along) * unit + along * x_dot + mu * g)
            x_part = -curved if x_part is None else x_part - curved
    if needs[1] and x_dot is not None and mu is not None:
        w_part = a * (r * (x_dot - mu * unit))
    return x_part, w_part


def axes(ndim: int) -> list[int]:
    """The last ndim axes."""
    return list(range(-ndim, 0))
