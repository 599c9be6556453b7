"""The public faces of attention."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...registration import _torch_private as private
from .arguments import Heads, Layout, by_heads, check_flag, check_tensors, mask_of, number_of, slopes_of, visible_of
from .blocks import Blocks, blocks_of, is_block_mask
from .rules import op

_NAME = "scaled_dot_product_attention"
_NO_BLOCKS = Blocks()
_is_compiling, _any_autocast = torch.compiler.is_dynamo_compiling, private.is_any_autocast_enabled


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    causal_alignment: str = "top_left",
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Attention with every derivative; signature and semantics of ``F.scaled_dot_product_attention``, and some options.

    For every query row i and key j that it sees, with s the scale,

        z_ij = s q_i·k_j,   S_ij = κ tanh(z_ij / κ) + bias_ij − m |position_i − j|,   P = softmax S by rows,   o = P v
        ȯ = (P∘(Ṡ − ℓ̇)) v + P v̇,   ℓ̇ = Σ P∘Ṡ,   ℓ = log Σ exp S
        v̄ = Pᵀ ō,   dS = P∘(ō vᵀ − ō·o),   q̄ = s dS k,   k̄ = s dSᵀ q

    On a GPU value and tangent are one kernel (6 products of the size of attention; 2 + 4 K for K tangents), pullback,
    pullback of value and tangent, and tangent of the pullback two each, by rows and by columns, and one more for the
    gradient of a bias. No point up to the second order holds a matrix of queries by keys, on no device. Higher
    orders and devices without a kernel take the formulas.

    With grouped queries keys and values are not repeated. Masks and biases are read through their strides and not
    expanded. A row that sees no key gives zeros, ℓ = −∞, and zero derivatives.

    Args:
        query: q, shape (..., Hq, Lq, dk), or (Lq, dk); float16, bfloat16, float32 or float64.
        key: k, shape (..., Hk, Lk, dk). Axes in front broadcast; Hk may be 1, or with enable_gqa any divisor of Hq.
        value: v, shape (..., Hk, Lk, dv).
        attn_mask: bool, True where a key takes part; or float32 or of the query's dtype, added to the scores, with its
            derivatives; broadcasting with (..., Hq, Lq, Lk). Or a ``torch.nn.attention.flex_attention.BlockMask``,
            whose empty blocks are skipped; its ``mask_mod`` is evaluated once, under torch.compile in every call, to
            one bool per query and key for each batch and head that it tells apart. Whatever hides keys holds together.
            A row hidden as a whole by finite numbers, such as −1e9, is one of equal scores; for 16 bits on a GPU its
            cotangents are finite and no more than that, since P is made again from ℓ: hide rows by False or −∞.
        dropout_p: Probability with which an element of P is dropped and the rest divided by 1 − p. Which ones are is a
            function of a seed drawn from PyTorch's default generator (``torch.manual_seed``): the same in value,
            tangent and all derivatives of one call. Always active if positive, as in PyTorch.
        is_causal: A row sees no key after its position.
        scale: s; 1/√dk if None.
        enable_gqa: Let Hq be a multiple of Hk.
        causal_alignment: Where positions start if Lq ≠ Lk: "top_left", row i at key i, as in PyTorch; or
            "bottom_right", the last row at the last key, as with a cache of keys. For is_causal, window, alibi_slopes.
        window: How many keys before and after its position a row sees; None is unbounded.
        softcap: κ, positive; None for no cap.
        alibi_slopes: m, shape (Hq,) or (B, Hq); not differentiated: one that requires grad is refused.
        return_lse: Return ℓ too.

    Returns:
        o, shape (..., Hq, Lq, dv), in the query's dtype; with ``return_lse`` the pair of o and ℓ, shape (..., Hq, Lq),
        float32 (float64 for float64), which is differentiable as well.

    Raises:
        TypeError: If an argument is not of its type, or dtypes differ outside of autocast.
        ValueError: If shapes or devices do not agree or a number is outside of its range.
        NotImplementedError: If a derivative is asked for with respect to alibi_slopes.
    """
    check_flag(_NAME, "return_lse", return_lse)
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
    o, lse = op.visible(op.call_flat(arguments.values)) if arguments.plain else op(*arguments.values)
    if arguments.heads.lead != o.shape[:-2]:
        lead = arguments.heads.lead
        o, lse = o.reshape((*lead, *o.shape[-2:])), lse.reshape((*lead, lse.shape[-1]))
    return (o, lse) if return_lse else o


