"""Rotary position embedding: the public face."""

from typing import Any

from torch import Tensor

from . import cpu as _cpu  # noqa: F401 -- registers kernels, as the next does
from . import kernels as _kernels  # noqa: F401
from .check import check
from .rules import op

__all__ = ["op", "rope"]


def rope(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    position_ids: Tensor | None = None,
    head_axis: int = -3,
) -> tuple[Tensor, Tensor | None]:
    """Rotary position embedding of queries and keys.

    Every head has R/2 pairs (x₁, x₂), which turn, and D − R elements behind them, which do not. With the pair read as
    the complex number x = x₁ + i x₂ and e = cos + i sin of its token:

        y = x e                          y₁ = x₁ cos − x₂ sin,  y₂ = x₂ cos + x₁ sin
        ẏ = ẋ e + x ė
        x̄ = ȳ ē,    c̄os + i s̄in = Σ over heads of q and k of ȳ · conj(x)

    It is linear in q and k (the JVP is the rotation, the VJP the inverse one), bilinear with cos and sin, and so every
    derivative of every order is the same kernel on other operands. On a GPU q and k are one launch, with their tangents
    or without; elsewhere the formulas run. It computes in float32, in float64 for float64 heads.

    Args:
        q: Queries, shape (B, H, T, D), or (B, T, H, D) with ``head_axis=-2``; or either without B. float16, bfloat16,
            float32 or float64.
        k: Keys, of q's dtype and shape except that they may have another number of heads; or None.
        cos: Shape (T, R/2) or (B, T, R/2) with R <= D: one column for each pair, the *half* table. A table of R
            columns as Hugging Face makes it holds every column twice: pass ``cos[..., :R // 2]`` of it, or
            ``cos[..., ::2]`` where neighbours are equal. With ``position_ids``, a table (positions, R/2). Any dtype
            named above.
        sin: Of the shape and dtype of cos.
        interleaved: Which elements are a pair: i and i + R/2 (False; Llama, GPT-NeoX), or 2i and 2i + 1 (True; GPT-J).
        position_ids: Which row of cos and sin a token takes, shape (T,) or (B, T), int64 or int32; absent means row t
            for token t. A row that is not there raises IndexError on the CPU and gives NaN on a GPU, where looking
            would stop the device.
        head_axis: Where the heads are: -3 for (B, H, T, D), as Hugging Face has it, -2 for (B, T, H, D), as torchtune
            and FlashAttention have it; or the same axis counted from the front.

    Returns:
        q and k, turned, of the shapes and dtypes they came in; None for k if that is None.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes or devices do not agree.

    Source: Su et al. (2021), RoFormer: Enhanced Transformer with Rotary Position Embedding; Black et al. (2022),
    GPT-NeoX-20B, for the half layout and the partial rotation.
    """
    heads_last = check(q, k, cos, sin, position_ids, interleaved, head_axis)
    head: Any = -2 if heads_last else -3
    if position_ids is not None:
        position_ids = position_ids.unsqueeze(-1).unsqueeze(head)
    y_q, y_k = op(q, k, cos.unsqueeze(head), sin.unsqueeze(head), position_ids, interleaved, heads_last)
    return y_q, None if k is None else y_k
