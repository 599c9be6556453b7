"""Carrying tensors through the regions of a tape: the numeric twin of the walk that planning takes with structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._torch import load_jvp_rules
from .primal import PrimalRun
from .structure import Block, Dense, Identity, Structure, add, multiply
from .tracing.parts import Arc, Part


class Tensors:
    """The algebra of blocks, at one point.

    Args:
        primal: The run that has passed the region.
        like: A tensor of the dtype and device that an identity takes.
    """

    def __init__(self, primal: PrimalRun, like: Tensor) -> None:
        self.primal, self.like = primal, like

    def structure(self, block: Block) -> Structure:
        """Return its structure."""
        return block.structure

    def densified(self, block: Block) -> Block:
        """Return the block without structure."""
        structure = block.structure
        return block if type(structure) is Dense else Block(Dense(structure.m, structure.n), self.matrix(block))

    def matrix(self, block: Block) -> Tensor:
        """Return the (m, n) matrix of a block."""
        return block.structure.dense(block.values, self.like)

    def local(self, arc: Arc) -> Block:
        """Return a local Jacobian."""
        return Block(arc.local.structure, self.primal.entries(arc))

    def multiply(self, left: Block, right: Block) -> Block:
        """Return the product of two blocks."""
        return multiply(left, right)

    def local_times(self, arc: Arc, block: Block) -> Block:
        """Return J_arc · block."""
        if isinstance(arc.local.structure, Identity):
            return block
        local = self.local(arc)
        return local if isinstance(block.structure, Identity) else multiply(local, block)

    def times_local(self, block: Block, arc: Arc) -> Block:
        """Return block · J_arc."""
        if isinstance(arc.local.structure, Identity):
            return block
        local = self.local(arc)
        return local if isinstance(block.structure, Identity) else multiply(block, local)

    def add(self, left: Block, right: Block) -> Block:
        """Return the sum of two blocks."""
        return add(left, right)

    def push(self, part: Part, operands: Sequence[int], blocks: Sequence[Block]) -> list[Block]:
        """Return the columns pushed through an op by its JVP, all at once.

        The axis of columns goes in front, where the op finds each tangent laid out as its primal is, without a copy.
        """
        value = self.primal.value
        function = part.function(value, operands)
        columns = blocks[0].structure.n
        primals = tuple(value(index) for index in operands)
        x_dots = tuple(
            self.matrix(block).to(primal.dtype).T.reshape(columns, *primal.shape)
            for block, primal in zip(blocks, primals, strict=True)
        )

        def push(*tangents: Tensor) -> tuple[Tensor, ...]:
            if part.is_linear_in(operands):  # J ẋ = f(ẋ)
                return function(*tangents)
            results: Any = torch.func.jvp(function, primals, tangents)
            return results[1]

        load_jvp_rules()
        if columns == 1:  # spares the cost of vmap
            pushed = tuple(y_dot[None] for y_dot in push(*(x_dot[0] for x_dot in x_dots)))
        else:
            pushed = torch.func.vmap(push)(*x_dots)
        return [Block(Dense(y_dot[0].numel(), columns), y_dot.reshape(columns, -1).T) for y_dot in pushed]

    def pull(self, part: Part, operands: Sequence[int], blocks: Sequence[Block | None]) -> list[Block]:
        """Return the rows pulled through an op by its VJP, all at once; None stands for rows of zeros."""
        value = self.primal.value
        results: Any = torch.func.vjp(part.function(value, operands), *(value(index) for index in operands))
        outputs: Sequence[Tensor] = results[0]
        pullback: Callable[..., tuple[Tensor, ...]] = results[1]
        rows = next(block.structure.m for block in blocks if block is not None)
        y_bars = tuple(
            y.new_zeros((rows, *y.shape)) if block is None else self.matrix(block).to(y.dtype).reshape(rows, *y.shape)
            for block, y in zip(blocks, outputs, strict=True)
        )

        def pull(*cotangents: Tensor) -> tuple[Tensor, ...]:
            return pullback(cotangents)

        if rows == 1:  # spares the cost of vmap
            pulled = tuple(x_bar[None] for x_bar in pull(*(y_bar[0] for y_bar in y_bars)))
        else:
            pulled = torch.func.vmap(pull)(*y_bars)
        return [Block(Dense(rows, x_bar[0].numel()), x_bar.reshape(rows, -1)) for x_bar in pulled]
