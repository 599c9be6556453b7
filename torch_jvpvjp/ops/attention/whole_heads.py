"""The pullback of o and ℓ where a tile is a head: in few steps of Python, each of which takes microseconds."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from . import products
from .maps import Operands, Window
from .points import Cotangents
from .stripes import Part
from .tiles import Given, add_to_scores, pulled, softmax_


def pull_whole_heads(
    given: Given, parts: Sequence[Part], window: Window, w: Cotangents, needs: Sequence[bool]
) -> Operands:
    """P = softmax S, v̄ᵀ = wᵀ P, S̄ = P∘(w vᵀ − Σ P∘w vᵀ + λ), q̄ = s S̄ k, k̄ᵀ = s qᵀ S̄, head by head.

    Args:
        given: The arguments, to be multiplied by oneDNN.
        parts: A key head each, all of them in order.
        window: All rows, and the keys that one of them sees.
        w: Cotangents of o, not None, and of ℓ.
        needs: Whether those of query, key and value are wanted.

    Returns:
        The cotangents of query, key and value, None where they are not wanted.
    """
    at, scale, count, seen = given.at, given.scores.scale, len(parts), slice(window.c, window.d)
    whole = (window.c < window.d, *2 * (seen == slice(0, at.k.shape[2]),))
    sums = Operands(*map(_made, at[:3], needs, whole))
    if window.c == window.d:
        return sums
    lse_bar = None if w.lse is None else w.lse.unsqueeze(-1)
    q, w_o, lse_bar, blind, q_bars = (_rows(t, count) for t in (at.q, w.o, lse_bar, given.blind, sums.q))
    q, w_o, lse_bar, blind, q_bars = (_unbound(t, count) for t in (q, w_o, lse_bar, blind, q_bars))
    k, v, k_bars, v_bars = (_keys(t, seen) for t in (at.k, at.v, sums.k, sums.v))
    for i, part in enumerate(parts):
        keys = k[i] if scale == 1 else k[i] * scale
        s = add_to_scores(products.product(q[i], keys).unsqueeze(0), given, part, window)
        p = softmax_(s, blind[i])[0]
        if sums.v is not None:
            v_bars[i].copy_(products.product(w_o[i].t(), p.t()).t())
        if sums.q is None and sums.k is None:
            continue
        s_bar = pulled(given.buffers, p, products.product(w_o[i], v[i]), lse_bar[i])
        if sums.q is not None:
            q_bars[i].copy_(products.product(s_bar, keys.t()))  # the scale is in the keys
        if sums.k is not None:
            k_bars[i].copy_(products.product(q[i].t(), s_bar.t()).mul_(scale).t())
        del s, p, s_bar  # for the next head
    return sums


def _made(like: Tensor, need: bool, whole: bool) -> Tensor | None:
    """Memory for a cotangent, dense, which is 0 unless all of it will be written."""
    if not need:
        return None
    return like.new_empty(like.shape) if whole else like.new_zeros(like.shape)


def _rows(x: Tensor | None, count: int) -> Any:
    """The rows of each key head under one another, (heads, group · L, d); None for None."""
    return None if x is None else x.reshape(count, -1, x.shape[-1])


def _unbound(x: Tensor | None, count: int) -> Sequence[Any]:
    return [None] * count if x is None else x.unbind()


def _keys(x: Tensor | None, seen: slice) -> Sequence[Tensor]:
    """Keys that are seen, of each head, dense: with gaps between rows of W, oneDNN takes a thousand times as long."""
    return () if x is None else [t[seen] for t in x.contiguous().flatten(0, 1).unbind()]
