"""Attention for those who thread tangents by hand."""

from typing import Any

from torch import Tensor

from .._arguments import check_tensor
from .arguments import mask_of
from .face import Options, read
from .rules import op

_NAME = "attention_jvp"


def attention_jvp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_dot: Tensor | None = None,
    key_dot: Tensor | None = None,
    value_dot: Tensor | None = None,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    attn_mask_dot: Tensor | None = None,
    causal_alignment: str = "top_left",
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Value and tangent of attention as plain tensors: no forward-mode AD involved, in one kernel on a GPU.

        o = P v,    ȯ = (P∘(Ṡ − rowsum(P∘Ṡ))) v + P v̇,    Ṡ = s (q̇ kᵀ + q k̇ᵀ)

    The same numbers as ``torch.func.jvp`` of `scaled_dot_product_attention`, and differentiable in all of q, k, v, q̇,
    k̇, v̇ (and the mask and its tangent, if it is a float one): the backward pass of a loss that reads o alone costs that
    of attention.

    Args:
        query: q, shape (..., Hq, Lq, dk).
        key: k, shape (..., Hk, Lk, dk).
        value: v, shape (..., Hk, Lk, dv).
        query_dot: q̇, of q's shape and dtype, or None for zero; what is missing is not computed.
        key_dot: k̇, likewise.
        value_dot: v̇, likewise.
        attn_mask: As for `scaled_dot_product_attention`, as all that follow.
        dropout_p: Probability of dropout; one mask for o and ȯ.
        is_causal: A row sees no key after its position.
        scale: s; 1/√dk if None.
        enable_gqa: Let Hq be a multiple of Hk.
        attn_mask_dot: Tangent of a float attn_mask, of its shape and dtype, or None for zero.
        causal_alignment: "top_left" or "bottom_right".
        window: Keys before and after its position that a row sees.
        softcap: κ.
        alibi_slopes: Slopes of ALiBi.

    Returns:
        o and ȯ, shape (..., Hq, Lq, dv), in the query's dtype.

    Raises:
        TypeError: If an argument is not of its type.
        ValueError: If shapes or devices do not agree, or a tangent has not the shape of its primal.
    """
    for name, primal, tangent in (
        ("query", query, query_dot),
        ("key", key, key_dot),
        ("value", value, value_dot),
        ("attn_mask", attn_mask, attn_mask_dot),
    ):
        _check_tangent(name, primal, tangent)
    arguments = read(
        _NAME,
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale,
        enable_gqa,
        Options(causal_alignment, window, softcap, alibi_slopes),
    )
    dots: list[Any] = list(arguments.layout.apply((query_dot, key_dot, value_dot)))
    dots.append(mask_of(_NAME, attn_mask_dot, arguments.heads)[0])
    lead = arguments.heads.lead
    if all(t is None for t in dots):
        o = op(*arguments.values)[0]
        return o.reshape((*lead, *o.shape[-2:])), o.new_zeros((*lead, *o.shape[-2:]))
    o, _, o_dot, _ = op.jvp.op(*arguments.values, *dots)
    return o.reshape((*lead, *o.shape[-2:])), o_dot.reshape((*lead, *o_dot.shape[-2:]))


def _check_tangent(name: str, primal: Any, tangent: Any) -> None:
    """Refuse a tangent that does not lie at its primal."""
    if tangent is None:
        return
    check_tensor(_NAME, f"{name}_dot", tangent, optional=True)
    if name != "attn_mask" or isinstance(primal, Tensor):  # that may be a BlockMask, or absent
        check_tensor(_NAME, name, primal)
    if not isinstance(primal, Tensor) or not primal.is_floating_point():
        raise ValueError(f"{_NAME}: {name}_dot was given, but {name} is no float tensor and has no tangent; pass None.")
    if tangent.shape != primal.shape or tangent.dtype != primal.dtype or tangent.device != primal.device:
        raise ValueError(
            f"{_NAME}: {name}_dot must be as {name}, {tuple(primal.shape)} {primal.dtype} on {primal.device}, got "
            f"{tuple(tangent.shape)} {tangent.dtype} on {tangent.device}."
        )
