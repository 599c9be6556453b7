"""Attention within each of several sequences that are packed behind one another."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...registration import _torch_private as private
from .._arguments import check_dense, check_floating, kind_of
from .arguments import UNBOUNDED, by_heads, check_flag, check_tensors, number_of, slopes_of, visible_of
from .face import draw_seed, scale_of, softcap_of
from .rules import op

_NAME = "varlen_attention"


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    causal_alignment: str = "top_left",
    window: tuple[int | None, int | None] | None = None,
    softcap: float | None = None,
    alibi_slopes: Tensor | None = None,
    return_lse: bool = False,
) -> Any:
    """Attention of packed sequences: rows a = cu_q[n] to cu_q[n+1] see keys cu_k[n] to cu_k[n+1], and no others.

    Equations, derivatives and options are those of `scaled_dot_product_attention`, with positions counted from the
    beginning of each sequence. Nothing is padded and keys of other sequences are not visited: kernels read for each row
    where its keys begin and end.

    Args:
        query: q, shape (total queries, Hq, dk).
        key: k, shape (total keys, Hk, dk).
        value: v, shape (total keys, Hk, dv).
        cu_seqlens_q: Where sequences of queries begin, and the end of the last: shape (sequences + 1,), int32 or int64,
            from 0, not decreasing. Rows behind the end give zeros; on the CPU they, and keys behind the end, are not
            read. On the GPU the numbers are not read by the host and so not checked.
        cu_seqlens_k: The same for keys; cu_seqlens_q if None.
        dropout_p: As for `scaled_dot_product_attention`, as all that follow.
        is_causal: A row sees no key after its position.
        scale: s; 1/√dk if None.
        enable_gqa: Let Hq be a multiple of Hk.
        causal_alignment: "top_left", or "bottom_right": in each sequence the last query is at the last key.
        window: Keys before and after its position that a row sees.
        softcap: κ.
        alibi_slopes: m, shape (Hq,).
        return_lse: Return ℓ too.

    Returns:
        o, shape (total queries, Hq, dv); with ``return_lse`` the pair of o and ℓ, shape (total queries, Hq).

    Raises:
        TypeError: If an argument is not of its type.
        ValueError: If shapes or devices do not agree, or cu_seqlens on the CPU are not cumulative lengths.
    """
    check_flag(_NAME, "return_lse", return_lse)
    for label, tensor in (("query", query), ("key", key), ("value", value)):
        check_floating(_NAME, label, tensor)
        if tensor.dim() != 3:
            raise ValueError(
                f"{_NAME}: {label} must have shape (total length, heads, head size), got {tuple(tensor.shape)}."
            )
    check_tensors(_NAME, query, key, value, length_axis=0)
    cu_seqlens_k = cu_seqlens_q if cu_seqlens_k is None else cu_seqlens_k
    rows = query.shape[0]
    end_q = _checked_end("cu_seqlens_q", cu_seqlens_q, rows, query)
    end_k = _checked_end("cu_seqlens_k", cu_seqlens_k, key.shape[0], query)
    if cu_seqlens_k.shape != cu_seqlens_q.shape:
        raise ValueError(
            f"{_NAME}: cu_seqlens_k must have as many sequences as cu_seqlens_q, {cu_seqlens_q.shape[0] - 1}, got "
            f"{cu_seqlens_k.shape[0] - 1}."
        )
    if end_q < rows or end_k < key.shape[0]:  # whatever stands behind, it is not read
        query, key, value = query[:end_q], key[:end_k], value[:end_k]
    tensors = (t.transpose(0, 1) for t in (query, key, value))
    heads, _ = by_heads(_NAME, *tensors, enable_gqa=enable_gqa)
    visible = visible_of(_NAME, heads, is_causal, window, causal_alignment)
    dropout_p = number_of(_NAME, "dropout_p", dropout_p, low=0.0, high=1.0)
    o, lse = op(
        heads.query,
        heads.key,
        heads.value,
        None,
        None,
        slopes_of(_NAME, alibi_slopes, heads),
        _ranges(
            cu_seqlens_q, cu_seqlens_k, query.shape[0], visible.left, visible.right, causal_alignment == "bottom_right"
        ),
        draw_seed(dropout_p, query),
        *(None,) * 4,
        scale_of(_NAME, scale),
        UNBOUNDED,
        UNBOUNDED,
        0,
        softcap_of(_NAME, softcap),
        dropout_p,
        0,
        0,
    )
    o, lse = o[0].transpose(0, 1), lse[0].transpose(0, 1)
    if end_q < rows:
        o = F.pad(o, (0, 0, 0, 0, 0, rows - end_q))
        lse = F.pad(lse, (0, 0, 0, rows - end_q), value=-torch.inf)
    return (o, lse) if return_lse else o


def _checked_end(label: str, cu_seqlens: Any, total: int, query: Tensor) -> int:
    """Where the last sequence ends; refuse what are no cumulative lengths. Nothing waits for a device: it may be total.

    Args:
        label: The argument.
        cu_seqlens: What came.
        total: Number of rows.
        query: q.

    Returns:
        The end as far as the host can see it, else total.

    Raises:
        TypeError: If it is no tensor of integers.
        ValueError: If its shape, device or numbers do not fit.
    """
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        got = f"{cu_seqlens.dtype}; use .int()" if isinstance(cu_seqlens, Tensor) else kind_of(cu_seqlens)
        raise TypeError(f"{_NAME}: {label} must be a Tensor of int32 or int64, got {got}.")
    check_dense(_NAME, label, cu_seqlens)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.device != query.device:
        raise ValueError(
            f"{_NAME}: {label} must have shape (sequences + 1,) on {query.device}, got {tuple(cu_seqlens.shape)} on "
            f"{cu_seqlens.device}."
        )
    if cu_seqlens.device.type != "cpu" or not _is_readable(cu_seqlens):
        return total
    end = int(cu_seqlens[-1])
    if int(cu_seqlens[0]) != 0 or bool((cu_seqlens.diff() < 0).any()) or end > total:
        raise ValueError(
            f"{_NAME}: {label} must begin with 0, not decrease, and end within the {total} rows of its tensor, got "
            f"{cu_seqlens.tolist()}."
        )
    return end


def _is_readable(numbers: Tensor) -> bool:
    """Whether numbers are the same in every call that is made of this one: no batch, and nothing that traces."""
    if torch.compiler.is_compiling() or type(numbers) is not Tensor or private.is_functorch_wrapped_tensor(numbers):
        return False
    return not private.len_torch_dispatch_stack() and private.get_tracing_state() is None


def _ranges(cu_q: Tensor, cu_k: Tensor, rows: int, left: int, right: int, bottom_right: bool) -> Tensor:  # noqa: FBT001
    """First key, end of keys and position of every row, int32, (1, 3, rows), computed on the device."""
    cu_q, cu_k = cu_q.long(), cu_k.long()
    row = torch.arange(rows, device=cu_q.device)
    # Of n + 1 numbers that do not decrease, from 0, as many are at most a row as its sequence has before it, and one.
    marks = torch.zeros(rows + 1, dtype=torch.int64, device=cu_q.device)
    marks = marks.index_add(0, cu_q.clamp(0, rows), torch.ones_like(cu_q))
    sequence = (marks[:-1].cumsum(0) - 1).clamp(max=cu_q.shape[0] - 2)
    first, end = cu_k[sequence], cu_k[sequence + 1]
    position = row - cu_q[sequence] + first
    if bottom_right:
        position = position + (end - first) - (cu_q[sequence + 1] - cu_q[sequence])
    behind = row >= cu_q[-1]
    lowest = position - left if left >= 0 else first
    highest = position + right + 1 if right >= 0 else end
    begin = torch.minimum(torch.maximum(lowest, first), end)
    stop = torch.maximum(torch.minimum(highest, end), first)
    begin, stop = (torch.where(behind, cu_k[-1], t) for t in (begin, stop))
    return torch.stack([begin, torch.maximum(begin, stop), position]).to(torch.int32).unsqueeze(0)
