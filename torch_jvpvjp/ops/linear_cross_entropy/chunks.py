"""Chunks of rows: their logits, and what a chunk of cotangents of logits adds to the cotangents of the factors.

With X (N, D), W (V, D), b (V) and Z = X Wᵀ + b, for one chunk of rows at a time:

    Ż = Ẋ Wᵀ + X Ẇᵀ + ḃ                         the push of the linear layer
    X̄ = Z̄ W,   W̄ = Z̄ᵀ X,   b̄ = Σ Z̄              its pull

No tensor of N·V elements is ever made: a chunk has `chunk_size` rows, and sums over chunks are (V, D) and (V). Logits
are in the dtype of X, as those of a linear layer are; what is done to them is cross-entropy's, in float32 or float64,
and sums over chunks are too.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .._arithmetic import total, wide
from ..cross_entropy.arguments import WrongClassError
from ..cross_entropy.rules import op as rows_op

# Rows of a chunk have about this many logits in all.
_CHUNK_LOGITS = 1 << 25


def chunk_rows(rows: int, classes: int, chunk_size: int | None) -> int:
    """Rows of a chunk.

    Args:
        rows: N.
        classes: V.
        chunk_size: What the caller asks for, or None.

    Returns:
        The number of rows, at least 1.
    """
    return max(1, min(rows, _CHUNK_LOGITS // max(classes, 1))) if chunk_size is None else chunk_size


def chunk_classes(rows: int, classes: int, chunk_size: int | None) -> int:
    """Classes of a chunk that holds as many logits as a chunk of rows does.

    Args:
        rows: N.
        classes: V.
        chunk_size: Rows of a chunk, or None.

    Returns:
        The number of classes, at least 1.
    """
    held = _CHUNK_LOGITS if chunk_size is None else chunk_size * classes
    return max(1, min(classes, held // max(rows, 1)))


class Factors:
    """X, W and b of one point or direction, any of them absent, cut into chunks of rows.

    Args:
        x: (N, D), or None for zero.
        weight: (V, D), or None for zero.
        bias: (V), or None for zero.
    """

    def __init__(self, x: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> None:
        self.x, self.weight, self.bias = x, weight, bias

    def __bool__(self) -> bool:
        return any(t is not None for t in (self.x, self.weight, self.bias))

    def rows(self, start: int, stop: int) -> "Factors":
        """The same for a chunk of rows."""
        return Factors(None if self.x is None else self.x[start:stop], self.weight, self.bias)


def logits(at: Factors) -> Tensor:
    """Z = X Wᵀ + b."""
    assert at.x is not None and at.weight is not None
    z = at.x @ at.weight.mT
    return z if at.bias is None else z + at.bias.to(z.dtype)


def logits_along(at: Factors, along: Factors) -> Tensor | None:
    """Ż = Ẋ Wᵀ + X Ẇᵀ + ḃ, None where all tangents are absent."""
    assert at.x is not None and at.weight is not None
    by_x = None if along.x is None else along.x.to(at.x.dtype) @ at.weight.mT
    by_weight = None if along.weight is None else at.x @ along.weight.to(at.x.dtype).mT
    moved = total(by_x, by_weight)
    if along.bias is None:
        return moved
    bias = along.bias.to(at.x.dtype)
    return bias.expand(at.x.shape[0], -1) if moved is None else moved + bias


class Gathered:
    """Cotangents of X, W and b, added up over chunks in float32 or float64.

    Args:
        like: The point, whose dtypes the results have.
        needs: Whether each of the three is wanted.
    """

    def __init__(self, like: Factors, needs: tuple[bool, ...]) -> None:
        self._like, self._needs = like, needs
        self._x: list[Tensor] = []
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def add(self, *pairs: tuple[Tensor | None, Factors]) -> None:
        """Take one chunk: X̄ = Σ Z̄ W, W̄ += Σ Z̄ᵀ X over pairs of a Z̄ and the factors it meets; b̄ from the first."""
        x_bar = None
        for number, (z_bar, meets) in enumerate(pairs):
            if z_bar is None:
                continue
            if self._needs[0] and meets.weight is not None:
                x_bar = total(x_bar, wide(z_bar @ meets.weight.to(z_bar.dtype), z_bar))
            if self._needs[1] and meets.x is not None:
                self._weight = total(self._weight, wide(z_bar.mT @ meets.x.to(z_bar.dtype), z_bar))
            if self._needs[2] and number == 0:
                self._bias = total(self._bias, wide(z_bar, z_bar).sum(0))
        if x_bar is not None:
            self._x.append(x_bar)

    def results(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The three, of their arguments' dtypes; None where zero or not wanted."""
        like = self._like
        x_bar = torch.cat(self._x).to(like.x.dtype) if self._x and like.x is not None else None
        weight_bar = None if self._weight is None or like.weight is None else self._weight.to(like.weight.dtype)
        bias_bar = None if self._bias is None or like.bias is None else self._bias.to(like.bias.dtype)
        return x_bar, weight_bar, bias_bar


def spans(inputs: Any) -> Iterator[tuple[int, int]]:
    """First row and end of every chunk; no rows are one chunk of none."""
    rows = inputs.input.shape[0]
    size = chunk_rows(rows, inputs.weight.shape[0], inputs.chunk_size)
    for start in range(0, max(rows, 1), size):
        yield start, min(start + size, rows)


def row_arguments(inputs: Any, z: Tensor, start: int, stop: int) -> tuple[Any, ...]:
    """The arguments of cross-entropy's rows for one chunk of logits."""
    target = inputs.target[start:stop].unsqueeze(-1)
    return z, target, None, -1, inputs.ignore_index, inputs.label_smoothing, inputs.softcap


def row_losses(args: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """ℓ, L and what L lacks as rounded, of a chunk."""
    losses, lse, rest = _called(rows_op.overload, *args)
    return losses, lse, rest


def row_push(args: tuple[Any, ...], z_dot: Tensor | None) -> tuple[Tensor, ...]:
    """ℓ, L and what it lacks, ℓ̇, L̇ of a chunk."""
    if z_dot is None:
        losses, lse, rest = row_losses(args)
        return losses, lse, rest, torch.zeros_like(losses), torch.zeros_like(lse)
    return tuple(_called(rows_op.jvp.op.overload, *args, z_dot.to(args[0].dtype), None))


def _called(rows: Callable[..., Any], *args: Any) -> Any:
    """Call a point of cross-entropy's rows, whose error names the function that it is called for."""
    try:
        return rows(*args)
    except WrongClassError as error:
        raise WrongClassError("linear_cross_entropy", error.n, error.wrong) from error


def row_pull(args: tuple[Any, ...], c: Tensor | None, e: Tensor | None) -> Tensor | None:
    """Z̄ of a chunk."""
    if c is None and e is None:
        return None
    outputs = row_losses(args)
    return rows_op.vjp.op.overload(c, e, *args, *outputs, [True, False])[0]


def row_bend(
    args: tuple[Any, ...], z_dot: Tensor | None, a: Tensor | None, d: Tensor | None, c: Tensor | None, e: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The cotangents of Z and of Ż, with a, d those of ℓ̇, L̇ and c, e those of ℓ, L."""
    if z_dot is None or (a is None and d is None):
        return row_pull(args, c, e), row_pull(args, a, d)
    unread = z_dot.new_zeros(*z_dot.shape[:-1], 1)  # what L lacks: this point computes L itself
    second, _, first, _ = rows_op.jvp.vjp.op.overload(
        c, e, a, d, *args, z_dot, None, unread, [True, False, True, False]
    )
    return second, first
