"""The derivative of one stage at one point, as a linear map that blocks are pushed and pulled through."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from .structure import Block, Dense, multiply

Pullback = Callable[[Tensor], tuple[Tensor, ...]]


class LinearMap(ABC):
    """J: R^n → R^m, known by what it does. A block of tangents is (n, c), of cotangents (r, m)."""

    @abstractmethod
    def push(self, block: Block) -> Block:
        """Ẏ = J Ẋ, (m, c)."""

    @abstractmethod
    def pull(self, block: Block) -> Block:
        """X̄ = Ȳ J, (r, n)."""

    def matrix(self) -> Block | None:
        """Return J itself where it is known in closed form, else None."""
        return None


class MatrixMap(LinearMap):
    """A Jacobian known in closed form; it is multiplied in its structure."""

    def __init__(self, jacobian: Block) -> None:
        self.jacobian = jacobian

    def push(self, block: Block) -> Block:
        """Return J Ẋ, as a product."""
        return multiply(self.jacobian, block)

    def pull(self, block: Block) -> Block:
        """Return Ȳ J, as a product."""
        return multiply(block, self.jacobian)

    def matrix(self) -> Block:
        """Return J itself."""
        return self.jacobian


class RowwiseMap(LinearMap):
    """The Jacobian I ⊗ W of a linear layer that is applied to each of several rows."""

    def __init__(self, weight: Tensor, rows: int) -> None:
        self.weight = weight  # (m, n) of one row
        self.rows = rows

    def push(self, block: Block) -> Block:
        """Return W Ẋ, row by row of the input."""
        m, n = self.weight.shape
        columns = block.structure.n
        x_dot = block.dense().to(self.weight.dtype)
        pushed = self.weight @ x_dot.reshape(self.rows, n, columns)  # (rows, m, c)
        return Block(Dense(self.rows * m, columns), pushed.reshape(-1, columns))

    def pull(self, block: Block) -> Block:
        """Return Ȳ W, row by row of the output."""
        m, n = self.weight.shape
        count = block.structure.m
        y_bar = block.dense().to(self.weight.dtype)
        pulled = y_bar.reshape(count * self.rows, m) @ self.weight  # (r · rows, n)
        return Block(Dense(count, self.rows * n), pulled.reshape(count, -1))


class TapeMap(LinearMap):
    """A map known by a recorded pullback or pushforward of a black box; it moves blocks in its own direction only."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        *,
        pullback: Pullback | None = None,
        pushforward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.x_shape, self.x_dtype = x.shape, x.dtype
        self.y_shape, self.y_dtype = y.shape, y.dtype
        self.pullback, self.pushforward = pullback, pushforward

    def push(self, block: Block) -> Block:
        """Return one replay of the recorded pushforward for all columns."""
        assert self.pushforward is not None, "a map recorded for adjoints was pushed through"
        pushed = each_column(self.pushforward, block, self.x_shape, self.x_dtype)
        return columns_as_block(pushed, self.y_shape, block)

    def pull(self, block: Block) -> Block:
        """Return one replay of the recorded tape for all rows."""
        assert self.pullback is not None, "a map recorded for tangents was pulled through"
        pullback, count = self.pullback, block.structure.m
        y_bar = block.dense().to(self.y_dtype).reshape((count, *self.y_shape))
        if count == 1:  # spares the cost of vmap
            x_bar = pullback(y_bar[0])[0]
        else:
            x_bar = torch.func.vmap(lambda row: pullback(row)[0], randomness="same")(y_bar)
        return Block(Dense(count, self.x_shape.numel()), x_bar.reshape(count, -1))


def each_column(push: Callable[[Tensor], Tensor], block: Block, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Return a function of one tangent applied to all columns of a block; they become the first axis of the result."""
    x_dot = block.dense().to(dtype)
    if block.structure.n == 1:  # spares the cost of vmap
        return push(x_dot.reshape(shape))[None]
    # "same": a stage that draws random numbers draws them once, as in the one primal run that is being differentiated.
    # The axis leaves in front, since vmap fails on out_dims=-1 where the result does not depend on the tangent.
    return torch.func.vmap(push, in_dims=-1, randomness="same")(x_dot.reshape((*shape, -1)))


def columns_as_block(y_dot: Tensor, shape: torch.Size, block: Block) -> Block:
    """Return what became of the columns of `block`, as a block."""
    m, columns = shape.numel(), block.structure.n
    return Block(Dense(m, columns), y_dot.reshape(columns, m).T)
