"""The linear maps that the rules of RMS norm and layer norm are made of, in plain PyTorch.

Notation, row by row:  P = I − 11ᵀ/n for a norm that centres, else I,  r = (mean((P x)²) + ε)^(-1/2),  x̂ = r P x,  and
⟨·⟩ the mean over the normalised axes; w is the gain as it multiplies. P is symmetric, so layer norm differs from RMS
norm in that its operands are centred, and its cotangents of x too. Tensors are in the dtype the op computes in and
broadcast from the right; results are not yet summed over what was broadcast.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """How rows are normalised.

    Attributes:
        ndim: Number of normalised axes.
        eps: ε.
        centred: Whether P subtracts the mean.
    """

    ndim: int
    eps: float
    centred: bool

    def mean(self, t: Tensor) -> Tensor:
        """⟨t⟩, one per row."""  # noqa: DOC201
        return t.mean(list(range(-self.ndim, 0)), keepdim=True)

    def centre(self, t: Tensor) -> Tensor:
        """P t."""  # noqa: DOC201
        return t - self.mean(t) if self.centred else t

    def unit(self, x: Tensor) -> "Unit":
        """x̂ and r."""  # noqa: DOC201
        x = self.centre(x)
        r = torch.rsqrt(self.mean(x.square()) + self.eps)
        return Unit(x * r, r)

    def unit_about_first(self, x: Tensor) -> "Unit":
        """x̂ and r with the mean about a row's first element, which leaves exactly 0 of a constant row.

        The second order multiplies what rounding leaves of it by r³. P sees neither the shift nor its slope.
        """  # noqa: DOC201
        if self.centred:
            x = x - x[(..., *(slice(1),) * self.ndim)].detach()
        return self.unit(x)


class Unit(NamedTuple):
    """What the maps know of x.

    Attributes:
        x_hat: x̂.
        r: One per row.
    """

    x_hat: Tensor
    r: Tensor


def push(
    at: Unit,
    w: Tensor | None,
    x_dot: Tensor | None,
    w_dot: Tensor | None,
    b_dot: Tensor | None,
    rows: Rows,
) -> Tensor:
    """J(ẋ, ẇ, ḃ) = r (P ẋ − ⟨x̂ ẋ⟩ x̂) ∘ w + x̂ ∘ ẇ + ḃ; one of the three is there."""
    unit, r = at
    y_dot: Tensor | None = None
    if x_dot is not None:
        x_dot = rows.centre(x_dot)
        y_dot = r * (x_dot - unit * rows.mean(unit * x_dot))
        y_dot = y_dot if w is None else y_dot * w
    if w_dot is not None:
        y_dot = unit * w_dot if y_dot is None else y_dot + unit * w_dot
    if b_dot is not None:
        y_dot = b_dot if y_dot is None else y_dot + b_dot
    assert y_dot is not None
    return y_dot


def pull(
    at: Unit, w: Tensor | None, y_bar: Tensor | None, rows: Rows, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Jᵀȳ = (r (P g − ⟨x̂ g⟩ x̂), x̂ ∘ ȳ, ȳ) with g = w ∘ ȳ, not yet summed over what was broadcast."""
    if y_bar is None:
        return None, None, None
    unit, r = at
    x_bar = None
    if needs[0]:
        g = rows.centre(y_bar if w is None else y_bar * w)
        x_bar = r * (g - unit * rows.mean(unit * g))
    return x_bar, unit * y_bar if needs[1] else None, y_bar if needs[2] else None


def bend(
    at: Unit,
    w: Tensor | None,
    x_dot: Tensor | None,
    w_dot: Tensor | None,
    a: Tensor | None,
    rows: Rows,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, None]:
    """∂⟨a, J(ẋ, ẇ, ḃ)⟩/∂(x, w, b), not yet summed over what was broadcast; J does not depend on b.

    With g = a ∘ w, h = a ∘ ẇ and μ = ⟨x̂ ẋ⟩, operands and results centred:

        r (h − ⟨h x̂⟩ x̂) − r² [⟨g ẋ⟩ x̂ + ⟨g x̂⟩ ẋ + μ g − 3 μ ⟨g x̂⟩ x̂],      a ∘ r (ẋ − μ x̂)

    Args:
        at: x̂ and r.
        w: Gain, or None for ones.
        x_dot: ẋ, or None for zero.
        w_dot: ẇ, or None for zero.
        a: Cotangent of ẏ, or None for zero.
        rows: How rows are normalised.
        needs: Whether the cotangents of x and of w are wanted.

    Returns:
        The cotangents, None where zero or not wanted.
    """
    if a is None:
        return None, None, None
    unit, r = at
    x_part: Tensor | None = None
    w_part: Tensor | None = None
    if x_dot is not None:
        x_dot = rows.centre(x_dot)
        mu = rows.mean(unit * x_dot)
        if needs[0]:
            g = rows.centre(a if w is None else a * w)
            along, across = rows.mean(g * unit), rows.mean(g * x_dot)  # ⟨g x̂⟩, ⟨g ẋ⟩
            x_part = -r.square() * ((across - 3 * mu * along) * unit + along * x_dot + mu * g)
        if needs[1]:
            w_part = a * (r * (x_dot - mu * unit))
    if w_dot is not None and needs[0]:
        h = rows.centre(a * w_dot)
        turned = r * (h - unit * rows.mean(h * unit))
        x_part = turned if x_part is None else x_part + turned
    return x_part, w_part, None
