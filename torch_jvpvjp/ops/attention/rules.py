"""The op behind all attention: its reference, its rules up to the second order, and its shapes.

In the dispatcher query is (B, Hq, Lq, dk), key (B, Hk, Lk, dk), value (B, Hk, Lk, dv), bias and mask (b, h, r, n) with
axes that are full or 1; any of them may have one axis more in front: that is where vmap puts a batch. The results are
the output o and ℓ = log Σ exp S, (B, Hq, Lq), in float32, or float64. Kernels of pullbacks get a third, what ℓ as
rounded lacks: they make P of exp(S − ℓ), and the rounding of ℓ is relative to ℓ, not to 1.
"""

from typing import Any

import torch
from torch import Tensor

from ...registration import differentiable_op
from .._arithmetic import empty_like
from .inputs import batch_of, factor_of, operands_of, tangents_of
from .maps import Operands, Scores
from .points import forward
from .tower import formulas

_NOT_DIFFERENTIATED = ("mask", "slopes", "ranges", "seed", "kv_count", "kv_index", "q_count", "q_index")


@differentiable_op("torch_jvpvjp::attention", residuals=("rest",), non_differentiable=_NOT_DIFFERENTIATED)
def op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    slopes: Tensor | None,
    ranges: Tensor | None,
    seed: Tensor | None,
    kv_count: Tensor | None,
    kv_index: Tensor | None,
    q_count: Tensor | None,
    q_index: Tensor | None,
    scale: float | None,
    left: int,
    right: int,
    offset: int,
    softcap: float,
    dropout_p: float,
    q_block: int,
    kv_block: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference: o = (P∘M) v and ℓ, with P = softmax S by rows.

    Args:
        query: q, (B, Hq, Lq, dk).
        key: k, (B, Hk, Lk, dk).
        value: v, (B, Hk, Lk, dv).
        bias: Added to the scores, (b, h, r, n), or None.
        mask: Which scores take part, bool, (b, h, r, n), or None.
        slopes: ALiBi's, float32, (b, Hq), or None.
        ranges: First key, end of keys and position of each row, int32, (b, 3, Lq), in place of the window, or None.
        seed: Seed of dropout, int64, (), or None.
        kv_count: How many blocks of keys each block of rows looks at, int32, (b, h, R); only kernels read it, and the
            following three, to skip what the mask hides anyway.
        kv_index: Which ones, (b, h, R, C).
        q_count: How many blocks of rows look at each block of keys, (b, h, C).
        q_index: Which ones, (b, h, C, R).
        scale: s; None for 1/√dk.
        left: Keys that a row sees before its position; −1: all.
        right: Keys that a row sees after its position; −1: all.
        offset: Position of the first row among the keys.
        softcap: κ; 0: none.
        dropout_p: Probability of dropout.
        q_block: Rows in a block.
        kv_block: Keys in a block.

    Returns:
        o and ℓ, and what ℓ lacks of log Σ exp S, 0 where no kernel reads it.
    """
    scores = Scores(mask, slopes, ranges, seed, factor_of(scale, query), left, right, offset, softcap, dropout_p)
    return forward(Operands(query, key, value, bias), scores)


op.autocast("lower")
op.jvp(formulas.jvp)
op.vjp(formulas.vjp)
op.jvp.vjp(formulas.jvp_vjp)
op.vjp.jvp(formulas.vjp_jvp)
op.vjp.vjp(formulas.vjp_vjp)


# ---- shapes ----------------------------------------------------------------------------------------------------------


@op.fake
def _fake(*args: Any) -> tuple[Tensor, ...]:
    inputs = op.signature.inputs_type(*args)
    n = batch_of(inputs)
    return _empty(inputs, n, 3)


def _empty(inputs: Any, n: Any, count: int) -> tuple[Tensor, ...]:
    """o, or its tangent, and numbers of rows, together so many."""
    q = inputs.query
    lead = () if n is None else (n,)
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    o = q.new_empty((*lead, *q.shape[-4:-1], inputs.value.shape[-1]))
    return o, *(q.new_empty((*lead, *q.shape[-4:-1]), dtype=dtype) for _ in range(count - 1))


@op.jvp.fake
def _jvp_fake(primals: Any, tangents: Any) -> Any:
    return _empty(primals, batch_of(primals), 3), _empty(primals, batch_of(primals, tangents), 2)


@op.vjp.fake
def _vjp_fake(cotangents: Any, inputs: Any, outputs: Any) -> Any:
    return empty_like(*operands_of(inputs))


@op.jvp.vjp.fake
def _jvp_vjp_fake(cotangents: Any, inputs: Any, outputs: Any) -> Any:
    return empty_like(*operands_of(inputs), *tangents_of(inputs))


@op.vjp.jvp.fake
def _vjp_jvp_fake(primals: Any, tangents: Any) -> Any:
    results = empty_like(*operands_of(primals))
    return results, empty_like(*operands_of(primals))


@op.vjp.vjp.fake
def _vjp_vjp_fake(cotangents: Any, inputs: Any) -> Any:
    return empty_like(inputs.y0_bar, inputs.y1_bar, *operands_of(inputs), inputs.y0, inputs.y1)