class Options(NamedTuple):
    """The options that PyTorch's attention does not have; see `scaled_dot_product_attention`."""

    causal_alignment: Any = "top_left"
    window: Any = None
    softcap: Any = None
    alibi_slopes: Any = None


class Arguments(NamedTuple):
    """What was given, as the op takes it.

    Attributes:
        values: One value per argument of the op.
        heads: Query, key and value, and the axes in front of the results.
        layout: How they came about.
        plain: Whether no autocast and no tracing looks at the call.
    """

    values: tuple[Any, ...]
    heads: Heads
    layout: Layout
    plain: bool


def read(
    name: str,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any,
    dropout_p: Any,
    is_causal: Any,
    scale: Any,
    enable_gqa: Any,
    options: Options,
) -> Arguments:
    """Check the arguments of an attention and bring them to those of the op.

    Args:
        name: The function that was called.
        query: See `scaled_dot_product_attention`, as all others.
        key: k.
        value: v.
        attn_mask: The mask or bias.
        dropout_p: Probability of dropout.
        is_causal: Whether a row sees no key after its position.
        scale: s.
        enable_gqa: Whether queries may be grouped.
        options: The others.

    Returns:
        The arguments.
    """
    check_tensors(name, query, key, value)
    heads, layout = by_heads(name, query, key, value, enable_gqa=enable_gqa)
    bias = mask = None
    blocks = _NO_BLOCKS
    if attn_mask is not None:
        if is_block_mask(attn_mask):
            blocks = blocks_of(name, attn_mask, heads)
            mask = blocks.mask
        else:
            bias, mask = mask_of(name, attn_mask, heads)
    visible = visible_of(name, heads, is_causal, options.window, options.causal_alignment)
    dropout_p = number_of(name, "dropout_p", dropout_p, low=0.0, high=1.0)
    values = (
        heads.query,
        heads.key,
        heads.value,
        bias,
        mask,
        slopes_of(name, options.alibi_slopes, heads),
        None,
        draw_seed(dropout_p, query),
        *blocks.lists,
        scale_of(name, scale),
        *visible,
        softcap_of(name, options.softcap),
        dropout_p,
        *blocks.sizes,
    )
    plain = not (_is_compiling() or _any_autocast())
    return Arguments(values, heads, layout, plain)


def scale_of(name: str, scale: Any) -> Any:
    """The factor of the scores.

    Args:
        name: The function that was called.
        scale: What came.

    Returns:
        The factor, or None.
    """
    return None if scale is None else number_of(name, "scale", scale, low=-math.inf)


def softcap_of(name: str, softcap: Any) -> Any:
    """The cap of the scores, 0 for none.

    Args:
        name: The function that was called.
        softcap: What came.

    Returns:
        κ.

    Raises:
        ValueError: If it is not positive.
    """
    if softcap is None:
        return 0.0
    cap = number_of(name, "softcap", softcap, low=0.0)
    if not 0 < cap < math.inf:  # math.isinf cannot be traced where the number is a symbol
        raise ValueError(f"{name}: softcap must be positive and finite, got {softcap!r}; None is no cap.")
    return cap


def draw_seed(dropout_p: float, like: Tensor) -> Tensor | None:
    """A seed for dropout from PyTorch's generator of the device: no synchronisation.

    Args:
        dropout_p: Probability of dropout.
        like: A tensor on the device.

    Returns:
        int64, of no axes; None if nothing is dropped.
    """
    return torch.randint(0, 2**62, (), device=like.device) if dropout_p > 0 else None
