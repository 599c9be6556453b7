"""Linear cross-entropy on a GPU, first order: chunks of classes, products by cuBLAS, one Triton launch on each chunk.

A chunk of classes has the logits Z_c = X W_cᵀ + b_c of all rows. With L_c = log Σ exp z, ℓ_c = Σ τ (L_c − z) and
σ_c = Σ τ over the chunk, as one launch gives them with their tangents, and each L with what it lacks as rounded:

    L = log Σ exp L_c,                     ℓ = Σ_c ℓ_c + σ_c (L − L_c)
    L̇ = Σ_c exp(L_c − L) L̇_c,              ℓ̇ = Σ_c ℓ̇_c + σ_c (L̇ − L̇_c)
    Z̄_c from L, one launch;                X̄ = Σ_c Z̄_c W_c,   W̄_c = Z̄_cᵀ X,   b̄_c = Σ Z̄_c

Each row of W is read once for the value and once or twice for the pullback, and each of W̄ written once, where chunks
of rows would read and add all of them once for every chunk. What is summed over chunks, three numbers a row and X̄, is
float32, or float64 for float64 input.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._arithmetic import rounding, total, wide
from .._devices import triton_devices
from .._softmaxes.maps import exponentials
from .chunks import Factors, chunk_classes, logits, logits_along
from .rules import op

_DEVICES = triton_devices()


class _Part:
    """The classes from `first` to `stop`, for all rows."""

    def __init__(self, inputs: Any, first: int, stop: int) -> None:
        self.inputs, self.first, self.stop = inputs, first, stop

    def of(self, factors: Factors) -> Factors:
        """The factors of these classes."""
        cut = lambda t: None if t is None else t[self.first : self.stop]  # noqa: E731
        return Factors(factors.x, cut(factors.weight), cut(factors.bias))

    def options(self) -> Any:
        from ...triton_kernels.cross_entropy._targets import Options

        i = self.inputs
        return Options(None, i.ignore_index, i.label_smoothing, i.softcap, self.first, i.weight.shape[0])

    def sigma(self, counts: Tensor, dtype: torch.dtype) -> Tensor:
        """σ_c: 1 − ε where the class of the row is one of these, and their share of ε; 0 where ignored."""
        i = self.inputs
        here = (i.target >= self.first) & (i.target < self.stop)
        even = i.label_smoothing * (self.stop - self.first) / i.weight.shape[0]
        return torch.where(counts, (1 - i.label_smoothing) * here.to(dtype) + even, 0)


def _parts(inputs: Any) -> Iterator[_Part]:
    rows, classes = inputs.input.shape[0], inputs.weight.shape[0]
    size = chunk_classes(rows, classes, inputs.chunk_size)
    for first in range(0, max(classes, 1), size):
        yield _Part(inputs, first, min(first + size, classes))


def _primal(*args: Any) -> tuple[Tensor, ...]:
    """One launch a chunk: ℓ, L and what it lacks."""
    inputs = op.signature.inputs_type(*args)
    return _forward(inputs, Factors(None, None, None))[:3]


def _jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
    """One launch a chunk: ℓ, L and what it lacks, ℓ̇, L̇."""
    *numbers, losses_dot, lse_dot = _forward(primals, Factors(tangents.input, tangents.weight, tangents.bias))
    return tuple(numbers), (losses_dot, lse_dot)


def _forward(inputs: Any, along: Factors) -> tuple[Tensor, ...]:
    from ...triton_kernels.cross_entropy import cross_entropy_forward

    at = Factors(inputs.input, inputs.weight, inputs.bias)
    target = inputs.target.long().reshape(1, -1, 1)
    counts, found = inputs.target != inputs.ignore_index, []
    for part in _parts(inputs):
        z = logits(part.of(at))
        z_dot = logits_along(part.of(at), part.of(along)) if along else None
        numbers = cross_entropy_forward(_chunk(z), target, _chunk(z_dot), None, part.options())
        flat = [None if t is None else t.reshape(-1) for t in numbers]
        found.append((*flat, part.sigma(counts, numbers[0].dtype)))
    return _joined(found, counts)


def _chunk(z: Tensor | None) -> Any:
    return None if z is None else z.contiguous()[None, :, :, None]


def _joined(found: list[tuple[Any, ...]], counts: Tensor) -> tuple[Tensor, ...]:
    """ℓ, L and what it lacks, ℓ̇ and L̇ of all classes from those of the parts, each a row of (parts, N)."""
    loss, lse, rest, loss_dot, lse_dot, sigma = (
        None if column[0] is None else torch.stack(column) for column in zip(*found, strict=True)
    )
    assert loss is not None and lse is not None and rest is not None and sigma is not None
    powers, _, top = exponentials(lse, False, 0)
    powers, dead = powers * rest.exp(), lse == -math.inf
    sums = powers.sum(0, keepdim=True)
    reach = sums.log()
    # A part whose logits are all −∞ has no softmax of its own: what aims at it costs infinitely much, else nothing.
    losses = (torch.where(dead, 0, loss) + _aimed(sigma, (top - lse) + (reach - rest))).sum(0)
    whole, rest = (torch.where(counts, t[0], 0) for t in (top + reach, rounding(top, reach)))
    if loss_dot is None or lse_dot is None:
        return losses, whole, rest, torch.zeros_like(losses), torch.zeros_like(losses)
    moved = torch.where(dead, 0, powers / sums * lse_dot).sum(0)
    losses_dot = torch.where(dead & (sigma == 0), 0, loss_dot + _aimed(sigma, moved - lse_dot)).sum(0)
    return losses, whole, rest, torch.where(counts, losses_dot, 0), torch.where(counts, moved, 0)


def _aimed(sigma: Tensor, gap: Tensor) -> Tensor:
    """σ times a gap that is infinite where all of a part is -∞: what nothing aims at costs nothing."""
    return torch.where(sigma == 0, 0, sigma * gap)


def _vjp(
    cotangents: Any, inputs: Any, outputs: Any, *, needs: tuple[bool, ...], residuals: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """One launch a chunk: Z̄, with L read off the outputs and what it lacks off the residuals; products for the rest."""
    from ...triton_kernels.cross_entropy import cross_entropy_vjp

    at, x = Factors(inputs.input, inputs.weight, inputs.bias), inputs.input
    target = inputs.target.long().reshape(1, -1, 1)
    c, e, *lse = (_number(t, x) for t in (cotangents.y0, cotangents.y1, outputs[1], *residuals))
    x_bar, w_bars, b_bars = None, [], []
    for part in _parts(inputs):
        chunk = part.of(at)
        z_bar, _ = cross_entropy_vjp(c, e, _chunk(logits(chunk)), target, tuple(lse), part.options())
        assert z_bar is not None and chunk.weight is not None
        z_bar = z_bar[0, :, :, 0]
        if needs[0]:
            x_bar = total(x_bar, wide(z_bar @ chunk.weight, x))
        if needs[1]:
            w_bars.append(z_bar.mT @ x)
        if needs[2] and inputs.bias is not None:
            b_bars.append(wide(z_bar, x).sum(0))
    return (
        None if x_bar is None else x_bar.to(x.dtype),
        torch.cat(w_bars).to(inputs.weight.dtype) if w_bars else None,
        torch.cat(b_bars).to(inputs.weight.dtype) if b_bars else None,
        None,
    )


def _number(number: Tensor | None, x: Tensor) -> Any:
    """A number for each row as launchers take it: (1, N, 1), contiguous, in the dtype that is computed in."""
    return None if number is None else wide(number, x).reshape(1, -1, 1).contiguous()


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(_jvp)
    op.vjp.kernel(*_DEVICES)(_vjp)
