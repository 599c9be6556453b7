"""The oracle of attention's kernels: whole matrices in plain PyTorch, differentiated by torch.func, and its problems.

Written from the definition, not from the rules: nothing of `torch_jvpvjp.ops` is used.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_jvpvjp.triton_kernels.attention import Blocks, Operands, Scores

NAMES = ("q", "k", "v", "bias")


@dataclass
class Problem:
    """A point, a direction, cotangents and their tangents, and what is done to the scores; float64 as drawn."""

    at: Operands
    dots: Operands
    w: Tensor | None
    lse_bar: Tensor | None
    u: Tensor | None
    lse_bar_dot: Tensor | None
    options: Scores

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers rounded to a dtype; what belongs to ℓ is float32 or wider."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        cast = lambda t, d=dtype: None if t is None else t.to(d)  # noqa: E731
        return Problem(
            Operands(*map(cast, self.at)), Operands(*map(cast, self.dots)), cast(self.w), cast(self.lse_bar, wide),
            cast(self.u), cast(self.lse_bar_dot, wide), self.options,
        )  # fmt: skip


def draw_problem(
    lq: int,
    lk: int,
    dk: int = 16,
    dv: int | None = None,
    heads: tuple[int, int] = (1, 1),
    batch: int = 1,
    n: int = 1,
    bias: tuple[int, int, int, int] | None = None,
    tangents: int | None = None,
    device: str = "cpu",
    **options: Any,
) -> Problem:
    """A problem of some sizes.

    Args:
        lq: Rows.
        lk: Keys.
        dk: Head size of queries and keys.
        dv: Head size of values; dk if None.
        heads: Of queries, of keys.
        batch: B.
        n: N of the primals.
        bias: Shape of an additive mask, or None.
        tangents: N of directions and cotangents; n if None.
        device: Where the tensors go.
        **options: Fields of `Scores`; scale defaults to 1/√dk.

    Returns:
        The problem.
    """
    dv, t = dk if dv is None else dv, n if tangents is None else tangents
    normal = lambda *shape: torch.randn(*shape, dtype=torch.float64, device=device)  # noqa: E731
    made = lambda m: Operands(  # noqa: E731
        normal(m, batch, heads[0], lq, dk),
        normal(m, batch, heads[1], lk, dk),
        normal(m, batch, heads[1], lk, dv),
        None if bias is None else normal(m, *bias),
    )
    o, lse = (t, batch, heads[0], lq, dv), (t, batch, heads[0], lq)
    scores = Scores(options.pop("scale", dk**-0.5), **options)
    return Problem(made(n), made(t), normal(*o), normal(*lse), normal(*o), normal(*lse), scores)


# ---- what is done to the scores --------------------------------------------------------------------------------------


def _positions(options: Scores, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Position of each row, (…, rows, 1), and which keys it sees, (…, rows, columns)."""
    keys = torch.arange(columns)
    if options.ranges is not None:
        begin, end, position = options.ranges.cpu().long()[:, None, :, :, None].unbind(2)
        return position, (keys >= begin) & (keys < end)
    position = torch.arange(rows)[:, None] + options.offset
    seen = torch.ones(rows, columns, dtype=torch.bool)
    if options.left >= 0:
        seen = seen & (keys >= position - options.left)
    if options.right >= 0:
        seen = seen & (keys <= position + options.right)
    return position, seen


def survivors(problem: Problem) -> Tensor | None:
    """The mask of dropout over 1 − p, (n, batch, heads, rows, columns): Philox 4x32-10 in unsigned words of 64 bits."""
    options, (_, batch, heads, rows, _), columns = problem.options, problem.at.q.shape, problem.at.k.shape[-2]
    if options.seed is None:
        return None
    word, low32 = np.uint64, np.uint64(0xFFFFFFFF)
    masks = []
    for seed in options.seed.cpu().numpy().astype(np.uint64):
        c2, c1, c0 = np.meshgrid(*(np.arange(s, dtype=word) for s in (batch * heads, rows, columns)), indexing="ij")
        c3, k0, k1 = np.zeros_like(c0), seed & low32, seed >> word(32)
        for _ in range(10):
            a, b = c0 * word(0xD2511F53), c2 * word(0xCD9E8D57)
            c0, c1, c2, c3 = (b >> word(32)) ^ c1 ^ k0, b & low32, (a >> word(32)) ^ c3 ^ k1, a & low32
            k0, k1 = (k0 + word(0x9E3779B9)) & low32, (k1 + word(0xBB67AE85)) & low32
        signed = c0.astype(np.uint32).view(np.int32)
        uniform = np.where(signed < 0, -signed - 1, signed).astype(np.float32) * np.float32(4.6566127342e-10)
        masks.append(uniform.reshape(batch, heads, rows, columns) >= np.float32(options.dropout_p))
    return torch.from_numpy(np.stack(masks)).double().to(problem.at.q.device) / (1 - options.dropout_p)


