"""The reference of rope, its rules up to the second order, and how vmap and tracing see them.

In the dispatcher all tensors have one order of axes, (*lead, heads, tokens, d) or, if heads_last, (*lead, tokens,
heads, d), with ones where a tensor does not vary; leads broadcast from the right: that is where vmap puts a batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...registration import DifferentiableOp, differentiable_op, expanding_rule
from ...registration.vmap import VmapRule, align, logical_shape
from .._arithmetic import empty_like
from . import maps
from .maps import Frame, Pair
from .points import Points, Pulled, Wants, check_tangents


class _Formula:
    """The maps in plain PyTorch."""

    turn = staticmethod(maps.turn)

    @staticmethod
    def pull(frame: Frame, x: Pair, x_dot: Pair, a: Pair, b: Pair, wants: Wants) -> tuple[Pulled, Pulled]:
        first, second = maps.turn(frame, a, b, inverse=True, wants=wants[:2])
        first_sum, second_sum = maps.correlate(frame, x, x_dot, a, b, wants[2:])
        return Pulled(first, first_sum), Pulled(second, second_sum)


formula = Points(_Formula())


@differentiable_op("torch_jvpvjp::rope", non_differentiable=("position_ids",), composite=True)
def op(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None,
    interleaved: bool,
    heads_last: bool,
) -> tuple[Tensor, Tensor]:
    """The reference: y = x e on the pairs of every head of q and k, e = cos + i sin.

    Args:
        q: Heads, (*lead, heads, tokens, d), or (*lead, tokens, heads, d) if heads_last.
        k: The same with as many heads as it likes, or None.
        cos: (*lead, 1, tokens, c); with position_ids a table, (*lead, 1, rows, c); axes swapped if heads_last.
        sin: As cos.
        position_ids: (*lead, 1, tokens, 1), swapped if heads_last: which row of cos and sin a token takes; or None.
        interleaved: Whether the halves of a pair are neighbours.
        heads_last: See q.

    Returns:
        q and k turned, in their dtypes; without k an empty tensor.
    """
    return formula.primal(q, k, cos, sin, position_ids, interleaved, heads_last)


op.jvp(formula.jvp)
op.vjp(formula.vjp)
op.jvp.vjp(formula.jvp_vjp)
op.vjp.jvp(formula.vjp_jvp)
op.vjp.vjp(formula.vjp_vjp)


# ---- vmap: a batch axis goes in front of the lead --------------------------------------------------------------------
# Positions are those of the flat arguments; in a JVP an unbatched primal stays unbatched, so K tangents are one launch.


def _broadcasting_rule(point: DifferentiableOp, results: Sequence[tuple[int, tuple[int, ...]]]) -> VmapRule:
    """The vmap rule of a point whose results have the own axes of an argument, the first, and the leads of several."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, Any]:
        computed = point.unpacked(point.overload(*align(info, in_dims, args, expand=False)))
        shaped: list[Tensor] = []
        out_dims: list[int | None] = []
        for result, (like, sources) in zip(computed, results, strict=True):
            logical = [s for i in sources if (s := logical_shape(args[i], in_dims[i])) is not None]
            batched = args[like] is not None and any(in_dims[i] is not None for i in sources)
            if args[like] is not None:
                shape = (*torch.broadcast_shapes(*(s[:-3] for s in logical)), *logical[0][-3:])
                result = result.reshape((*((info.batch_size,) if batched else ()), *shape))
            shaped.append(result)
            out_dims.append(0 if batched else None)
        return tuple(shaped), tuple(out_dims)

    return rule


_PRIMAL = (2, 3, 4)  # cos, sin, position_ids
_TANGENTS = (9, 10)  # cos_dot, sin_dot
op.vmap(_broadcasting_rule(op, [(0, (0, *_PRIMAL)), (1, (1, *_PRIMAL))]))
op.jvp.vmap(
    _broadcasting_rule(
        op.jvp.op,
        [
            (0, (0, *_PRIMAL)),
            (1, (1, *_PRIMAL)),
            (0, (0, 7, *_PRIMAL, *_TANGENTS)),
            (1, (1, 8, *_PRIMAL, *_TANGENTS)),
        ],
    )
)
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(2, 3, 4, 5)))  # two cotangents, q, k, cos, sin, ...
op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(4, 5, 6, 7, 11, 12, 13, 14)))
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(2, 3, 4, 5, 2, 3, 4, 5)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(4, 5, 6, 7, 8, 9)))  # four cotangents, two, q, k, ...


# ---- shapes: what tracing sees instead of the formulas ---------------------------------------------------------------


@op.fake
def _fake(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None,
    interleaved: bool,
    heads_last: bool,
) -> tuple[Tensor, Tensor]:
    return _heads_like(q, q, cos, sin, position_ids), _heads_like(k, q, cos, sin, position_ids)


@op.jvp.fake
def _jvp_fake(primals: Any, tangents: Any) -> tuple[Any, Any]:
    check_tangents(primals, tangents)
    q, k, *rest = primals[:5]
    y = (_heads_like(q, q, *rest), _heads_like(k, q, *rest))
    turns = (*rest, tangents.cos, tangents.sin)
    return y, (_heads_like(q, q, tangents.q, *turns), _heads_like(k, q, tangents.k, *turns))


@op.vjp.fake
def _vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return empty_like(inputs.q, inputs.k, inputs.cos, inputs.sin)


@op.jvp.vjp.fake
def _jvp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    tangents = (inputs.q_dot, inputs.k_dot, inputs.cos_dot, inputs.sin_dot)
    return empty_like(inputs.q, inputs.k, inputs.cos, inputs.sin, *tangents)


@op.vjp.jvp.fake
def _vjp_jvp_fake(primals: Any, tangents: Any) -> tuple[tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    likes = (primals.q, primals.k, primals.cos, primals.sin)
    return empty_like(*likes), empty_like(*likes)


@op.vjp.vjp.fake
def _vjp_vjp_fake(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    return empty_like(inputs.y0_bar, inputs.y1_bar, inputs.q, inputs.k, inputs.cos, inputs.sin)


def _heads_like(heads: Tensor | None, q: Tensor, *others: Tensor | None) -> Tensor:
    """A result like some heads, its lead broadcast against those of all operands."""
    if heads is None:
        return q.new_empty(0)
    lead = torch.broadcast_shapes(*(t.shape[:-3] for t in (heads, *others) if t is not None))
    return q.new_empty((*lead, *heads.shape[-3:]))
