"""The second order of cross-entropy of classes on the CPU, in place on what was just made; else the formulas run.

With h = a σ + d and k = b σ + f, where (a, d) and (b, f) are cotangents of losses and of L, and t is a tangent of x:

    J₁ = h p − a τ,      J₂ = k p − b τ + h p (t − Σ p t)
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arithmetic import total, wide
from .._devices import triton_devices
from .cpu import Picked, aim, is_plain, pick, softmax, subtract_target, sum_along
from .rules import op

Bars = tuple[Tensor | None, Tensor | None]


class _Second(NamedTuple):
    """What one call gives; None for what was not wanted, or is zero.

    Attributes:
        first: J₁.
        second: J₂.
        pushed: ℓ̇ and L̇ along t.
    """

    first: Tensor | None
    second: Tensor | None
    pushed: Bars


def _fits(inputs: Any, t: Tensor | None, q_dot: Tensor | None, *bars: Tensor | None) -> bool:
    """Whether target holds classes, logits have no cap, and nothing is batched more than the input is."""
    if inputs.target.is_floating_point() or inputs.softcap is not None or q_dot is not None:
        return False
    lead = inputs.target.shape
    return is_plain(inputs, t) and all(bar is None or bar.shape == lead for bar in bars)


def _second_order(
    inputs: Any, t: Tensor | None, first: Bars, second: Bars, *, wants: tuple[bool, bool, bool]
) -> _Second:
    """J₁, J₂ and, with t, ℓ̇ = σ L̇ − Σ τ t and L̇ = Σ p t."""
    x, dim, picked = inputs.input, inputs.dim, pick(inputs)
    p, t = softmax(wide(x, x), dim), wide(t, x)
    (a, d), (b, f) = (_counted(picked, wide(m, x), wide(n, x)) for m, n in (first, second))
    h, k = _mass(picked, a, d), _mass(picked, b, f)
    j_1 = j_2 = loss_dot = lse_dot = None
    if t is not None and (wants[2] or (wants[1] and h is not None)):
        lse_dot = sum_along(p * t, dim)
    if wants[1]:
        if h is not None and t is not None and lse_dot is not None:
            j_2 = torch.sub(t, lse_dot).mul_(p)
            rest = sum_along(j_2, dim).mul_(h)  # where p is nearly 1, t − L̇ is small and rounded as t is: centred again
            j_2.mul_(h).addcmul_(p, rest.neg_() if k is None else torch.sub(k, rest, out=rest))
        elif k is not None:
            j_2 = p * k
        if j_2 is not None and b is not None:
            subtract_target(j_2, picked, b, dim)
    if wants[0] and h is not None:
        j_1 = p.mul_(h)
        if a is not None:
            subtract_target(j_1, picked, a, dim)
    if wants[2] and t is not None and lse_dot is not None:
        loss_dot = picked.sigma * lse_dot - aim(picked, t, dim)
        loss_dot, lse_dot = _counted(picked, loss_dot, lse_dot)
    return _Second(_finished(picked, j_1, x), _finished(picked, j_2, x), (loss_dot, lse_dot))


def _counted(picked: Picked, *bars: Tensor | None) -> Any:
    """Numbers for each row, 0 where it is ignored, whatever stands there."""
    if picked.counts is None or not picked.ignores:
        return bars
    return tuple([None if bar is None else torch.where(picked.counts, bar, 0) for bar in bars])


def _mass(picked: Picked, a: Tensor | None, d: Tensor | None) -> Tensor | None:
    return total(None if a is None else a * picked.sigma, d)


def _finished(picked: Picked, j: Tensor | None, x: Tensor) -> Tensor | None:
    if j is not None and picked.counts is not None and picked.ignores:
        j.masked_fill_(~picked.counts, 0)
    return None if j is None else j.to(x.dtype)


def _jvp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over forward: ẋ gets J₁, x gets J₂; a, d are the cotangents of ℓ̇, L̇, and b, f those of ℓ, L."""
    b, f, a, d = cotangents
    t = inputs.input_dot
    if not _fits(inputs, t, inputs.target_dot, *cotangents):
        return op.jvp.vjp.op.formula(cotangents, inputs, needs=needs)
    found = _second_order(inputs, t, (a, d), (b, f), wants=(needs[2], needs[0], False))
    return found.second, None, found.first, None


def _vjp_jvp(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """Forward over reverse: x̄ is J₁, its tangent J₂; a, d are the cotangents, and b, f their tangents."""
    first, second = (primals.y0_bar, primals.y1_bar), (tangents.y0_bar, tangents.y1_bar)
    if not _fits(primals, tangents.input, tangents.target, *first, *second):
        return op.vjp.jvp.op.formula(primals, tangents)
    wanted = bool(primals.needs[0])
    found = _second_order(primals, tangents.input, first, second, wants=(wanted, wanted, False))
    return (found.first, None), (found.second, None)


def _vjp_vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """Reverse over reverse: with u the cotangent of x̄, cotangents get ℓ̇, L̇ along u, and x gets h p (u − Σ p u)."""
    u, r = cotangents.input_bar, cotangents.target_bar
    first = inputs.y0_bar, inputs.y1_bar
    if u is None or not _fits(inputs, u, r, *first):
        return op.vjp.vjp.op.formula(cotangents, inputs, needs=needs)
    found = _second_order(inputs, u, first, (None, None), wants=(False, needs[2], needs[0] or needs[1]))
    c_bar, e_bar = (
        None if number is None or bar is None else number.to(bar.dtype)
        for number, bar in zip(found.pushed, first, strict=True)
    )
    return c_bar, e_bar, found.second, None, None, None


if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernels
    op.jvp.vjp.kernel("cpu")(_jvp_vjp)
    op.vjp.jvp.kernel("cpu")(_vjp_jvp)
    op.vjp.vjp.kernel("cpu")(_vjp_vjp)
