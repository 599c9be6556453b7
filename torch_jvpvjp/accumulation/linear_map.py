"""The derivative of one stage at one point, as a linear map that blocks are pushed and pulled through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .carrying import carry_each
from .structure import Block, Dense

Pullback = Callable[[Tensor], tuple[Tensor, ...]]


class LinearMap(ABC):
    """J: R^n → R^m, known by what it does. A block of tangents is (n, c), of cotangents (r, m)."""

    @abstractmethod
    def push(self, block: Block) -> Block:
        """Ẏ = J Ẋ, (m, c)."""

    @abstractmethod
    def pull(self, block: Block) -> Block:
        """X̄ = Ȳ J, (r, n)."""


class TapeMap(LinearMap):
    """A map known by a pullback or pushforward of a black box; it moves blocks in its own direction only.

    Args:
        x: The point.
        y: The value.
        pullback: Its pullback, recorded.
        pushforward: Its pushforward.
        trusted: Whether the pullback is known to be right for many vectors at once, so that it need not be asked.
        apart: Whether the pullback takes one vector after another.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        pullback: Pullback | None = None,
        pushforward: Callable[[Tensor], Tensor] | None = None,
        trusted: bool = False,
        apart: bool = False,
    ) -> None:
        self.x_shape, self.x_dtype = x.shape, x.dtype
        self.y_shape, self.y_dtype = y.shape, y.dtype
        self.pullback, self.pushforward, self.trusted = pullback, pushforward, trusted
        self.apart = apart

    def push(self, block: Block) -> Block:
        """Return one run of the pushforward for all columns."""
        assert self.pushforward is not None, "a map recorded for adjoints was pushed through"
        push, columns = self.pushforward, block.structure.n
        x_dot = block.dense().to(self.x_dtype).T.reshape((columns, *self.x_shape))
        (pushed,) = carry_each(lambda column: (push(column),), [x_dot])
        return columns_as_block(pushed, self.y_shape, block)

    def pull(self, block: Block) -> Block:
        """Return one replay of the recorded tape for all rows."""
        assert self.pullback is not None, "a map recorded for tangents was pulled through"
        pullback, count = self.pullback, block.structure.m
        y_bar = block.dense().to(self.y_dtype).reshape((count, *self.y_shape))
        (x_bar,) = carry_each(pullback, [y_bar], apart=self.apart, asked=not self.trusted)
        return Block(Dense(count, self.x_shape.numel()), x_bar.reshape(count, -1))


def columns_as_block(y_dot: Tensor, shape: torch.Size, block: Block) -> Block:
    """Return what became of the columns of `block`, as a block."""
    m, columns = shape.numel(), block.structure.n
    return Block(Dense(m, columns), y_dot.reshape(columns, m).T)
