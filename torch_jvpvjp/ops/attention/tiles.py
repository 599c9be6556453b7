"""Tiles of attention, rows of some heads against keys, in memory that the next tile uses again."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .fills import Fills
from .maps import Operands, Scores, Window
from .products import Products, Sums
from .stripes import Part


class Buffers:
    """Memory for the matrices of one tile."""

    def __init__(self, like: Tensor) -> None:
        self._like = like
        self._memory: dict[str, Tensor] = {}

    def of(self, name: str, shape: Sequence[int]) -> Tensor:
        """A tensor of this shape, of whatever numbers are there."""
        numel = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.numel() < numel:
            memory = self._memory[name] = self._like.new_empty(numel)
        return memory[:numel].view(shape)


class Given(NamedTuple):
    """What is computed from.

    Attributes:
        at: The arguments in the dtype of the computation, (B, H, L, d); the bias (b, h, r, n).
        dots: Directions, in each of which they have tangents, None for zero.
        scores: What is done to the scores.
        buffers: Memory for tiles.
        products: What multiplies.
        fills: What was last added to scores.
        blind: Which rows see nothing, (B, Hq, L, 1), or None if all see something.
    """

    at: Operands
    dots: Sequence[Operands]
    scores: Scores
    buffers: Buffers
    products: Products
    fills: Fills
    blind: Tensor | None = None


def softmax_(s: Tensor, blind: Tensor | None) -> Tensor:
    """P in the place of S, 0 in rows that see nothing.

    Args:
        s: Scores.
        blind: Which rows these are, one number each, or None if there are none.

    Returns:
        P.
    """
    p = torch.softmax(s, -1, out=s)
    return p if blind is None else p.masked_fill_(blind, 0)


def add_to_scores(s: Tensor, given: Given, part: Part, window: Window) -> Tensor:
    """S with the bias and what hides keys, in its place.

    Args:
        s: s q kᵀ, (batch · heads, group · r, n).
        given: The arguments.
        part: Which heads.
        window: Which rows and keys.

    Returns:
        S.
    """
    if given.at.bias is not None:
        part.by_head(s).add_(part.scores(given.at.bias, window))
    fill = given.fills.of(given.scores, part, window, s)
    if fill is not None:
        fill.add_to(part.by_head(s))
    return s


def pulled(buffers: Buffers, p: Tensor, x: Tensor, row_sum: Tensor | None) -> Tensor:
    """P∘(X − Σ P∘X + λ), in the place of X.

    Args:
        buffers: Memory for a matrix.
        p: P.
        x: X.
        row_sum: λ, one number a row, or None for zero.

    Returns:
        The pullback of the softmax.
    """
    if row_sum is None:
        return _softmax_backward(x, p, -1, x.dtype, grad_input=x)
    return x.sub_(sum_of_product(buffers, p, x).sub_(row_sum)).mul_(p)


def sum_of_product(buffers: Buffers, p: Tensor, x: Tensor) -> Tensor:
    """Σ P∘X, one number a row.

    Args:
        buffers: Memory for a matrix.
        p: P.
        x: X.

    Returns:
        The sums.
    """
    return torch.mul(p, x, out=buffers.of("spare", x.shape)).sum(-1, keepdim=True)


_softmax_backward: Any = torch.ops.aten._softmax_backward_data.out


class Tile:
    """Some heads, their rows cut into windows.

    Args:
        given: The arguments.
        part: Which heads.
    """

    def __init__(self, given: Given, part: Part) -> None:
        self.given, self.part = given, part
        self.scale = 1.0 if given.products.by_head else given.scores.scale  # which is not in the keys yet
        self._k, self._v = self.keys(given.at.k, given.scores.scale), self.keys(given.at.v)
        self.directions = [Direction(self, dots) for dots in given.dots]
        self.window = Window(0, 0, 0, 0)

    def at(self, window: Window) -> "Tile":
        """Go to a window."""
        self.window = window
        return self

    @property
    def k(self) -> Tensor:
        """The keys, (batch · heads, n, dk), as they are to be multiplied."""
        return self.seen(self._k)

    @property
    def v(self) -> Tensor:
        """The values, (batch · heads, n, dv)."""
        return self.seen(self._v)

    def keys(self, x: Any, scale: float = 1.0) -> Any:
        """All keys of something like key or value, (batch · heads, n, d), to be multiplied; None for None."""
        if x is None or not self.given.products.by_head:
            return None if x is None else self.part.keys(x)
        keys = self.part.keys(x).contiguous()  # with gaps between rows of W, oneDNN takes a thousand times as long
        return keys if scale == 1 else keys * scale

    def seen(self, keys: Any) -> Any:
        """Those of the window; None for None."""
        return None if keys is None else keys[:, self.window.c : self.window.d]

    def rows(self, x: Any) -> Any:
        """The rows of something like the query or the output, (batch · heads, group · r, d); None for None."""
        return None if x is None else self.part.rows(x, self.window)

    def put(self, into: Tensor, rows: Tensor, factor: float = 1.0) -> None:
        """Write rows in that layout, times a factor, to where they belong."""
        self.part.put(into, self.window, rows, factor)

    def scores(self) -> Tensor:
        """S, (batch · heads, group · r, n)."""
        s = self.product("p", self.rows(self.given.at.q), self.k, factor=self.scale)
        return add_to_scores(s, self.given, self.part, self.window)

    def probabilities(self) -> Tensor:
        """P, found anew: it is more exact than exp(S − ℓ), as the rounding of ℓ is relative to ℓ and not to P."""
        return softmax_(self.scores(), self.rows(self.given.blind))

    def product(
        self, name: str, rows: Tensor, keys: Tensor, added: Tensor | None = None, factor: float = 1.0
    ) -> Tensor:
        """Rows times keys transposed times a factor, plus what is added, which may be the buffer of that name."""
        return self.given.products.scores(rows, keys, factor, added, lambda: self.buffer(name))

    def product_of_scores(self, scores: Tensor, keys: Tensor, added: Tensor | None = None) -> Tensor:
        """Scores times keys, plus what is added, which may be written into."""
        return self.given.products.rows(scores, keys, added)

    def buffer(self, name: str) -> Tensor:
        """A matrix of this tile: (batch · heads, group · r, n)."""
        a, b, c, d = self.window
        assert self._k is not None
        return self.given.buffers.of(name, (self._k.shape[0], self.part.group * (b - a), d - c))

    def filled(self, name: str, number: Tensor | float) -> Tensor:
        """A matrix of this tile with one number in each row."""
        buffer = self.buffer(name)
        return buffer.copy_(number) if isinstance(number, Tensor) else buffer.fill_(number)


class Direction:
    """One tangent of the arguments, at the heads of a tile.

    Args:
        tile: The tile.
        dots: Tangents, None for zero.
    """

    def __init__(self, tile: Tile, dots: Operands) -> None:
        self._tile, self._q, self._bias = tile, dots.q, dots.bias
        self._k, self._v = tile.keys(dots.k, tile.given.scores.scale), tile.keys(dots.v)

    @property
    def q(self) -> Tensor | None:
        """The tangents of the rows."""
        return self._tile.rows(self._q)

    @property
    def k(self) -> Tensor | None:
        """Those of the keys, as they are to be multiplied."""
        return self._tile.seen(self._k)

    @property
    def v(self) -> Tensor | None:
        """Those of the values."""
        return self._tile.seen(self._v)

    def scores(self) -> Tensor | None:
        """Ṡ = s (q̇ kᵀ + q k̇ᵀ) + ḃ; None for zero."""
        tile, t = self._tile, None
        if self._q is not None:
            t = tile.product("t", tile.rows(self._q), tile.k, factor=tile.scale)
        if self._k is not None:
            t = tile.product("t", tile.rows(tile.given.at.q), tile.seen(self._k), t, tile.scale)
        if self._bias is not None:
            t = tile.filled("t", 0.0) if t is None else t
            tile.part.by_head(t).add_(tile.part.scores(self._bias, tile.window))
        return t


class Gathered:
    """Cotangents of the arguments, gathered tile by tile.

    Args:
        at: The arguments.
        needs: Which are wanted.
    """

    def __init__(self, at: Operands, needs: Sequence[bool]) -> None:
        wanted = [None if t is None or not need else torch.zeros_like(t) for t, need in zip(at, needs, strict=True)]
        self.sums = Operands(*(None if t is None else t.contiguous() for t in wanted))
        self._open: dict[Tile, tuple[Sums | None, Sums | None]] = {}  # those of key and value, by their heads

    def open(self, tile: Tile) -> None:
        """Begin with some heads."""
        factors = tile.given.scores.scale, 1.0
        k, v = (
            None if t is None else tile.given.products.sums(tile.part.keys(t), factor)
            for t, factor in zip((self.sums.k, self.sums.v), factors, strict=True)
        )
        self._open[tile] = k, v

    def close(self) -> None:
        """End with all that were begun with."""
        for pair in self._open.values():
            for one in pair:
                if one is not None:
                    one.close()
        self._open.clear()

    @property
    def wants_scores(self) -> bool:
        """Whether the cotangent of the scores is of use."""
        return any(self.sums[i] is not None for i in (0, 1, 3))

    def add_q(self, tile: Tile, *products: tuple[Tensor, Tensor | None]) -> None:
        """Write s times a sum of products of scores and keys; what is None is left out."""
        if self.sums.q is None:
            return
        rows: Tensor | None = None
        for scores, keys in products:
            if keys is not None:
                rows = tile.product_of_scores(scores, keys, rows)
        if rows is not None:
            tile.put(self.sums.q, rows, tile.scale)

    def add_k(self, tile: Tile, *products: tuple[Tensor, Tensor | None]) -> None:
        """Add s times products of scores transposed and rows."""
        _add(self._open[tile][0], tile, products)

    def add_v(self, tile: Tile, *products: tuple[Tensor, Tensor | None]) -> None:
        """Add products of scores transposed and rows."""
        _add(self._open[tile][1], tile, products)

    def add_bias(self, tile: Tile, scores: Tensor) -> None:
        """Add scores, summed over the axes along which the bias was broadcast."""
        if self.sums.bias is None:
            return
        into, part = tile.part.scores(self.sums.bias, tile.window), tile.part.by_head(scores)
        axes = [axis for axis in range(5) if into.shape[axis] == 1 != part.shape[axis]]
        into.add_(part.sum(axes, keepdim=True) if axes else part)


def _add(into: Sums | None, tile: Tile, products: Sequence[tuple[Tensor, Tensor | None]]) -> None:
    for scores, rows in products:
        if rows is not None and into is not None:
            into.add(tile.window.c, tile.window.d, scores, rows)
