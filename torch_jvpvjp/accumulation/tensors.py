"""Carrying tensors through the regions of a tape: the numeric twin of the walk that planning takes with structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ._torch import jvp_of_op
from .bending import is_transposed, pulled_through, transposed
from .carrying import carry_each, close, dual, weights
from .primal import PrimalRun
from .reals import as_rows, as_vectors, in_pairs
from .structure import Block, Dense, Identity, Structure, add, multiply
from .tracing.parts import Arc, Part
from .tracing.samples import columns_of_samples, from_columns, from_rows, rows_of_samples
from .tracing.tape import Ref


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
        structure = arc.local.structure
        if isinstance(structure, Identity):
            return block
        if arc.local.through is not None and type(block.structure) is Dense:
            # Columns in front, where what follows is done on each without a stride.
            y_dots = self.primal.carried(arc, self.matrix(block).T.contiguous(), forwards=True)
            return Block(Dense(structure.m, block.structure.n), y_dots.T)
        local = self.local(arc)
        return local if isinstance(block.structure, Identity) else multiply(local, block)

    def times_local(self, block: Block, arc: Arc) -> Block:
        """Return block · J_arc."""
        structure = arc.local.structure
        if isinstance(structure, Identity):
            return block
        if arc.local.through is not None and type(block.structure) is Dense:
            x_bars = self.primal.carried(arc, self.matrix(block), forwards=False)
            return Block(Dense(block.structure.m, structure.n), x_bars)
        local = self.local(arc)
        return local if isinstance(block.structure, Identity) else multiply(block, local)

    def add(self, left: Block, right: Block) -> Block:
        """Return the sum of two blocks."""
        return add(left, right)

    def push(self, part: Part, operands: Sequence[int], blocks: Sequence[Block]) -> list[Block]:
        """Return the columns pushed through an op by its JVP, all at once, one of every sample that it has as one.

        The axis of columns goes in front, where the op finds each tangent laid out as its primal is, without a copy.
        """
        value = self.primal.value
        live = self.primal.live
        function = part.function(value, operands, live=live)
        samples = part.samples_in(blocks[0].structure)
        primals = tuple(_apart(value(index)) for index in operands)
        x_dots = tuple(
            as_vectors(self._columns(block, samples).T, primal) for block, primal in zip(blocks, primals, strict=True)
        )

        def push(*tangents: Tensor) -> tuple[Tensor, ...]:
            if part.is_linear_in(operands):  # J ẋ = f(ẋ)
                return function(*tangents)
            if part.is_linear_in_each_of(operands):  # J ẋ = f(ẋ_1, x_2) + f(x_1, ẋ_2)
                terms = [part.function(value, [i])(tangent) for i, tangent in zip(operands, tangents, strict=True)]
                return tuple(reduce(torch.add, outputs) for outputs in zip(*terms, strict=True))
            if is_transposed(part.op.target, live=live) or _key(part, "dual") in MISPUSHED:
                return transposed(function, primals, tangents)
            return jvp_of_op(function, primals, tangents)[1]

        with pulled_through(part.op.target):
            pushed = carry_each(push, x_dots, apart=_key(part, "push") in MISBATCHED, asked=False)
        return [from_columns(as_rows(self._own(y_dot)).T, samples) for y_dot in pushed]

    def pull(self, part: Part, operands: Sequence[int], blocks: Sequence[Block | None]) -> list[Block]:
        """Return the rows pulled through an op by its VJP, all at once; None stands for rows of zeros."""
        value = self.primal.value
        results: Any = torch.func.vjp(part.function(value, operands), *(value(index) for index in operands))
        outputs: Sequence[Tensor] = results[0]
        pullback: Callable[..., tuple[Tensor, ...]] = results[1]
        some = next(block.structure for block in blocks if block is not None)
        samples = part.samples_in(some)
        rows = some.m // samples
        y_bars = tuple(
            y.new_zeros((rows, *y.shape)) if block is None else as_vectors(self._rows(block, samples), y)
            for block, y in zip(blocks, outputs, strict=True)
        )

        def pull(*cotangents: Tensor) -> tuple[Tensor, ...]:
            return pullback(cotangents)

        with pulled_through(part.op.target):
            pulled = carry_each(pull, y_bars, apart=_key(part, "pull") in MISBATCHED, asked=False)
        return [from_rows(as_rows(self._own(x_bar)), samples) for x_bar in pulled]

    @staticmethod
    def _own(carried: Tensor) -> Tensor:
        """Return what was carried, of which nothing is recorded where gradients are off."""
        return carried if torch.is_grad_enabled() or not carried.requires_grad else carried.detach()

    def _columns(self, block: Block, samples: int) -> Tensor:
        return self.matrix(block) if samples == 1 else columns_of_samples(block, samples, self.like)

    def _rows(self, block: Block, samples: int) -> Tensor:
        return self.matrix(block) if samples == 1 else rows_of_samples(block, samples, self.like)


def _apart(primal: Tensor) -> Tensor:
    """Return a tensor each of whose entries has memory of its own, as PyTorch's `make_dual` needs it."""
    expanded = any(stride == 0 and size > 1 for stride, size in zip(primal.stride(), primal.shape, strict=True))
    return primal.contiguous() if expanded else primal


