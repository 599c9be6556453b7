"""The pullback of o and ℓ where a tile is a head: in few steps of Python, each of which takes microseconds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import products
from .maps import Operands, Window
from .points import Cotangents
from .stripes import Part
from .tiles import Given, add_to_scores, pulled, softmax_


def pull_whole_heads(
    given: Given, parts: Sequence[Part], window: Window, w: Cotangents, needs: Sequence[bool]
) -> Operands:
    """P = softmax S, v̄ = Pᵀ w, S̄ = P∘(w vᵀ − Σ P∘w vᵀ + λ), q̄ = s S̄ k, k̄ = s S̄ᵀ q, head by head.

    Args:
        given: The arguments, to be multiplied by oneDNN.
        parts: A key head each, all of them in order.
        window: All rows, and the keys that one of them sees.
        w: Cotangents of o, not None, and of ℓ.
        needs: Whether those of query, key and value are wanted.

    Returns:
        The cotangents of query, key and value, None where they are not wanted.
    """
    at, scale, seen = given.at, given.scores.scale, slice(window.c, window.d)
    wanted = [t if need else None for t, need in zip(at[:3], needs, strict=False)]
    if window.c == window.d:
        return Operands(*(None if t is None else torch.zeros_like(t) for t in wanted))
    makers = [torch.empty_like, *2 * [torch.empty_like if seen == slice(0, at.k.shape[2]) else torch.zeros_like]]
    sums = Operands(*(None if t is None else make(t) for make, t in zip(makers, wanted, strict=True)))
    heads = at.k.shape[1]
    q_bars, k_bars, v_bars = (None if t is None else _heads(t, heads) for t in sums[:3])
    lse_bar = None if w.lse is None else w.lse.unsqueeze(-1)
    q, w_o, lse_bar, blind = (_rows(t, heads, len(parts)) for t in (at.q, w.o, lse_bar, given.blind))
    k, v = ([t[seen] for t in _matrices(x)] for x in (at.k if scale == 1 else at.k * scale, at.v))
    for i, part in enumerate(parts):
        s = add_to_scores(products.product(q[i], k[i]).unsqueeze(0), given, part, window)
        p = softmax_(s, blind[i])[0]
        if v_bars is not None:
            v_bars[i][0, seen].copy_(products.product(w_o[i].t(), p.t()).t())
        if q_bars is None and k_bars is None:
            continue
        s_bar = pulled(given.buffers, p, products.product(w_o[i], v[i]), lse_bar[i])
        if q_bars is not None:
            q_bars[i].copy_(products.product(s_bar, k[i].t()).view(q_bars[i].shape))  # the scale is in the keys
        if k_bars is not None:
            k_bars[i][0, seen].copy_(products.product(q[i].t(), s_bar.t()).mul_(scale).t())
        del s, p, s_bar  # for the next head
    return sums


def _heads(x: Tensor, heads: int) -> list[Tensor]:
    """What lies at each key head of (B, H, L, d), (H / heads, L, d) each, as views."""
    return [head for one in x.unflatten(1, (heads, -1)).unbind() for head in one.unbind()]


def _rows(x: Any, heads: int, count: int) -> Sequence[Any]:
    """The rows of each key head under one another, (group · L, d); None for None."""
    if x is None:
        return [None] * count
    return x.unflatten(1, (heads, -1)).reshape(count, -1, x.shape[-1]).unbind()


def _matrices(x: Tensor) -> Sequence[Tensor]:
    """Keys of each head, dense: with gaps between rows of W, oneDNN takes a thousand times as long."""
    return x.contiguous().flatten(0, 1).unbind()
