"""What the arguments of a point are to the mathematics, and the axis that vmap puts in front of them."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from .maps import Operands, Scores

_BLOCKS = ("kv_count", "kv_index", "q_count", "q_index", "q_block", "kv_block")


def operands_of(inputs: Any) -> Operands:
    """What is differentiated among the arguments of a point."""
    return Operands(inputs.query, inputs.key, inputs.value, inputs.bias)


def tangents_of(inputs: Any) -> Operands:
    """The tangents among the arguments of the pullback of the JVP."""
    return Operands(inputs.query_dot, inputs.key_dot, inputs.value_dot, inputs.bias_dot)


def scores_of(inputs: Any) -> Scores:
    """What is done to the scores, among the arguments of a point."""
    return Scores(
        inputs.mask,
        inputs.slopes,
        inputs.ranges,
        inputs.seed,
        factor_of(inputs.scale, inputs.query),
        inputs.left,
        inputs.right,
        inputs.offset,
        inputs.softcap,
        inputs.dropout_p,
        None if inputs.kv_count is None else tuple(getattr(inputs, name) for name in _BLOCKS),
    )


def factor_of(scale: float | None, query: Tensor) -> float:
    """The scale s of the scores; 1/√dk if it is not given.

    That default reaches the points as None: a number that is computed from a symbolic size would become a constant
    where it passes the dispatcher, and every head size would be compiled anew.

    Args:
        scale: What was given.
        query: q.

    Returns:
        s.
    """
    if scale is None:
        return 1.0 / math.sqrt(query.shape[-1]) if query.shape[-1] else 1.0
    return scale


def check_tangents(at: Operands, dots: Operands) -> None:
    """Refuse a tangent that does not lie at its primal."""
    for name, primal, tangent in zip(("query", "key", "value", "attn_mask"), at, dots, strict=True):
        if tangent is not None and (primal is None or tangent.shape[-4:] != primal.shape[-4:]):
            wanted = "be absent, as it is" if primal is None else f"have its shape {tuple(primal.shape)}"
            raise ValueError(
                f"attention: the tangent of {name} must {wanted}, got {tuple(tangent.shape)}; pass None for zero."
            )


# ---- the axis that vmap puts in front --------------------------------------------------------------------------------

# How many axes a tensor argument has without it, by the beginning of its name; results of the primal are y0, y1, rest.
_RANKS = {
    "query": 4,
    "key": 4,
    "value": 4,
    "bias": 4,
    "mask": 4,
    "slopes": 2,
    "ranges": 3,
    "seed": 0,
    "kv_count": 3,
    "kv_index": 4,
    "q_count": 3,
    "q_index": 4,
    "y0": 4,
    "y1": 3,
    "rest": 3,
}


def rank_of(name: str) -> int:
    """Axes of an argument or result without the one in front.

    Args:
        name: Its name at any point, such as ``query_dot`` or ``y0_bar``.

    Returns:
        The number.
    """
    while name not in _RANKS:
        name = name.rpartition("_")[0]
    return _RANKS[name]


@functools.cache
def _ranks_of(names: tuple[str, ...]) -> tuple[tuple[int, int], ...]:
    """Places of the tensors among the names of arguments, and their axes without the one in front."""
    return tuple((i, rank_of(name)) for i, name in enumerate(names) if name.startswith(tuple(_RANKS)))


def batch_of(*inputs: Any) -> Any:
    """The size of the axis in front that some tensor among named tuples of arguments has; None if none has one."""
    for values in inputs:
        for i, rank in _ranks_of(values._fields):
            x = values[i]
            if x is not None and x.dim() > rank:
                return x.shape[0]
    return None


def with_batches(
    primals: Any,
    tangents: Any,
    o: Tensor,
    lse: Tensor,
    o_dot: Tensor | None,
    lse_dot: Tensor | None,
    rest: Tensor,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Results of a JVP: each with the axis in front exactly if something it depends on may have it."""
    n, k = batch_of(primals), batch_of(primals, tangents)
    return (with_batch(o, 4, n), with_batch(lse, 3, n), with_batch(rest, 3, n)), (
        with_batch(torch.zeros_like(o) if o_dot is None else o_dot, 4, k),
        with_batch(torch.zeros_like(lse) if lse_dot is None else lse_dot, 3, k),
    )


def with_batch(result: Tensor, rank: int, n: Any) -> Tensor:
    """A result with the axis in front if there is one."""
    return result if n is None or result.dim() > rank else result.expand(n, *result.shape)