def attention(
    options: Scores, drop: Tensor | None, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """o and ℓ from whole matrices of scores, in the dtype that the arguments have; a row that sees nothing gives 0."""
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, 2), v.repeat_interleave(group, 2)
    s = q @ k.mT * options.scale
    if options.softcap:
        s = torch.tanh(s / options.softcap) * options.softcap
    position, seen = (t.to(q.device) for t in _positions(options, s.shape[-2], s.shape[-1]))
    if options.mask is not None:
        seen = seen & options.mask
    if bias is not None:
        hidden = bias.detach() == -torch.inf
        seen = seen & ~hidden
        s = s + torch.where(hidden, 0.0, bias)
    if options.slopes is not None:
        distance = (position - torch.arange(s.shape[-1], device=q.device)).abs()
        s = s - options.slopes[:, :, None, None].to(s.dtype) * distance
    seen = seen.expand(s.shape)
    if s.shape[-1] == 0:
        return q.new_zeros(*s.shape[:-1], v.shape[-1]), s.new_full(s.shape[:-1], -torch.inf)
    top = torch.where(seen, s.detach(), -torch.inf).amax(-1, keepdim=True).clamp(min=-1e30)
    e = torch.where(seen, torch.exp(torch.where(seen, s, top) - top), 0.0)
    mass = e.sum(-1, keepdim=True)
    empty = mass == 0
    mass = torch.where(empty, 1.0, mass)
    p = e / mass
    if drop is not None:
        p = p * drop.to(s.dtype)
    return p @ v, torch.where(empty, -torch.inf, torch.log(mass) + top).squeeze(-1)


# ---- derivatives, by torch.func --------------------------------------------------------------------------------------


def _filled(problem: Problem, n: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Arguments that there are and their tangents, zeros where missing, with n along the first axis."""
    here = [i for i, t in enumerate(problem.at) if t is not None]
    wide = lambda t: t.expand(n, *t.shape[1:]).contiguous()  # noqa: E731
    at = tuple(wide(problem.at[i]) for i in here)
    dots = tuple(
        torch.zeros_like(x) if problem.dots[i] is None else wide(problem.dots[i]) for i, x in zip(here, at, strict=True)
    )
    return at, dots


def _function(problem: Problem) -> Callable[..., tuple[Tensor, Tensor]]:
    """Attention as a function of the arguments that there are."""
    return functools.partial(attention, problem.options, survivors(problem))


def _size(problem: Problem) -> int:
    tensors = (*problem.at, *problem.dots, problem.w, problem.u, problem.lse_bar, problem.options.seed)
    return max(t.shape[0] for t in tensors if t is not None)


def forward(problem: Problem) -> tuple[Tensor, ...]:
    """o, ℓ and their tangents."""
    at, dots = _filled(problem, _size(problem))
    out, out_dot = torch.func.jvp(_function(problem), at, dots)
    return *out, *(torch.nan_to_num(t) for t in out_dot)


def second_order(problem: Problem) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Cotangents of the arguments, and their tangents in the direction of the dots, u and μ: forward over reverse."""
    n = _size(problem)
    at, dots = _filled(problem, n)
    function = _function(problem)
    o, lse = function(*at)

    def filled(t: Tensor | None, like: Tensor) -> Tensor:
        return torch.zeros_like(like).nan_to_num() if t is None else t.expand(like.shape).contiguous()

    w, u = (
        (filled(problem.w, o), filled(problem.lse_bar, lse)),
        (filled(problem.u, o), filled(problem.lse_bar_dot, lse)),
    )

    def pullback(w: tuple[Tensor, Tensor], *xs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(function, *xs)[1](w)

    return torch.func.jvp(pullback, (w, *at), (u, *dots))


def pulled_back_jvp(problem: Problem) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Cotangents of tangents and of arguments, from w, λ of ȯ, ℓ̇ and u, μ of o, ℓ: reverse over forward."""
    at, dots = _filled(problem, _size(problem))
    xs = [t.detach().clone().requires_grad_() for t in (*at, *dots)]
    half = len(at)
    out, out_dot = torch.func.jvp(_function(problem), tuple(xs[:half]), tuple(xs[half:]))
    pairs = zip((*out_dot, *out), (problem.w, problem.lse_bar, problem.u, problem.lse_bar_dot), strict=True)
    loss = sum((y.nan_to_num() * c).sum() for y, c in pairs if c is not None)
    unused = torch.autograd.grad(loss, xs, allow_unused=True)  # pyright: ignore[reportArgumentType]
    grads = tuple(torch.zeros_like(x) if g is None else g for x, g in zip(xs, unused, strict=True))
    return grads[half:], grads[:half]


def blocks_of(visible: Tensor, q_block: int, kv_block: int) -> Blocks:
    """The lists of blocks that hold something visible, from (b, h, rows, columns)."""
    b, h, rows, columns = visible.shape
    r, c = -(-rows // q_block), -(-columns // kv_block)
    padded = torch.zeros(b, h, r * q_block, c * kv_block, dtype=torch.bool)
    padded[..., :rows, :columns] = visible
    some = padded.view(b, h, r, q_block, c, kv_block).any(-1).any(-2)

    def lists(there: Tensor) -> tuple[Tensor, Tensor]:
        order = torch.sort(there.int(), dim=-1, descending=True, stable=True).indices
        return there.sum(-1).int(), order.int()

    return Blocks(*lists(some), *lists(some.mT), q_block, kv_block)
