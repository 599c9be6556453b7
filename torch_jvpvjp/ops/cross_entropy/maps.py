"""The linear maps that the rules of cross-entropy are made of, in plain PyTorch.

One row x of n logits: z = x or κ tanh(x / κ), L = log Σ exp z, p = exp(z − L); τ the weights that its target gives the
classes, σ = Σ τ. A row that is ignored has τ = 0 and p = 0. Tensors are in the dtype the op computes in and broadcast
from the right; results are not yet summed over what was broadcast.

L is the sum of the row's maximum t and r = log Σ exp(z − t), and rounded to the precision of t: at logits of 100 the
rounding of L is a relative error of 100 eps in exp(z − L). So p is exp(z − t) / Σ exp(z − t), and L − z is (t − z) + r.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arithmetic import rounding, total, wide
from .._softmaxes.maps import exponentials


class Rows(NamedTuple):
    """What the maps read.

    Attributes:
        z: Logits, capped.
        slope: z′, or None for 1.
        curve: z″, or None for 0.
        top: t, the row's maximum, 0 where that is -∞.
        reach: r = log Σ exp(z − t).
        p: Probabilities.
        tau: τ.
        per_probability: ∂τ/∂q = w (1 − ε).
        counts: Which rows count, or None for all.
        dim: The axis of the classes.
    """

    z: Tensor
    slope: Tensor | None
    curve: Tensor | None
    top: Tensor
    reach: Tensor
    p: Tensor
    tau: Tensor
    per_probability: Tensor | float
    counts: Tensor | None
    dim: int

    @property
    def lse(self) -> Tensor:
        """L, not yet 0 for ignored rows."""
        return self.top + self.reach

    @property
    def gap(self) -> Tensor:
        """L − z."""
        return (self.top - self.z) + self.reach

    def sum(self, tensor: Tensor) -> Tensor:
        """Σ over the classes."""
        return tensor.sum(self.dim, keepdim=True)


def rows_of(inputs: Any) -> Rows:
    """Everything that the maps read, from the arguments of the op."""
    x, dim, kappa = wide(inputs.input, inputs.input), inputs.dim, inputs.softcap
    slope = curve = None
    z = x
    if kappa is not None:
        u = torch.tanh(x / kappa)
        z, slope = kappa * u, 1 - u * u
        curve = -2 / kappa * u * slope
    n = x.shape[dim]
    epsilon, weight = inputs.label_smoothing, wide(inputs.weight, inputs.input)
    target, counts = inputs.target, None
    sharp = 1 - epsilon
    per_probability = sharp if weight is None else weight * sharp
    if target.is_floating_point():
        tau = per_probability * wide(target, inputs.input)
    else:
        counts = target != inputs.ignore_index
        classes = torch.arange(n, device=x.device).reshape(n, *(1,) * (-dim - 1))
        hit = classes == target
        tau = hit.to(x.dtype) * sharp if weight is None else torch.where(hit, per_probability, 0)
    if epsilon:
        tau = tau + (epsilon / n if weight is None else weight * (epsilon / n))
    if counts is not None:
        tau = torch.where(counts, tau, 0)
    powers, sums, top = exponentials(z, False, dim)
    p = powers / sums
    if counts is not None:
        p = torch.where(counts, p, 0)
        if slope is not None and curve is not None:  # whatever stands in an ignored row
            slope, curve = torch.where(counts, slope, 0), torch.where(counts, curve, 0)
    return Rows(z, slope, curve, top, sums.log(), p, tau, per_probability, counts, dim)


def row_results(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """ℓ, L, and what L lacks of t + r, all 0 for an ignored row."""
    return losses(rows), counted(rows, rows.lse), counted(rows, rounding(rows.top, rows.reach))


def counted(rows: Rows, number: Tensor | None) -> Any:
    """A number for each row, 0 where ignored."""
    return number if rows.counts is None or number is None else torch.where(rows.counts, number, 0)


def losses(rows: Rows) -> Tensor:
    """ℓ = Σ τ (L − z); a class that no target aims at costs nothing even at -∞, unless probabilities say so."""
    terms = rows.tau * rows.gap
    return rows.sum(terms if rows.counts is None else torch.where(rows.tau != 0, terms, 0))


def times_slope(rows: Rows, tensor: Tensor) -> Tensor:
    """Multiply by z′."""
    return tensor if rows.slope is None else tensor * rows.slope


def push(rows: Rows, x_dot: Tensor | None, q_dot: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """ℓ̇ = Σ τ (L̇ − ż) + τ̇ (L − z) and L̇ = Σ p ż."""
    lse_dot = by_x = by_q = None
    if x_dot is not None:
        z_dot = times_slope(rows, x_dot)
        lse_dot = rows.sum(rows.p * z_dot)
        by_x = rows.sum(rows.tau) * lse_dot - rows.sum(rows.tau * z_dot)
    if q_dot is not None:
        by_q = rows.sum(rows.per_probability * q_dot * rows.gap)
    return total(by_x, by_q), lse_dot


def pull(rows: Rows, c: Tensor | None, e: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """x̄ = ((c σ + e) p − c τ) z′ and q̄ = w (1 − ε) c (L − z)."""
    by_loss = q_bar = None
    c, e = counted(rows, c), counted(rows, e)  # a mean over nothing has ∞ there
    if c is not None:
        by_loss = c * (rows.sum(rows.tau) * rows.p - rows.tau)
        q_bar = rows.per_probability * c * rows.gap
    x_bar = total(by_loss, None if e is None else e * rows.p)
    return None if x_bar is None else times_slope(rows, x_bar), q_bar


def bend(
    rows: Rows, x_dot: Tensor | None, q_dot: Tensor | None, a: Tensor | None, d: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """∂(a ℓ̇ + d L̇)/∂(x, q), with h = a σ + d.

        [a σ̇ p + h p (ż − L̇) − a τ̇] z′ + (h p − a τ) z″ ẋ,      w (1 − ε) a (L̇ − ż)

    Args:
        rows: The rows.
        x_dot: ẋ, or None for zero.
        q_dot: q̇, or None for zero.
        a: Cotangent of ℓ̇, or None for zero.
        d: Cotangent of L̇, or None for zero.

    Returns:
        The two, None where zero.
    """
    x_part = q_part = None
    a, d = counted(rows, a), counted(rows, d)
    if x_dot is not None and (a is not None or d is not None):
        z_dot = times_slope(rows, x_dot)
        apart = z_dot - rows.sum(rows.p * z_dot)  # ż − L̇; where p is nearly 1 that is small, and rounded as ż is, ...
        apart = apart - rows.sum(rows.p * apart)  # ... so it is centred again
        along: Any = total(None if a is None else a * rows.sum(rows.tau), d)
        x_part = times_slope(rows, along * rows.p * apart)
        if rows.curve is not None:
            pulled = along * rows.p
            pulled = pulled if a is None else pulled - a * rows.tau
            x_part = x_part + pulled * rows.curve * x_dot
        q_part = None if a is None else -rows.per_probability * a * apart
    if q_dot is not None and a is not None:
        tau_dot = rows.per_probability * q_dot
        x_part = total(x_part, times_slope(rows, a * (rows.sum(tau_dot) * rows.p - tau_dot)))
    return x_part, q_part
