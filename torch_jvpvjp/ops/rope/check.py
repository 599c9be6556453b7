"""What rope refuses, before anything is computed."""

from typing import Any

import torch
from torch import Tensor

from .._arguments import check_dense, check_floating, kind_of


def check(q: Any, k: Any, cos: Any, sin: Any, position_ids: Any, interleaved: Any, head_axis: Any) -> bool:
    """Refuse what is not a rotary embedding.

    Args:
        q: See ``rope``, and below.
        k: Keys or None.
        cos: Cosines.
        sin: Sines.
        position_ids: Rows or None.
        interleaved: Which elements are a pair.
        head_axis: Where the heads are.

    Returns:
        Whether heads stand behind tokens.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype that fits.
        ValueError: If shapes or devices do not agree.
    """
    for name, tensor in (("q", q), ("k", k), ("cos", cos), ("sin", sin)):
        if name == "k" and k is None:
            continue
        check_floating("rope", name, tensor, optional=name == "k")
        if tensor.device != q.device:
            raise ValueError(f"rope: {name} must be on q's device {q.device}, got {tensor.device}; use .to(q.device).")
    if not isinstance(interleaved, bool):
        raise TypeError(f"rope: interleaved must be a bool, got {type(interleaved).__name__}.")
    if q.dim() not in (3, 4):
        raise ValueError(
            f"rope: q must have shape (B, H, T, D) or (H, T, D), tokens and heads in the order of head_axis, got "
            f"{tuple(q.shape)}."
        )
    heads_last = _heads_last(head_axis, q.dim())
    if k is not None:
        _check_keys(q, k, -2 if heads_last else -3)
    _check_angles(q, cos, sin, position_ids, -3 if heads_last else -2)
    return heads_last


def _heads_last(head_axis: Any, ndim: int) -> bool:
    if not isinstance(head_axis, int) or isinstance(head_axis, bool):
        raise TypeError(f"rope: head_axis must be an int, got {type(head_axis).__name__}.")
    axis = head_axis if head_axis < 0 else head_axis - ndim
    if axis not in (-3, -2):
        raise ValueError(
            f"rope: head_axis must be -3 for (B, H, T, D) or -2 for (B, T, H, D), got {head_axis} for q of {ndim} axes."
        )
    return axis == -2


def _check_keys(q: Tensor, k: Tensor, head: int) -> None:
    if k.dtype != q.dtype:
        raise TypeError(f"rope: k must have q's dtype {q.dtype}, got {k.dtype}; use .to(q.dtype).")
    wanted = list(q.shape)
    if k.dim() == q.dim():
        wanted[head] = k.shape[head]
    if tuple(k.shape) != tuple(wanted):
        raise ValueError(
            f"rope: k must have the shape of q, {tuple(q.shape)}, except for the number of heads, got {tuple(k.shape)}."
        )


def _check_angles(q: Tensor, cos: Tensor, sin: Tensor, position_ids: Any, token: int) -> None:
    if sin.shape != cos.shape:
        raise ValueError(f"rope: sin must have the shape of cos, {tuple(cos.shape)}, got {tuple(sin.shape)}.")
    if sin.dtype != cos.dtype:
        raise TypeError(f"rope: sin must have the dtype of cos, {cos.dtype}, got {sin.dtype}; use .to(cos.dtype).")
    batch, tokens, d = q.shape[0] if q.dim() == 4 else None, q.shape[token], q.shape[-1]
    if cos.dim() and 2 * cos.shape[-1] > d:
        raise ValueError(
            f"rope: cos must have one column for each pair, at most {d // 2} for heads of {d} elements, got "
            f"{cos.shape[-1]}; of a table that holds every column twice pass cos[..., :{cos.shape[-1] // 2}] and "
            "sin likewise."
        )
    if position_ids is None:
        _check_tokens("cos", cos.shape[:-1], cos, tokens, batch, ", R/2")
        return
    if not isinstance(position_ids, Tensor) or position_ids.dtype not in (torch.int64, torch.int32):
        what = position_ids.dtype if isinstance(position_ids, Tensor) else kind_of(position_ids)
        raise TypeError(f"rope: position_ids must be an int64 or int32 Tensor or None, got {what}.")
    check_dense("rope", "position_ids", position_ids)
    if position_ids.device != q.device:
        raise ValueError(
            f"rope: position_ids must be on q's device {q.device}, got {position_ids.device}; use .to(q.device)."
        )
    if cos.dim() != 2:
        raise ValueError(
            f"rope: with position_ids, cos and sin must be tables of shape (positions, R/2), got {tuple(cos.shape)}."
        )
    _check_tokens("position_ids", position_ids.shape, position_ids, tokens, batch, ",")


def _check_tokens(name: str, shape: Any, tensor: Tensor, tokens: int, batch: int | None, columns: str) -> None:
    """A tensor has one row for each token, or for each token of each batch entry (or of one)."""
    if tuple(shape) == (tokens,) or (batch is not None and tuple(shape) in ((batch, tokens), (1, tokens))):
        return
    allowed = f"({tokens}{columns})"
    if batch is not None:
        allowed += f" or ({batch}, {tokens}{columns.rstrip(',')})"
    raise ValueError(f"rope: {name} must have shape {allowed} to match q, got {tuple(tensor.shape)}.")
