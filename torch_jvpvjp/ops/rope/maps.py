"""The bilinear maps that the rules of rope are made of, in plain PyTorch.

A pair (x₁, x₂) is the complex number x = x₁ + i x₂, and e = cos + i sin. Tensors are as in the dispatcher: heads
(*lead, heads, tokens, d) or, if heads_last, (*lead, tokens, heads, d); angles the same with one head and c pairs in the
place of d, or tables with rows in the place of tokens; positions the same with one head and one element. Leads
broadcast from the right. Results are in the dtype the op computes in and not yet summed over what was broadcast.
"""

from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from .._arithmetic import total, wide


class Pair(NamedTuple):
    """What there is of q and of k, or of cos and of sin."""

    first: Any = None
    second: Any = None


class Frame(NamedTuple):
    """What turns: e, perhaps ė, and how."""

    e: Pair
    e_dot: Pair
    position_ids: Tensor | None
    interleaved: bool
    heads_last: bool


def turn(frame: Frame, a: Pair, b: Pair, *, inverse: bool, wants: tuple[bool, bool]) -> tuple[Pair, Pair]:
    """Compute a e and b e + a ė, with the conjugates of e and ė if inverse; None where zero or not wanted."""
    like = next(t for t in (*a, *b) if t is not None)
    e, e_dot = (_every_angle(frame, angles, like, inverse) for angles in (frame.e, frame.e_dot))
    firsts, seconds = [], []
    for x, x_dot in zip(a, b, strict=True):
        x, x_dot = wide(x, like), wide(x_dot, like)
        firsts.append(_times(x, e, frame.interleaved, True) if wants[0] else None)
        second = total(_times(x_dot, e, frame.interleaved, True), _times(x, e_dot, frame.interleaved, False))
        seconds.append(second if wants[1] else None)
    return Pair(*firsts), Pair(*seconds)


def correlate(frame: Frame, x: Pair, x_dot: Pair, a: Pair, b: Pair, wants: tuple[bool, bool]) -> tuple[Pair, Pair]:
    """Compute Σ x̄ a and Σ (ẋ̄ a + x̄ b) over heads, as cotangents of cos and sin or, with positions, of their tables."""
    like = next(t for t in (*a, *b) if t is not None)
    sums: list[list[Any]] = [[None, None], [None, None]]
    for x_one, x_dot_one, a_one, b_one in zip(x, x_dot, a, b, strict=True):
        for place, one, other in ((0, x_one, a_one), (1, x_dot_one, a_one), (1, x_one, b_one)):
            if wants[place] and one is not None and other is not None:
                parts = _conjugate_times(wide(one, like), wide(other, like), frame.e.first.shape[-1], frame)
                sums[place] = [total(s, p) for s, p in zip(sums[place], parts, strict=True)]
    return spread(Pair(*sums[0]), frame), spread(Pair(*sums[1]), frame)


def spread(sums: Pair, frame: Frame) -> Pair:
    """Add sums of tokens to the rows of cos and sin that they belong to: the adjoint of looking them up."""
    if frame.position_ids is None:
        return sums
    return Pair(*(None if s is None else _spread(s, table, frame) for s, table in zip(sums, frame.e, strict=True)))


def _spread(sums: Tensor, table: Tensor, frame: Frame) -> Tensor:
    head = -2 if frame.heads_last else -3
    lead, rows = table.shape[:-3], table.squeeze(head).shape[-2]
    flat, index = _table_index(table, frame)
    c = sums.shape[-1]
    tokens = sums.squeeze(head)
    index = index.expand(tokens.shape[:-1]).reshape(-1)
    added = torch.ops.aten.embedding_dense_backward(tokens.reshape(-1, c), index, flat.shape[0], -1, False)
    return added.reshape((*lead, rows, c)).unsqueeze(head)


def look_up(angle: Tensor, frame: Frame) -> Tensor:
    """The angle of every token: rows of the table where there are positions."""
    if frame.position_ids is None:
        return angle
    flat, index = _table_index(angle, frame)
    try:
        return F.embedding(index, flat).unsqueeze(-2 if frame.heads_last else -3)
    except IndexError as error:  # on a CPU; kernels give NaN
        rows = angle.squeeze(-2 if frame.heads_last else -3).shape[-2]
        raise IndexError(
            f"rope: position_ids must be rows of cos and sin, from 0 to {rows - 1}, got others."
        ) from error


def _table_index(table: Tensor, frame: Frame) -> tuple[Tensor, Tensor]:
    """All rows of a table with a lead in one (rows, c), and which of them each token takes: (*lead, tokens)."""
    assert frame.position_ids is not None
    head = -2 if frame.heads_last else -3
    rows, index = table.squeeze(head), frame.position_ids.squeeze(-1).squeeze(head + 1).to(torch.int64)
    lead = rows.shape[:-2]
    if prod(lead) != 1:
        first = torch.arange(prod(lead), device=table.device).reshape((*lead, 1)) * rows.shape[-2]
        index = torch.where((index < 0) | (index >= rows.shape[-2]), -1, index + first)  # no row of another lead's
    return rows.reshape(-1, rows.shape[-1]), index


def _every_angle(frame: Frame, angles: Pair, like: Tensor, inverse: bool) -> Pair | None:
    """cos and sin (-sin if inverse) of every token; a missing one is zero, None if both are."""
    present = next((t for t in angles if t is not None), None)
    if present is None:
        return None
    cos, sin = (wide(look_up(torch.zeros_like(present) if t is None else t, frame), like) for t in angles)
    return Pair(cos, -sin if inverse else sin)


def _times(x: Tensor | None, e: Pair | None, interleaved: bool, keeps: bool) -> Tensor | None:
    """x e; what does not turn is kept, or zero (where e is a tangent)."""
    if x is None or e is None:
        return None
    cos, sin = e
    x1, x2, rest = _pairs(x, cos.shape[-1], interleaved)
    y1, y2 = x1 * cos - x2 * sin, x2 * cos + x1 * sin
    # reshape, because the vmap before functorch has no rule for flatten
    parts = [torch.stack((y1, y2), -1).reshape((*y1.shape[:-1], -1))] if interleaved and y1.numel() else [y1, y2]
    if rest.shape[-1]:
        parts.append((rest if keeps else torch.zeros_like(rest)).expand((*y1.shape[:-1], -1)))
    return torch.cat(parts, -1) if len(parts) > 1 else parts[0]


def _conjugate_times(x: Tensor, a: Tensor, c: int, frame: Frame) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of x̄ a, summed over heads."""
    x1, x2, _ = _pairs(x, c, frame.interleaved)
    a1, a2, _ = _pairs(a, c, frame.interleaved)
    head = -2 if frame.heads_last else -3
    return (x1 * a1 + x2 * a2).sum(head, keepdim=True), (x1 * a2 - x2 * a1).sum(head, keepdim=True)


def _pairs(x: Tensor, c: int, interleaved: bool) -> tuple[Tensor, Tensor, Tensor]:
    """x₁, x₂ of c pairs each, and what does not turn."""
    if interleaved:
        return x[..., 0 : 2 * c : 2], x[..., 1 : 2 * c : 2], x[..., 2 * c :]
    return x[..., :c], x[..., c : 2 * c], x[..., 2 * c :]
