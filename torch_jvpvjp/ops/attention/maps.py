"""The mathematics of attention for some query rows and the keys they may see, in plain PyTorch.

With z = s q kᵀ, S = κ tanh(z / κ) (or z), plus bias, −∞ where a key is not visible, P = softmax S by rows, o = (P∘M) v,
M the mask of dropout over 1 − p, and a dot for a tangent, g = dS/dz:

    Ṡ = g ż + ḃ,    ℓ̇ = Σ P∘Ṡ,    Ṗ = P∘(Ṡ − ℓ̇),    ȯ = (Ṗ∘M) v + (P∘M) v̇

and for cotangents w of o and λ of ℓ = log Σ exp S, D = w·o − λ, dP = M∘(w vᵀ), dS = P∘(dP − D), dz = g dS:

    q̄ = s dz k,    k̄ = s dzᵀ q,    v̄ = (P∘M)ᵀ w,    bias gets dS.

A second-order point is the tangent of that pullback, with u, μ the tangents of w, λ: dṠ = Ṗ∘(dP − D) + P∘(dṖ − Ḋ).

Rows of all query heads that share a key head lie under one another: (…, key heads, group · rows, d) against (…, key
heads, keys, d). Nothing is repeated for a group.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._arithmetic import rounding, times, total
from .dropout import kept


class Operands(NamedTuple):
    """Something for each of query, key, value and bias: the arguments, tangents, cotangents, what is wanted."""

    q: Any = None
    k: Any = None
    v: Any = None
    bias: Any = None


class Scores(NamedTuple):
    """What is done to the scores; nothing here is differentiated.

    Attributes:
        mask: What is visible, bool, (…, b, h, rows, keys), axes of size 1 broadcast; or None.
        slopes: m of ALiBi's −m |position − key|, (…, b, h), or None.
        ranges: First key, end of keys and position of each row, int32, (…, b, 3, rows), or None.
        seed: int64 seed of dropout, () or (n,) under vmap.
        scale: s.
        left: How many keys before its position a row sees; −1: all.
        right: How many after.
        offset: Position of the first row among the keys.
        softcap: κ; 0: none.
        dropout_p: p.
        blocks: Lists of blocks that hold all that is visible, and their sizes, for kernels; or None.
    """

    mask: Tensor | None
    slopes: Tensor | None
    ranges: Tensor | None
    seed: Tensor | None
    scale: float
    left: int
    right: int
    offset: int
    softcap: float
    dropout_p: float
    blocks: tuple[Any, ...] | None = None


class Window(NamedTuple):
    """Query rows a to b against keys c to d."""

    a: Any
    b: Any
    c: Any
    d: Any


_ALL = Window(0, None, 0, None)


class Rows(NamedTuple):
    """Some query rows with what is known of them.

    Attributes:
        q: (…, Hk, G·r, dk).
        k: (…, Hk, n, dk).
        v: (…, Hk, n, dv).
        p: P, (…, Hk, G·r, n).
        lse: ℓ, (…, Hk, G·r, 1), the sum of the following, −∞ where nothing is seen.
        top: max S, or 0.
        reach: log Σ exp(S − max S), or 0.
        g: dS/dz, or None for 1.
        t: tanh(z / κ), or None.
        drop: M, or None for 1.
        scores: What was done to the scores.
        window: Which rows and keys.
        group: G.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    p: Tensor
    lse: Tensor
    top: Tensor
    reach: Tensor
    g: Tensor | None
    t: Tensor | None
    drop: Tensor | None
    scores: Scores
    window: Window
    group: int

    def rest(self) -> Tensor:
        """What ℓ as rounded lacks: exp(S − ℓ) alone is as wrong as ℓ is, whose rounding is relative to ℓ."""
        return rounding(self.top, self.reach)

    def fold(self, x: Tensor) -> Tensor:
        """These rows of (…, Hq, L, d), in the layout (…, Hk, G·r, d)."""
        return fold(x, self.k.shape[-3], self.window.a, self.window.b)

    def keys(self, x: Tensor) -> Tensor:
        """These keys of (…, Hk, Lk, d)."""
        return cut(x, -2, self.window.c, self.window.d)

    def unfold(self, x: Tensor) -> Tensor:
        """The layout (…, Hk, G·r, d) as (…, Hq, r, d)."""
        if self.group == 1:
            return x
        *lead, heads, rows, width = x.shape
        return x.reshape(*lead, heads * self.group, rows // self.group, width)


class Moved(NamedTuple):
    """Tangents of those rows: ż, Ṡ − ℓ̇ and ℓ̇; None where zero."""

    z: Tensor | None
    s: Tensor | None
    lse: Tensor | None


def cut(x: Tensor, axis: int, a: Any, b: Any) -> Tensor:
    """The part of a tensor from a to b along an axis; itself where that is all of it."""
    return x if a == 0 and (b is None or b == x.shape[axis]) else x.narrow(axis, a, b - a)


def fold(x: Tensor, heads: int, a: Any, b: Any) -> Tensor:
    """Rows a to b of (…, Hq, L, d) as (…, Hk, G·r, d)."""
    x = cut(x, -2, a, b)
    if x.shape[-3] == heads:
        return x
    *lead, queries, rows, width = x.shape
    return x.reshape(*lead, heads, queries // heads * rows, width)


def fold_scores(x: Tensor, heads: int, group: int, window: Window, shape: Any) -> Tensor:
    """A part of (…, Hq or 1, Lq or 1, Lk or 1), such as a bias, as it broadcasts with (…, Hk, G·r, n)."""
    x = x if x.shape[-2] == 1 else cut(x, -2, window.a, window.b)
    x = x if x.shape[-1] == 1 else cut(x, -1, window.c, window.d)
    if group == 1:
        return x
    if x.shape[-3] == 1 and x.shape[-2] == 1:
        return x
    by_head = x.unsqueeze(-3) if x.shape[-3] == 1 else x.reshape(*x.shape[:-3], heads, group, *x.shape[-2:])
    *lead, count, _, _, width = by_head.shape
    return by_head.expand(*lead, count, group, shape[-2] // group, width).reshape(*lead, count, shape[-2], width)


def sum_scores(rows: Rows, x: Tensor, like: Tensor) -> Tensor:
    """The pullback of `fold_scores`, up to the sums over axes in front: a part of the cotangent of a bias like this."""
    x = rows.unfold(x)
    axes = [axis for axis in (-3, -2, -1) if like.shape[axis] == 1]
    return x.sum(axes, keepdim=True) if axes else x


def look_at(at: Operands, scores: Scores, window: Window) -> Rows:
    """Scores and probabilities of some rows. The operands are in the dtype of the computation."""
    heads = at.k.shape[-3]
    group = at.q.shape[-3] // heads if heads else 1
    q = fold(at.q, heads, window.a, window.b)
    k, v = cut(at.k, -2, window.c, window.d), cut(at.v, -2, window.c, window.d)
    s, g, t = torch.matmul(q, k.mT) * scores.scale, None, None
    if scores.softcap > 0:
        t = torch.tanh(s / scores.softcap)
        s, g = scores.softcap * t, 1 - t * t
    if at.bias is not None:
        s = s + fold_scores(at.bias, heads, group, window, s.shape)
    if scores.slopes is not None:
        s = s + fold_scores(_alibi(scores, window, q), heads, group, _ALL, s.shape)
    visible = _visible(scores, heads, group, window, s)
    if visible is not None:
        s = torch.where(visible, s, -torch.inf)
    p, lse, top, reach = _softmax(s)
    drop = None
    if scores.dropout_p > 0:
        keep = fold_scores(_survivors(scores, at.q, window), heads, group, _ALL, s.shape)
        drop = keep.to(s.dtype) * (1 / (1 - scores.dropout_p) if scores.dropout_p < 1 else 0.0)
    return Rows(q, k, v, p, lse, top, reach, g, t, drop, scores, window, group)


def value(rows: Rows) -> Tensor:
    """The output o = (P∘M) v."""
    return torch.matmul(_times(rows.p, rows.drop), rows.v)


def move(rows: Rows, dots: Operands) -> Moved:
    """ż, Ṡ − ℓ̇ and ℓ̇."""
    z = None if dots.q is None else torch.matmul(rows.fold(dots.q), rows.k.mT)
    if dots.k is not None:
        z = total(z, torch.matmul(rows.q, rows.keys(dots.k).mT))
    z = None if z is None else z * rows.scores.scale
    s = z if rows.g is None else times(z, rows.g)
    if dots.bias is not None:
        s = total(s, fold_scores(dots.bias, rows.k.shape[-3], rows.group, rows.window, rows.p.shape))
    if s is None:
        return Moved(z, None, None)
    lse = (rows.p * s).sum(-1, keepdim=True)
    return Moved(z, s - lse, lse)


def push(rows: Rows, moved: Moved, v_dot: Tensor | None) -> Tensor | None:
    """The tangent ȯ."""
    o_dot = None if moved.s is None else torch.matmul(_times(rows.p * moved.s, rows.drop), rows.v)
    return o_dot if v_dot is None else total(o_dot, torch.matmul(_times(rows.p, rows.drop), rows.keys(v_dot)))


class Adjoint(NamedTuple):
    """Cotangents w of o, (…, Hk, G·r, dv), and λ of ℓ, (…, Hk, G·r, 1), in the layout of the rows; None for zero."""

    o: Tensor | None
    lse: Tensor | None


class Pulled(NamedTuple):
    """dP − D, dS and dz of a cotangent; None for zero."""

    inner: Tensor | None
    s: Tensor | None
    z: Tensor | None


def pull_scores(rows: Rows, w: Adjoint, o: Tensor | None) -> Pulled:
    """dS = P∘(dP − D) and dz = g dS. D is Σ P∘dP, read off o where that is there."""
    inner = None
    if w.o is not None:
        inner = _times(torch.matmul(w.o, rows.v.mT), rows.drop)
        inner = inner - ((rows.p * inner).sum(-1, keepdim=True) if o is None else (w.o * o).sum(-1, keepdim=True))
    inner = total(inner, w.lse)
    if inner is None:
        return Pulled(None, None, None)
    s = rows.p * inner
    return Pulled(inner, s, _times(s, rows.g))


def pull_moved_scores(
    rows: Rows, moved: Moved, v_dot: Tensor | None, w: Adjoint, pulled: Pulled, u: Adjoint
) -> tuple[Tensor | None, Tensor | None]:
    """dṠ = Ṗ∘(dP − D) + P∘(dṖ − Ḋ) and dż. Since Ḋ is the tangent of D, the rows of dṠ sum to μ."""
    inner = None
    if u.o is not None:
        inner = torch.matmul(u.o, rows.v.mT)
    if w.o is not None and v_dot is not None:
        inner = total(inner, torch.matmul(w.o, rows.keys(v_dot).mT))
    inner = None if inner is None else _times(inner, rows.drop)
    turned = times(moved.s, pulled.inner)
    inner = total(inner, turned)
    if inner is not None:
        inner = inner - (rows.p * inner).sum(-1, keepdim=True)
    inner = total(inner, u.lse)
    s = None if inner is None else rows.p * inner
    z = None if s is None else _times(s, rows.g)
    if rows.t is not None and moved.z is not None and pulled.s is not None:
        assert rows.g is not None
        z = total(z, pulled.s * (-2 / rows.scores.softcap) * rows.t * rows.g * moved.z)  # ġ dS
    return s, z


def _times(x: Tensor, factor: Tensor | None) -> Tensor:
    return x if factor is None else x * factor


def _softmax(s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P, ℓ and its summands; a row that sees nothing has P = 0 and ℓ = −∞, and no derivative."""
    if s.shape[-1] == 0:
        zero = s.new_zeros((*s.shape[:-1], 1))
        return s, torch.full_like(zero, -torch.inf), zero, zero
    top = s.detach().amax(-1, keepdim=True)
    top = torch.where(top == -torch.inf, 0.0, top)
    e = torch.exp(s - top)
    mass = e.sum(-1, keepdim=True)
    empty = mass == 0
    mass = torch.where(empty, 1.0, mass)
    reach = torch.log(mass)
    return e / mass, torch.where(empty, -torch.inf, reach + top), top, reach


def _positions(scores: Scores, window: Window, like: Tensor) -> Tensor:
    """Position of each row among the keys, (…, b, 1, r, 1)."""
    if scores.ranges is not None:
        return _range(scores, 2, window).long()
    return torch.arange(window.a, window.b, device=like.device)[:, None] + scores.offset


def _range(scores: Scores, which: int, window: Window) -> Tensor:
    """First keys, ends or positions of these rows, (…, b, 1, r, 1)."""
    assert scores.ranges is not None
    return cut(scores.ranges.select(-2, which), -1, window.a, window.b)[..., None, :, None]


def _keys(window: Window, like: Tensor) -> Tensor:
    return torch.arange(window.c, window.d, device=like.device)


def _alibi(scores: Scores, window: Window, like: Tensor) -> Tensor:
    """−m |position − key|, (…, b, Hq, r, n)."""
    assert scores.slopes is not None
    distance = (_positions(scores, window, like) - _keys(window, like)).abs()
    return -scores.slopes[..., None, None].to(like.dtype) * distance


def _visible(scores: Scores, heads: int, group: int, window: Window, like: Tensor) -> Tensor | None:
    """Which keys rows see, broadcasting with (…, Hk, G·r, n); None for all."""
    seen: Tensor | None = None
    if scores.ranges is not None:
        keys = _keys(window, like)
        seen = (keys >= _range(scores, 0, window)) & (keys < _range(scores, 1, window))
    elif scores.left >= 0 or scores.right >= 0:
        ahead = _keys(window, like) - _positions(scores, window, like)
        seen = ahead <= scores.right if scores.right >= 0 else None
        if scores.left >= 0:
            near = ahead >= -scores.left
            seen = near if seen is None else seen & near
        assert seen is not None
        seen = seen[None]
    found = None if seen is None else fold_scores(seen, heads, group, _ALL, like.shape)
    if scores.mask is not None:
        mask = fold_scores(scores.mask, heads, group, window, like.shape)
        found = mask if found is None else found & mask
    return found


def _survivors(scores: Scores, q: Tensor, window: Window) -> Tensor:
    """Which elements dropout keeps, (…, B, Hq, r, n)."""
    assert scores.seed is not None
    device = q.device
    batch, heads = q.shape[-4], q.shape[-3]
    numbers = torch.arange(batch * heads, device=device).view(batch, heads, 1, 1)
    rows = torch.arange(window.a, window.b, device=device)[:, None]
    seed = scores.seed if scores.seed.dim() == 0 else scores.seed.reshape(-1, 1, 1, 1, 1)
    return kept(seed, scores.dropout_p, numbers, rows, _keys(window, q))
