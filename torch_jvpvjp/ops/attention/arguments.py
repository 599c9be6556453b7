"""What callers give to attention, checked and brought to the arguments of its op."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from ...registration.autocast import is_autocast
from .._arguments import check_dense, check_floating, kind_of

ALIGNMENTS = ("top_left", "bottom_right")
UNBOUNDED = -1
_FARTHEST = 2**30  # keys: with a position added it is within 32 bits, in which kernels count


class Heads(NamedTuple):
    """Query, key and value as (B, H, L, d), and the axes that stood in front."""

    query: Tensor
    key: Tensor
    value: Tensor
    lead: tuple[int, ...]  # the query's axes before (L, d) after broadcasting


def check_tensors(name: str, query: Any, key: Any, value: Any, length_axis: int = -2) -> None:
    """Refuse what is not query, key and value of one attention.

    Args:
        name: The function that was called.
        query: q.
        key: k.
        value: v.
        length_axis: The axis of queries or keys.

    Raises:
        TypeError: If one is not a tensor, or not of a dtype that is supported, or dtypes differ.
        ValueError: If shapes or devices do not agree.
    """
    for label, tensor in (("query", query), ("key", key), ("value", value)):
        check_floating(name, label, tensor)
        if tensor.device != query.device:
            raise ValueError(
                f"{name}: {label} must be on the query's device {query.device}, got {tensor.device}; use .to()."
            )
        if tensor.dtype != query.dtype and not _is_autocast(query):
            raise TypeError(
                f"{name}: {label} must have the query's dtype {query.dtype}, got {tensor.dtype}; use .to()."
            )
        if tensor.dim() < 2:
            raise ValueError(
                f"{name}: {label} must have at least the axes (length, head size), got shape {tuple(tensor.shape)}."
            )
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(
            f"{name}: key must have the query's head size {query.shape[-1]} as its last axis, got {tuple(key.shape)}."
        )
    if value.shape[length_axis] != key.shape[length_axis]:
        raise ValueError(
            f"{name}: value must be as long as key, whose shape is {tuple(key.shape)}, got {tuple(value.shape)}."
        )


def _is_autocast(tensor: Tensor) -> bool:
    return is_autocast(tensor.device.type)


class Layout(NamedTuple):
    """How query, key and value come to (B, H, L, d).

    Attributes:
        dims: Axes of the longest of them.
        batch: The axes before the heads, after broadcasting.
        counts: Heads that query, key and value come with.
        heads: Heads that they go with.
    """

    dims: int
    batch: tuple[int, ...]
    counts: tuple[int, int, int]
    heads: tuple[int, int, int]

    def apply(self, tensors: Sequence[Tensor | None]) -> tuple[Any, Any, Any]:
        """Bring query, key and value, or something of their shapes, to (B, H, L, d), without a copy where that can be.

        Args:
            tensors: The three, or None.

        Returns:
            The three.
        """
        return tuple(  # pyright: ignore[reportReturnType]
            None if t is None else self._folded(t, own, count)
            for t, own, count in zip(tensors, self.counts, self.heads, strict=True)
        )

    def _folded(self, tensor: Tensor, own: int, count: int) -> Tensor:
        if self.dims == 2:
            return tensor[None, None]
        tensor = tensor.reshape((1,) * (self.dims - tensor.dim()) + tensor.shape)
        if own != 1 and own != count:  # key and value with different numbers of heads
            tensor, own = tensor.repeat_interleave(count // own, -3), count
        if own != count or tensor.shape[:-3] != self.batch:
            tensor = tensor.expand(*self.batch, count, *tensor.shape[-2:])
        return tensor if tensor.dim() == 4 else tensor.reshape((math.prod(self.batch), *tensor.shape[-3:]))


def by_heads(name: str, query: Tensor, key: Tensor, value: Tensor, *, enable_gqa: bool) -> tuple[Heads, Layout]:
    """Bring query, key and value to (B, H, L, d).

    Args:
        name: The function that was called.
        query: q, (..., Hq, Lq, dk); without its heads if it has only two axes.
        key: k, (..., Hk, Lk, dk).
        value: v, (..., Hk, Lk, dv).
        enable_gqa: Whether Hq may be a multiple of Hk.

    Returns:
        The heads, and how they came about.

    Raises:
        TypeError: If enable_gqa is not a bool.
        ValueError: If the axes in front do not broadcast.
    """
    check_flag(name, "enable_gqa", enable_gqa)
    if query.dim() == key.dim() == value.dim() == 4:  # the common cases: nothing is moved, nothing broadcasts
        (b, hq), kv = query.shape[:2], key.shape[:2]
        if kv == value.shape[:2] and b == kv[0] and (hq == kv[1] or (enable_gqa and kv[1] and hq % kv[1] == 0)):
            counts = (hq, kv[1], kv[1])
            return Heads(query, key, value, (b, hq)), Layout(4, (b,), counts, counts)
    tensors = (query, key, value)
    dims = max(t.dim() for t in tensors)
    if dims == 2:
        layout = Layout(2, (), (1, 1, 1), (1, 1, 1))
        return Heads(*layout.apply(tensors), ()), layout
    hq, hk, hv = counts = tuple(1 if t.dim() == 2 else t.shape[-3] for t in tensors)
    heads = hq
    if enable_gqa:
        if any(n == 0 or hq % n for n in (hk, hv)):
            raise ValueError(
                f"{name}: with enable_gqa the heads of key and value must divide those of query, {hq}, got {hk} and "
                f"{hv}."
            )
    else:
        try:
            (heads,) = torch.broadcast_shapes(*((n,) for n in counts))
        except RuntimeError as error:
            raise ValueError(
                f"{name}: query, key and value must have one number of heads, or 1, got {counts}; for grouped queries "
                "pass enable_gqa=True."
            ) from error
    try:
        batch = tuple(torch.broadcast_shapes(*(t.shape[:-3] for t in tensors)))
    except RuntimeError as error:
        raise ValueError(
            f"{name}: the batch axes of query, key and value must broadcast, got shapes "
            f"{[tuple(t.shape) for t in tensors]}."
        ) from error
    shared = math.lcm(hk, hv) if enable_gqa else 1 if hk == hv == 1 else heads
    layout = Layout(dims, batch, (hq, hk, hv), (heads, shared, shared))
    return Heads(*layout.apply(tensors), (*batch, heads)), layout


def mask_of(name: str, attn_mask: Any, heads: Heads) -> tuple[Tensor | None, Tensor | None]:
    """The additive bias and the boolean mask that attn_mask means, (b, h, r, n) with axes that are full or 1.

    Args:
        name: The function that was called.
        attn_mask: A tensor that broadcasts with (..., Hq, Lq, Lk), or None.
        heads: Query, key and value.

    Returns:
        The bias or None, and the mask or None.

    Raises:
        TypeError: If it is not such a tensor.
        ValueError: If its shape or device does not fit.
    """
    if attn_mask is None:
        return None, None
    query = heads.query
    if not isinstance(attn_mask, Tensor):
        raise TypeError(f"{name}: attn_mask must be a Tensor, a BlockMask or None, got {kind_of(attn_mask)}.")
    check_dense(name, "attn_mask", attn_mask)
    lowered = attn_mask.dtype in (torch.float16, torch.bfloat16) and _is_autocast(query)  # with all the others
    if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype) and not lowered:
        raise TypeError(
            f"{name}: attn_mask must be bool (True: takes part), float32 or of the query's dtype {query.dtype} (added "
            f"to the scores), got {attn_mask.dtype}; use .to()."
        )
    if attn_mask.device != query.device:
        raise ValueError(f"{name}: attn_mask must be on the device {query.device}, got {attn_mask.device}; use .to().")
    full = (*heads.lead, query.shape[-2], heads.key.shape[-2])
    shape = attn_mask.shape
    # Not `in`: for Dynamo a size that it does not know is in no tuple of numbers.
    fits = 2 <= len(shape) <= len(full) and all(
        own == 1 or own == size for own, size in zip(reversed(shape), reversed(full), strict=False)
    )
    if not fits:
        raise ValueError(
            f"{name}: attn_mask must broadcast with {full}, (..., heads, queries, keys), and have the last two axes at "
            f"least, got shape {tuple(shape)}."
        )
    if len(shape) < 4:
        mask = attn_mask.reshape((1,) * (4 - len(shape)) + tuple(shape))
    elif len(shape) > 4 or len(full) > 4:  # several batch axes became one
        lead = full[: len(full) - 3]
        padded = attn_mask.reshape((1,) * (len(full) - len(shape)) + tuple(shape))
        flat = math.prod(lead) if any(n != 1 for n in padded.shape[: len(lead)]) else 1
        padded = padded if flat == 1 else padded.expand(*lead, *padded.shape[-3:])
        mask = padded.reshape(flat, *padded.shape[-3:])
    else:
        mask = attn_mask
    return (None, mask) if mask.dtype == torch.bool else (mask, None)


class Visible(NamedTuple):
    """Which keys a row sees: from left before to right after its position; UNBOUNDED for all."""

    left: int
    right: int
    offset: Any


def visible_of(name: str, heads: Heads, is_causal: Any, window: Any, causal_alignment: Any) -> Visible:
    """The window of keys that rows see.

    Args:
        name: The function that was called.
        heads: Query, key and value.
        is_causal: Whether a row sees no key after its position.
        window: (left, right), None for unbounded, or None.
        causal_alignment: Where positions start.

    Returns:
        The window.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If it has a wrong value.
    """
    check_flag(name, "is_causal", is_causal)
    if causal_alignment not in ALIGNMENTS:
        raise ValueError(f"{name}: causal_alignment must be one of {ALIGNMENTS}, got {causal_alignment!r}.")
    left = right = UNBOUNDED
    if window is not None:
        if not isinstance(window, tuple | list) or len(window) != 2:
            raise TypeError(f"{name}: window must be a pair (left, right) of numbers of keys or None, got {window!r}.")
        for side in window:
            if side is not None and (isinstance(side, bool) or not isinstance(side, int | torch.SymInt)):
                raise TypeError(f"{name}: window must hold ints or None (unbounded), got {window!r}.")
            if side is not None and side < 0:
                raise ValueError(f"{name}: window must hold no negative numbers, got {window!r}; None is unbounded.")
        left, right = (UNBOUNDED if side is None else min(side, _FARTHEST) for side in window)
    if is_causal:
        right = 0
    offset = heads.key.shape[-2] - heads.query.shape[-2] if causal_alignment == "bottom_right" else 0
    return Visible(left, right, offset)


def number_of(name: str, label: str, value: Any, *, low: float, high: float = math.inf) -> Any:
    """Check a number.

    Args:
        name: The function that was called.
        label: The argument.
        value: What came.
        low: The least it may be.
        high: The greatest.

    Returns:
        It, as a float.

    Raises:
        TypeError: If it is no number.
        ValueError: If it lies outside.
    """
    if isinstance(value, Tensor):
        raise TypeError(f"{name}: {label} must be a number, got a tensor, whose derivative would be lost; use .item().")
    if isinstance(value, bool) or not isinstance(value, int | float | torch.SymInt | torch.SymFloat):
        raise TypeError(f"{name}: {label} must be a number, got {value!r}.")
    if not low <= value <= high:
        raise ValueError(f"{name}: {label} must be in [{low}, {high}], got {value!r}.")
    return float(value) if isinstance(value, int | float) else value


def slopes_of(name: str, slopes: Any, heads: Heads) -> Tensor | None:
    """ALiBi's slopes as (b, Hq) in float32 (float64 for float64, and in autocast, which leaves that alone).

    Args:
        name: The function that was called.
        slopes: (Hq,) or (B, Hq), or None.
        heads: Query, key and value.

    Returns:
        The slopes, or None.

    Raises:
        TypeError: If it is no floating tensor.
        ValueError: If shape or device does not fit.
        NotImplementedError: If it requires grad or has a tangent.
    """
    if slopes is None:
        return None
    if not isinstance(slopes, Tensor) or not slopes.is_floating_point():
        got = f"{slopes.dtype}; use .float()" if isinstance(slopes, Tensor) else kind_of(slopes)
        raise TypeError(f"{name}: alibi_slopes must be a floating Tensor or None, got {got}.")
    check_dense(name, "alibi_slopes", slopes)
    query = heads.query
    batch, count = query.shape[0], query.shape[1]
    if slopes.device != query.device or tuple(slopes.shape) not in ((count,), (batch, count), (1, count)):
        raise ValueError(
            f"{name}: alibi_slopes must have shape ({count},) or ({batch}, {count}) on {query.device}, got "
            f"{tuple(slopes.shape)} on {slopes.device}."
        )
    # What is compiled finds the tangent in the op itself.
    moves = not torch.compiler.is_compiling() and fwAD.unpack_dual(slopes).tangent is not None
    if slopes.requires_grad or moves:
        raise NotImplementedError(
            f"{name}: alibi_slopes {'has a tangent' if moves else 'requires grad'}, and no derivative here; pass "
            "alibi_slopes.detach(), or add the bias as a float attn_mask, which has all derivatives."
        )
    wide = torch.float64 if query.dtype == torch.float64 or _is_autocast(query) else torch.float32
    return (slopes if slopes.dim() == 2 else slopes[None]).to(wide)


def check_flag(name: str, argument: str, value: Any) -> None:
    """Refuse what is no bool.

    Args:
        name: The function that was called.
        argument: The option.
        value: What came.

    Raises:
        TypeError: If it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name}: {argument} must be True or False, got {value!r}.")
