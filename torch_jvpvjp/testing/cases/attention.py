"""The rows of attention."""

from typing import Any

import torch
from torch import Tensor

from ... import ops
from ...ops.attention import op as attention_op
from ..case import Sample
from .case_row import OpCase, tensor


def _scores(q: Tensor, k: Tensor, options: dict[str, Any]) -> Tensor:
    """What hides keys, added to the scores."""
    lq, lk = q.shape[-2], k.shape[-2]
    position = torch.arange(lq)[:, None] + (lk - lq if options.get("causal_alignment") == "bottom_right" else 0)
    distance = position - torch.arange(lk)
    left, right = options.get("window") or (None, None)
    hidden = torch.zeros(lq, lk, dtype=torch.bool)
    if options.get("is_causal"):
        hidden = hidden | (distance < 0)
    if left is not None:
        hidden = hidden | (distance > left)
    if right is not None:
        hidden = hidden | (-distance > right)
    added = torch.zeros(lq, lk, dtype=q.dtype).masked_fill(hidden, -torch.inf)
    return added


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax of the whole matrix of scores."""
    group = query.shape[-3] // key.shape[-3] if query.dim() > 2 else 1
    if group > 1:
        key, value = key.repeat_interleave(group, -3), value.repeat_interleave(group, -3)
    s = query @ key.mT * options.get("scale", query.shape[-1] ** -0.5)
    if options.get("softcap"):
        s = options["softcap"] * torch.tanh(s / options["softcap"])
    s = s + _scores(query, key, options).to(s.device)
    if attn_mask is not None:
        s = s.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else s + attn_mask
    top = s.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(s.dtype).min)
    e = torch.exp(s - top)
    mass = e.sum(-1, keepdim=True)
    empty = mass == 0
    mass = mass.masked_fill(empty, 1)
    o = (e / mass) @ value
    if not options.get("return_lse"):
        return o
    lse = (torch.log(mass) + top).masked_fill(empty, -torch.inf).squeeze(-1)
    return o, lse.to(torch.float64 if o.dtype == torch.float64 else torch.float32)


def _attention_jvp(
    query: Tensor, key: Tensor, value: Tensor, query_dot: Tensor, key_dot: Tensor, value_dot: Tensor, **options: Any
) -> tuple[Tensor, Tensor]:
    """P v and (P∘(Ṡ − ΣP∘Ṡ)) v + P v̇."""
    scale = query.shape[-1] ** -0.5
    s = query @ key.mT * scale + _scores(query, key, options).to(query.device)
    p = torch.softmax(s, -1)
    s_dot = (query_dot @ key.mT + query @ key_dot.mT) * scale
    p_dot = p * (s_dot - (p * s_dot).sum(-1, keepdim=True))
    return p @ value, p_dot @ value + p @ value_dot


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **options: Any
) -> Tensor:
    """Each sequence by itself; zeros behind the last."""
    rows, keys = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    parts = []
    for a, b, c, d in zip(rows, rows[1:], keys, keys[1:], strict=False):
        q, k, v = (t.transpose(0, 1) for t in (query[a:b], key[c:d], value[c:d]))
        parts.append(_attention(q, k, v, **options).transpose(0, 1))  # pyright: ignore[reportAttributeAccessIssue]
    behind = query.new_zeros((query.shape[0] - rows[-1], query.shape[1], value.shape[-1]))
    return torch.cat([*parts, behind])


_LENGTHS = torch.tensor([0, 1, 3]), torch.tensor([0, 2, 4])
_SEEN = torch.tensor([[True, False, True], [False, False, False]])

CASES: dict[str, OpCase] = {
    "scaled_dot_product_attention": OpCase(
        ops.scaled_dot_product_attention,
        attention_op,
        _attention,
        [
            # Every size is two or more: a size of 1 is compiled for itself, as sizes that broadcast are.
            Sample((tensor(2, 2, 2), tensor(2, 3, 2), tensor(2, 3, 2)), name="plain"),
            Sample((tensor(3, 3, 3), tensor(3, 2, 3), tensor(3, 2, 2)), name="plain, other sizes"),
            Sample(
                (tensor(1, 2, 2, 1), tensor(1, 1, 3, 1), tensor(1, 1, 3, 1)),
                {"is_causal": True, "enable_gqa": True, "causal_alignment": "bottom_right", "return_lse": True},
                name="grouped, causal, with lse",
            ),
            Sample(
                (tensor(2, 1, 2, 1), tensor(2, 1, 2, 1) - 1, tensor(2, 1, 2, 1) + 1, tensor(1, 1, 2)),
                {"softcap": 1.5, "window": (1, 0)},
                name="bias, capped, window",
            ),
            Sample(
                (tensor(1, 2, 2, 1), tensor(1, 2, 3, 1), tensor(1, 2, 3, 1), _SEEN),
                {"scale": 0.7},
                name="a row that sees nothing",
            ),
        ],
        interpreted=("a row that sees nothing",),  # minutes each; tests/kernels judges every mask and option
    ),
    "attention_jvp": OpCase(
        ops.attention_jvp,
        attention_op.jvp.op,
        _attention_jvp,
        [
            Sample(
                (*(tensor(1, 1, 2, 1) + i for i in range(3)), *(tensor(1, 1, 2, 1) - i for i in range(3))), name="all"
            ),
            Sample(
                (*(tensor(1, 1, 3, 1) + i for i in range(3)), *(tensor(1, 1, 3, 1) - i for i in range(3))),
                name="all, other sizes",
            ),
            Sample(
                (*(tensor(1, 1, 2, 1) + i for i in range(3)), *(tensor(1, 1, 2, 1) - i for i in range(3))),
                {"is_causal": True},
                name="causal",
            ),
        ],
        interpreted=(),  # its kernels are those of scaled_dot_product_attention
    ),
    "varlen_attention": OpCase(
        ops.varlen_attention,
        attention_op,
        _varlen,
        [
            Sample((tensor(3, 1, 1), tensor(4, 1, 1), tensor(4, 1, 1) + 1, *_LENGTHS), name="two sequences"),
            Sample(
                (tensor(4, 1, 1), tensor(5, 1, 1), tensor(5, 1, 1) + 1, *_LENGTHS),
                name="two sequences, and some behind",
            ),
            Sample(
                (
                    tensor(4, 2, 1),
                    tensor(4, 1, 1),
                    tensor(4, 1, 1) + 1,
                    torch.tensor([0, 3, 4]),
                    torch.tensor([0, 3, 4]),
                ),
                {"is_causal": True, "enable_gqa": True},
                name="causal, grouped",
            ),
        ],
        interpreted=(),  # as of attention_jvp
    ),
}
