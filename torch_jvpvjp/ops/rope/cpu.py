"""Rope on the CPU: a rotation in two passes over the memory, where nothing but q and k moves."""

from typing import Any

import torch
from torch import Tensor

from .._devices import triton_devices
from .maps import Frame, Pair, look_up
from .points import check_tangents, frame_of
from .rules import op


def _primal(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    position_ids: Tensor | None,
    interleaved: bool,
    heads_last: bool,
) -> tuple[Tensor, Tensor]:
    frame = Frame(Pair(cos, sin), Pair(), position_ids, interleaved, heads_last)
    y = _turned(frame, (q, k), q, inverse=False)
    if y is None:
        return op.formula(q, k, cos, sin, position_ids, interleaved, heads_last)
    return y[0], q.new_empty(0) if k is None else y[1]


def _jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    """y = x e, ẏ = ẋ e; by the formula where e moves."""
    check_tangents(primals, tangents)
    q, k = primals.q, primals.k
    moved = tangents.cos is not None or tangents.sin is not None
    y = None if moved else _turned(frame_of(primals), (q, k, tangents.q, tangents.k), q, inverse=False)
    absent = any(x is not None and t is None for x, t in zip((q, k), tangents[:2], strict=True))
    if y is None or absent or (k is None and tangents.k is not None) or _apart(q, tangents.q) or _apart(k, tangents.k):
        return op.jvp.op.formula(primals, tangents)
    return (y[0], q.new_empty(0) if k is None else y[1]), (y[2], y[3])


def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """x̄ = ȳ ē; by the formula where angles have cotangents."""
    bars = tuple(y_bar if needed else None for y_bar, needed in zip(cotangents, needs, strict=False))
    alike = not any(_apart(x, y_bar) for x, y_bar in zip((inputs.q, inputs.k), bars, strict=True))
    x_bar = None if any(needs[2:]) or not alike else _turned(frame_of(inputs), bars, inputs.q, inverse=True)
    return op.vjp.op.formula(cotangents, inputs, needs=needs) if x_bar is None else (*x_bar, None, None)


def _apart(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape != other.shape


def _turned(frame: Frame, heads: tuple[Tensor | None, ...], like: Tensor, *, inverse: bool) -> tuple[Any, ...] | None:
    """Heads turned by the angles of the frame; None if not all have one dtype, or angles have more axes than heads."""
    present = [t for t in heads if t is not None]
    if any(t.dtype != like.dtype for t in (*present, *frame.e)):
        return None
    cos, sin = (look_up(t, frame) for t in frame.e)
    for t in present:
        if torch.broadcast_shapes(t.shape[:-3], cos.shape[:-3], sin.shape[:-3]) != t.shape[:-3]:
            return None
    return tuple(None if t is None else _turn(t, cos, sin, frame.interleaved, -1 if inverse else 1) for t in heads)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, sign: int) -> Tensor:
    """x e, written into its two halves."""
    c = cos.shape[-1]
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    halves = (slice(0, 2 * c, 2), slice(1, 2 * c, 2)) if interleaved else (slice(0, c), slice(c, 2 * c))
    (x1, x2), (y1, y2) = ([t[..., half] for half in halves] for t in (x, y))
    torch.mul(x1, cos, out=y1).addcmul_(x2, sin, value=-sign)
    torch.mul(x2, cos, out=y2).addcmul_(x1, sin, value=sign)
    if 2 * c < x.shape[-1]:
        y[..., 2 * c :] = x[..., 2 * c :]
    return y


if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernel
    op.kernel("cpu")(_primal)
    op.jvp.kernel("cpu")(_jvp)
    op.vjp.kernel("cpu")(_vjp)
