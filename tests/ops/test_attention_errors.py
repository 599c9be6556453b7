"""What attention refuses, before anything is computed, in words that name argument, numbers and way out."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from torch_jvpvjp import ops

Q, K = torch.zeros(2, 4, 3, 6), torch.zeros(2, 4, 5, 6)
SLOPES = torch.rand(4)


def blocks(*sizes: Any, **options: Any) -> Any:
    return create_block_mask(lambda b, h, i, j: i >= j, *sizes, device="cpu", **options)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((None, K, K), TypeError, r"query must be a Tensor, got NoneType"),
        ((Q, 1, K), TypeError, r"key must be a Tensor, got int"),
        ((Q.long(), K, K), TypeError, r"query must be float16, .* got torch.int64"),
        ((Q, K, K.cfloat()), TypeError, r"value must be float16, .* got torch.complex64"),
        ((Q, K.half(), K), TypeError, r"key must have the query's dtype torch.float32, got torch.float16; use .to\(\)"),
        ((Q, K, K.to("meta")), ValueError, r"value must be on the query's device cpu, got meta"),
        ((Q[0, 0, 0], K, K), ValueError, r"query must have at least the axes \(length, head size\), got shape \(6,\)"),
        ((Q, K[..., :5], K), ValueError, r"key must have the query's head size 6 .* got \(2, 4, 5, 5\)"),
        ((Q, K, K[:, :, :4]), ValueError, r"value must be as long as key, .* \(2, 4, 5, 6\), got \(2, 4, 4, 6\)"),
        ((Q, K[:, :3], K), ValueError, r"one number of heads, or 1, got \(4, 3, 4\); .* pass enable_gqa=True"),
        ((Q, K[:, :2], K[:, :2]), ValueError, r"one number of heads, or 1, got \(4, 2, 2\); .* pass enable_gqa=True"),
        ((Q, K.expand(3, 2, 4, 5, 6), K[:1].expand(4, 1, 4, 5, 6)), ValueError, r"batch axes .* must broadcast, got"),
    ],
)
def test_query_key_and_value(args: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"scaled_dot_product_attention: .*{message}"):
        ops.scaled_dot_product_attention(*args)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"attn_mask": 1.0}, TypeError, r"attn_mask must be a Tensor, a BlockMask or None, got float"),
        ({"attn_mask": torch.zeros(3, 5).long()}, TypeError, r"attn_mask must be bool .* torch.float32 .* torch.int64"),
        ({"attn_mask": torch.zeros(3, 5).half()}, TypeError, r"attn_mask must be bool .* got torch.float16"),
        ({"attn_mask": torch.zeros(3, 5, device="meta")}, ValueError, r"attn_mask must be on the device cpu, got meta"),
        ({"attn_mask": torch.zeros(5)}, ValueError, r"broadcast with \(2, 4, 3, 5\), .* got shape \(5,\)"),
        ({"attn_mask": torch.zeros(3, 4)}, ValueError, r"broadcast with \(2, 4, 3, 5\), .* got shape \(3, 4\)"),
        ({"attn_mask": torch.zeros(3, 1, 3, 5)}, ValueError, r"broadcast with \(2, 4, 3, 5\), .* \(3, 1, 3, 5\)"),
        ({"attn_mask": torch.zeros(1, 2, 4, 3, 5)}, ValueError, r"\(2, 4, 3, 5\), .* got shape \(1, 2, 4, 3, 5\)"),
        ({"attn_mask": blocks(None, None, 3, 6)}, ValueError, r"BlockMask for 3 queries and 6 keys, got 3 and 5; .*"),
        ({"attn_mask": blocks(3, None, 3, 5)}, ValueError, r"for batch 3 and 1 heads, query has 2 and 4; .* B=None"),
        ({"attn_mask": blocks(None, 2, 3, 5)}, ValueError, r"for batch 1 and 2 heads, query has 2 and 4"),
        ({"attn_mask": blocks(None, None, 3, 5).to("meta")}, ValueError, r"BlockMask on meta, the query on cpu"),
        (
            {"attn_mask": blocks(None, None, 3, 5, BLOCK_SIZE=24)},
            ValueError,
            r"blocks 24 x 24; kernels take powers of two from 16; pass BLOCK_SIZE=128",
        ),
        ({"dropout_p": -0.1}, ValueError, r"dropout_p must be in \[0.0, 1.0\], got -0.1"),
        ({"dropout_p": 1.5}, ValueError, r"dropout_p must be in \[0.0, 1.0\], got 1.5"),
        ({"dropout_p": float("nan")}, ValueError, r"dropout_p must be in \[0.0, 1.0\], got nan"),
        ({"dropout_p": "much"}, TypeError, r"dropout_p must be a number, got 'much'"),
        ({"is_causal": 1}, TypeError, r"is_causal must be True or False, got 1"),
        ({"scale": "auto"}, TypeError, r"scale must be a number, got 'auto'"),
        ({"scale": torch.ones(())}, TypeError, r"scale must be a number, got a tensor, .* lost; use .item\(\)"),
        ({"scale": float("nan")}, ValueError, r"scale must be in \[-inf, inf\], got nan"),
        ({"enable_gqa": None}, TypeError, r"enable_gqa must be True or False, got None"),
        ({"return_lse": 1}, TypeError, r"return_lse must be True or False, got 1"),
        ({"causal_alignment": "middle"}, ValueError, r"causal_alignment must be one of .* got 'middle'"),
        ({"window": 3}, TypeError, r"window must be a pair \(left, right\) .* got 3"),
        ({"window": (1, 2, 3)}, TypeError, r"window must be a pair \(left, right\) .* got \(1, 2, 3\)"),
        ({"window": (1.5, None)}, TypeError, r"window must hold ints or None \(unbounded\), got \(1.5, None\)"),
        ({"window": (True, 1)}, TypeError, r"window must hold ints or None .* got \(True, 1\)"),
        ({"window": (-1, 2)}, ValueError, r"window must hold no negative numbers, got \(-1, 2\); None is unbounded"),
        ({"softcap": 0}, ValueError, r"softcap must be positive and finite, got 0; None is no cap"),
        ({"softcap": -2.0}, ValueError, r"softcap must be in \[0.0, inf\], got -2.0"),
        ({"softcap": torch.ones(())}, TypeError, r"softcap must be a number, got a tensor, .* lost"),
        (
            {"alibi_slopes": 0.5},
            TypeError,
            r"alibi_slopes must be a floating Tensor or None, got float; use torch.tensor",
        ),
        ({"alibi_slopes": SLOPES.long()}, TypeError, r"alibi_slopes must be a floating Tensor or None"),
        ({"alibi_slopes": SLOPES[:3]}, ValueError, r"shape \(4,\) or \(2, 4\) on cpu, got \(3,\) on cpu"),
        ({"alibi_slopes": SLOPES.to("meta")}, ValueError, r"shape \(4,\) or \(2, 4\) on cpu, got \(4,\) on meta"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"scaled_dot_product_attention: .*{message}"):
        ops.scaled_dot_product_attention(Q, K, K, **options)


def test_grouped_queries_must_divide() -> None:
    with pytest.raises(ValueError, match=r"heads of key and value must divide those of query, 4, got 3 and 4"):
        ops.scaled_dot_product_attention(Q, K[:, :3], K, enable_gqa=True)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        ((Q[..., :5],), {}, ValueError, r"query_dot must be as query, \(2, 4, 3, 6\) .* got \(2, 4, 3, 5\)"),
        ((Q, K.half()), {}, ValueError, r"key_dot must be as key, .* torch.float32 on cpu, got .* torch.float16"),
        ((Q, K, 1.0), {}, TypeError, r"value_dot must be a Tensor or None, got float"),
        ((Q,), {"attn_mask_dot": Q}, ValueError, r"attn_mask_dot was given, but attn_mask is no float tensor"),
        (
            (Q,),
            {"attn_mask": torch.ones(3, 5).bool(), "attn_mask_dot": torch.ones(3, 5)},
            ValueError,
            r"attn_mask_dot was given, but attn_mask is no float tensor and has no tangent; pass None",
        ),
        (
            (Q,),
            {"attn_mask": torch.ones(3, 5), "attn_mask_dot": torch.ones(1, 5)},
            ValueError,
            r"attn_mask_dot must be as attn_mask, \(3, 5\) .* got \(1, 5\)",
        ),
        ((Q,), {"dropout_p": 2}, ValueError, r"dropout_p must be in \[0.0, 1.0\], got 2"),
    ],
)
def test_tangents_by_hand(args: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"attention_jvp: .*{message}"):
        ops.attention_jvp(Q, K, K, *args, **options)


# ---- what has no derivative says so ----------------------------------------------------------------------------------


def _with_slopes(slopes: Tensor) -> Tensor:
    return ops.scaled_dot_product_attention(Q, K, K, alibi_slopes=slopes)


def _varlen_with_slopes(slopes: Tensor) -> Tensor:
    return ops.varlen_attention(Q[0], Q[0], Q[0], torch.tensor([0, 4]), alibi_slopes=slopes[:3])


def _jvp_with_slopes(slopes: Tensor) -> Tensor:
    return ops.attention_jvp(Q, K, K, Q, alibi_slopes=slopes)[1]


@pytest.mark.parametrize("attend", [_with_slopes, _varlen_with_slopes, _jvp_with_slopes])
def test_slopes_are_not_differentiated(attend: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"alibi_slopes requires grad, .* alibi_slopes.detach\(\)"):
        attend(SLOPES.clone().requires_grad_())
    for transform in (torch.func.grad(lambda s: attend(s).sum()), torch.func.jacrev(attend)):
        with pytest.raises(NotImplementedError, match=r"alibi_slopes requires grad"):
            transform(SLOPES)
    for transform in (torch.func.jacfwd(attend), lambda s: torch.func.jvp(attend, (s,), (s,))):
        with pytest.raises(NotImplementedError, match=r"alibi_slopes has a tangent, .* float attn_mask"):
            transform(SLOPES)


def test_tangents_that_do_not_lie_at_their_primal() -> None:
    """The op itself, for those who call it through torch.ops."""
    from torch_jvpvjp.ops.attention import op

    rest = (None,) * 9 + (None, -1, -1, 0, 0.0, 0.0, 0, 0)
    assert len(rest) + 3 == len(op.signature.arguments)
    with pytest.raises(
        ValueError, match=r"the tangent of query must have its shape \(2, 4, 3, 6\), got \(2, 4, 3, 5\)"
    ):
        op.jvp.op(Q, K, K, *rest, Q[..., :5], None, None, None)
    with pytest.raises(ValueError, match=r"the tangent of attn_mask must be absent, as it is, got \(3, 5\)"):
        op.jvp.op(Q, K, K, *rest, None, None, None, torch.zeros(3, 5))
