"""Every point of attention's tower, by formulas over windows of rows: all at once, or row by row without N×N memory."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._arithmetic import wide
from .._groups import sum_to
from .maps import (
    Adjoint,
    Operands,
    Pulled,
    Rows,
    Scores,
    Window,
    look_at,
    move,
    pull_moved_scores,
    pull_scores,
    push,
    sum_scores,
    value,
)

Windows = Callable[[Operands, Scores], Iterator[Window]]


class Cotangents(NamedTuple):
    """Cotangents of o, (…, Hq, Lq, dv), and of ℓ, (…, Hq, Lq); None for zero."""

    o: Tensor | None = None
    lse: Tensor | None = None


NONE = Operands()
Found = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]  # o, ℓ, their tangents, and the rest of ℓ


def whole(at: Operands, scores: Scores) -> Iterator[Window]:
    """All rows against all keys: what is differentiated again."""
    yield Window(0, at.q.shape[-2], 0, at.k.shape[-2])


def forward(at: Operands, scores: Scores, windows: Windows = whole) -> tuple[Tensor, Tensor, Tensor]:
    """The output o, ℓ = log Σ exp S, and what ℓ as rounded lacks.

    Args:
        at: The arguments.
        scores: What is done to the scores.
        windows: How the rows are cut.

    Returns:
        o in the dtype of the query, (…, Hq, Lq, dv), ℓ and its rest in that of the computation, (…, Hq, Lq).
    """
    o, lse, _, _, rest = forward_and_tangent(at, NONE, scores, windows)
    return o, lse, rest


def forward_and_tangent(at: Operands, dots: Operands, scores: Scores, windows: Windows = whole) -> Found:
    """o and ℓ with their tangents, and what ℓ as rounded lacks.

    Args:
        at: The arguments.
        dots: Their tangents, None for zero.
        scores: What is done to the scores.
        windows: How the rows are cut.

    Returns:
        o, ℓ, ȯ, ℓ̇ and the rest; a tangent that is zero is None.
    """
    dtype, at, dots = at.q.dtype, _wide(at, at.q), _wide(dots, at.q)
    stripes: list[tuple[Tensor | None, ...]] = []
    for window in windows(at, scores):
        rows = look_at(at, scores, window)
        moved = move(rows, dots)
        found = (value(rows), rows.lse, push(rows, moved, dots.v), moved.lse, rows.rest())
        stripes.append(tuple(None if t is None else rows.unfold(t) for t in found))
    o, lse, o_dot, lse_dot, rest = (_joined(list(stripe)) for stripe in zip(*stripes, strict=True))
    assert o is not None and lse is not None and rest is not None
    return (
        o.to(dtype),
        lse.squeeze(-1),
        None if o_dot is None else o_dot.to(dtype),
        None if lse_dot is None else lse_dot.squeeze(-1),
        rest.squeeze(-1),
    )


def second_order(
    at: Operands,
    dots: Operands,
    scores: Scores,
    w: Cotangents,
    u: Cotangents,
    needs_first: Sequence[bool],
    needs_second: Sequence[bool],
    windows: Windows = whole,
    o: Tensor | None = None,
) -> tuple[Operands, Operands]:
    """The pullback of w and its tangent: forward over reverse.

    Reverse over forward gives the same numbers: with w, u cotangents of ȯ and o, the first are the cotangents of the
    tangents and the second those of the primals.

    Args:
        at: The arguments.
        dots: Their tangents, None for zero.
        scores: What is done to the scores.
        w: Cotangents of o and ℓ.
        u: Their tangents.
        needs_first: Which cotangents are wanted.
        needs_second: Which tangents of cotangents are wanted.
        windows: How the rows are cut.
        o: The output, if it need not be differentiated through.

    Returns:
        The cotangents and their tangents, in the dtype of the computation and not yet summed over axes in front along
        which arguments were broadcast; None where zero or not wanted.
    """
    at, dots = _wide(at, at.q), _wide(dots, at.q) if any(t is not None for t in w) else NONE
    w, u = (Cotangents(*(wide(t, at.q) for t in c)) for c in (w, u))
    o = wide(o, at.q)
    first, second = Sums(at), Sums(at)
    for window in windows(at, scores):
        rows = look_at(at, scores, window)
        w_rows, u_rows = _adjoint(rows, w), _adjoint(rows, u)
        pulled = pull_scores(rows, w_rows, None if o is None else rows.fold(o))
        first.add(rows, pulled.s, pulled.z, w_rows.o, needs_first)
        if any(needs_second):
            _add_tangents(second, rows, dots, w_rows, u_rows, pulled, needs_second)
    return first.operands(), second.operands()


def _add_tangents(
    sums: "Sums", rows: Rows, dots: Operands, w: Adjoint, u: Adjoint, pulled: Pulled, needs: Sequence[bool]
) -> None:
    """The tangents of what these rows give to the cotangents."""
    moved = move(rows, dots)
    s, z = pull_moved_scores(rows, moved, dots.v, w, pulled, u)
    sums.add(rows, s, z, u.o, needs)
    if pulled.z is not None and dots.k is not None and needs[0]:
        sums.add_q(rows, torch.matmul(pulled.z, rows.keys(dots.k)) * rows.scores.scale)
    if pulled.z is not None and dots.q is not None and needs[1]:
        sums.add_k(rows, torch.matmul(pulled.z.mT, rows.fold(dots.q)) * rows.scores.scale)
    if moved.s is not None and w.o is not None and needs[2]:
        turned = rows.p * moved.s
        sums.add_v(rows, torch.matmul((turned if rows.drop is None else turned * rows.drop).mT, w.o))


class Sums:
    """Cotangents of the arguments, gathered window by window."""

    def __init__(self, at: Operands) -> None:
        self.at = at
        self.stripes: list[tuple[Window, Tensor]] = []
        self.k: Tensor | None = None
        self.v: Tensor | None = None
        self.bias: Tensor | None = None

    def add(self, rows: Rows, s: Tensor | None, z: Tensor | None, w: Tensor | None, needs: Sequence[bool]) -> None:
        """Add what dS, dz and w of some rows give."""
        if z is not None and needs[0]:
            self.add_q(rows, torch.matmul(z, rows.k) * rows.scores.scale)
        if z is not None and needs[1]:
            self.add_k(rows, torch.matmul(z.mT, rows.q) * rows.scores.scale)
        if w is not None and needs[2]:
            self.add_v(rows, torch.matmul((rows.p if rows.drop is None else rows.p * rows.drop).mT, w))
        if s is not None and needs[3] and self.at.bias is not None:
            self.bias = self._add_bias(rows, s)

    def add_q(self, rows: Rows, part: Tensor) -> None:
        """Add to the query's cotangent, rows in the layout of the window."""
        part = rows.unfold(part)
        if self.stripes and self.stripes[-1][0] is rows.window:
            self.stripes[-1] = (rows.window, self.stripes[-1][1] + part)
        else:
            self.stripes.append((rows.window, part))

    def add_k(self, rows: Rows, part: Tensor) -> None:
        """Add to the key's cotangent."""
        self.k = self._placed(self.k, part, rows.window, self.at.k)

    def add_v(self, rows: Rows, part: Tensor) -> None:
        """Add to the value's cotangent."""
        self.v = self._placed(self.v, part, rows.window, self.at.v)

    def _placed(self, total_so_far: Tensor | None, part: Tensor, window: Window, like: Tensor) -> Tensor:
        """Add a part for keys c to d; a part for all keys that is the first is taken as it is."""
        if part.shape[-2] == like.shape[-2]:
            return part if total_so_far is None else total_so_far + part
        if total_so_far is None:
            total_so_far = part.new_zeros((*part.shape[:-2], like.shape[-2], part.shape[-1]))
        total_so_far[..., window.c : window.d, :] += part
        return total_so_far

    def _add_bias(self, rows: Rows, s: Tensor) -> Tensor:
        like, window = self.at.bias, rows.window
        part = sum_scores(rows, s, like)
        if part.shape[-2:] == like.shape[-2:]:
            return part if self.bias is None else self.bias + part
        part = sum_to(part, (*part.shape[: part.dim() - like.dim()], *like.shape[:-2], *part.shape[-2:]))
        found = self.bias
        if found is None:
            found = part.new_zeros((*part.shape[:-2], *like.shape[-2:]))
        a, b = (window.a, window.b) if like.shape[-2] > 1 else (0, 1)
        c, d = (window.c, window.d) if like.shape[-1] > 1 else (0, 1)
        found[..., a:b, c:d] += part
        return found

    def operands(self) -> Operands:
        """The sums, not yet summed over axes in front along which an argument was broadcast."""
        q = _joined([part for _, part in self.stripes]) if self.stripes else None
        return Operands(q, self.k, self.v, self.bias)


def _joined(stripes: list[Tensor | None]) -> Tensor | None:
    """Stripes of rows under one another."""
    there = [t for t in stripes if t is not None]
    if len(there) <= 1:
        return there[0] if there else None
    return torch.cat(there, -2)


def _adjoint(rows: Rows, w: Cotangents) -> Adjoint:
    """Cotangents in the layout of the rows; that of ℓ is 0 where ℓ is −∞ whatever the arguments: it may be infinite."""
    lse = None if w.lse is None else rows.fold(w.lse.unsqueeze(-1)).masked_fill(rows.lse == -torch.inf, 0)
    return Adjoint(None if w.o is None else rows.fold(w.o), lse)


def _wide(operands: Operands, like: Tensor) -> Operands:
    return Operands(*(wide(t, like) for t in operands))