MISPUSHED: set[tuple[Any, ...]] = set()
"""Calls whose JVP in PyTorch is not the transpose of their VJP, found by `check_duality`; the VJP is what counts."""


def check_duality(part: Part, tensors: Tensors) -> None:
    """Compare the JVP of an op with its VJP, and remember where they are not those of one Jacobian.

    Args:
        part: An op without closed form.
        tensors: The point.
    """
    key, active, value = _key(part, "dual"), part.op.active, tensors.primal.value
    empty = not all(part.meta(index).numel for index in (*active, *part.outputs))
    if None in (part.jvp_cost, part.vjp_cost) or empty or key in _COMPARED:
        return
    _COMPARED.add(key)
    x_dots, y_bars = (
        [weights(part.meta(index).numel, value(index).real) for index in indices] for indices in (active, part.outputs)
    )
    y_dots = tensors.push(part, active, [Block(Dense(x.numel(), 1), x[:, None]) for x in x_dots])
    x_bars = tensors.pull(part, active, [Block(Dense(1, y.numel()), y[None]) for y in y_bars])
    pushed, pulled = ([tensors.matrix(block).reshape(-1) for block in blocks] for blocks in (y_dots, x_bars))
    if not dual(y_bars, pushed, pulled, x_dots):
        MISPUSHED.add(key)


MISBATCHED: set[tuple[Any, ...]] = set()
"""Calls whose derivative PyTorch gets wrong under `vmap`, found by `check_batching`; of `cdist` in 2.13."""


def check_batching(part: Part, tensors: Tensors) -> None:
    """Compare the derivatives of an op for two vectors at once with those for each, and remember where they differ.

    Args:
        part: An op without closed form.
        tensors: The point.
    """
    value, active = tensors.primal.value, part.op.active
    for name, indices in (("push", active), ("pull", part.outputs)):
        cost = part.jvp_cost if name == "push" else part.vjp_cost
        key = _key(part, name)
        empty = not all(part.meta(index).numel for index in (*active, *part.outputs))
        if cost is None or empty or key in _COMPARED:
            continue
        _COMPARED.add(key)
        primals = [value(index) for index in indices]
        pairs = [in_pairs(torch.ones_like(primal)).reshape(-1) for primal in primals]
        pairs = [torch.linspace(-1, 1, 2 * p.numel(), dtype=p.dtype, device=p.device).reshape(2, -1) for p in pairs]

        def carried(rows: slice, name: str = name, pairs: list[Tensor] = pairs) -> Tensor:
            chosen = [pair[rows] for pair in pairs]
            if name == "push":
                blocks = [Block(Dense(x.shape[1], x.shape[0]), x.T) for x in chosen]
                return torch.cat([tensors.matrix(block).T for block in tensors.push(part, active, blocks)], 1)
            blocks = [Block(Dense(*x.shape), x) for x in chosen]
            return torch.cat([tensors.matrix(block) for block in tensors.pull(part, active, blocks)], 1)

        together = carried(slice(None))
        apart = torch.cat([carried(slice(0, 1)), carried(slice(1, 2))])
        if not close(together, apart):
            MISBATCHED.add(key)


_COMPARED: set[tuple[Any, ...]] = set()


def _key(part: Part, name: str) -> tuple[Any, ...]:
    """Return all that PyTorch chooses a derivative by: the op, its sizes and its other arguments."""
    op = part.op
    others = [leaf for leaf in tree_leaves((op.args, dict(op.kwargs))) if not isinstance(leaf, Ref)]
    sizes = tuple((part.meta(index).shape, part.meta(index).dtype) for index in op.operands)
    return op.target, name, tuple(index in op.active for index in op.operands), sizes, repr(others)
