"""PyTorch's fused attention of CPU tensors, forward and backward, called so that it does what the op here means.

It takes one head size, one key head for each query head, tensors without gaps along their last axis, and what is added
to the scores as a matrix. So heads of a group are called one after another, and rows in stripes, for which what hides
keys is made into numbers: what it is called with grows with the number of keys alone.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import UNBOUNDED
from .fills import fill_of
from .inputs import operands_of, scores_of
from .maps import Operands, Scores, Window
from .runs import runs_of
from .stripes import Part, rows_of_call, windows

_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
_WORTH_MERGING = 2**15  # numbers of the query, whose copies cost more than the views that save them
_HALVED = range(384, 768)  # rows for which its backward does not cut 512 keys, causal or not
_LARGEST_LSE = 32.0  # |ℓ| of which PyTorch's backward may make P


class Call(NamedTuple):
    """One call of the fused kernel.

    Attributes:
        window: Rows and keys.
        member: Which query head of each group.
        group: Query heads for each key head.
        causal: Whether row i sees keys 0 to i alone.
        added: What is added to the scores, (b, h, r, n), or None.
    """

    window: Window
    member: int
    group: int
    causal: bool
    added: Tensor | None

    def rows(self, x: Tensor) -> Tensor:
        """The view of something like query, output or ℓ that the call is about."""
        a, b = self.window[:2]
        return x[:, self.member :: self.group, a:b]

    def keys(self, x: Tensor) -> Tensor:
        """The view of something like the key that the call is about."""
        c, d = self.window[2:]
        return x[:, :, c:d]

    def merged(self) -> "Call":
        """The same with heads as a batch."""
        return self if self.added is None else self._replace(added=self.added.transpose(0, 1))


def is_plain(inputs: Any) -> bool:
    """Whether PyTorch's kernel computes this in one call of the arguments as they are; the checks cost little.

    Args:
        inputs: The arguments of the op.

    Returns:
        Whether it does.
    """
    q, k, v = inputs.query, inputs.key, inputs.value
    return (
        inputs.bias is None
        and inputs.mask is None
        and inputs.slopes is None
        and inputs.ranges is None
        and inputs.softcap == 0
        and inputs.dropout_p == 0
        and inputs.left == UNBOUNDED
        and (inputs.right == UNBOUNDED or (inputs.right == 0 and inputs.offset == 0))
        and q.dim() == k.dim() == v.dim() == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and q.shape[-1] == v.shape[-1]
        and q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        and q.numel() > 0
        and k.numel() > 0
    )


def plain(inputs: Any) -> tuple[Tensor, Tensor]:
    """The output o and ℓ of arguments that are plain.

    Args:
        inputs: The arguments of the op.

    Returns:
        o and ℓ.
    """
    q, k, v = inputs.query, inputs.key, inputs.value
    if _merges(q, k, v):
        o, lse = _FORWARD(_merged(q), _merged(k), _merged(v), 0.0, inputs.right == 0, scale=inputs.scale)
        return o.view(q.shape), lse.view(q.shape[:-1])
    o, lse = _FORWARD(q, k, v, 0.0, inputs.right == 0, scale=inputs.scale)
    return o, lse.contiguous()


def plain_backward(w: Tensor, inputs: Any, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The pullback of o where arguments are plain; every row sees a key there, so ℓ is finite.

    Args:
        w: The cotangent of o, of its shape.
        inputs: The arguments of the op.
        outputs: o and ℓ.

    Returns:
        The cotangents of query, key and value.
    """
    q, k, v, causal = inputs.query, inputs.key, inputs.value, inputs.right == 0
    w, (o, lse) = _unit(w), outputs
    if not _merges(q, k, v) or not _merges(w, o):
        return _BACKWARD(w, q, k, v, o, lse, 0.0, causal, scale=inputs.scale)
    merged = [_merged(t) for t in (w, q, k, v, o, lse)]
    halves = causal and q.shape[2] == k.shape[2] in _HALVED and q.shape[2] % 2 == 0
    if halves and all(t.is_contiguous() for t in merged):
        found = _halved(merged, inputs.scale)
    else:
        found = _BACKWARD(*merged, 0.0, causal, scale=inputs.scale)
    return found[0].view(q.shape), found[1].view(k.shape), found[2].view(v.shape)


def _halved(tensors: Sequence[Tensor], scale: float | None) -> Sequence[Tensor]:
    """The pullback of causal attention, (heads, 1, L, …) each, without the quarter of the scores that nothing sees.

    Rows of either half see keys of their own half in causal order; those of the second see all keys of the first.

    Args:
        tensors: w, q, k, v, o, ℓ.
        scale: s.

    Returns:
        The cotangents of q, k and v.
    """
    halves = [t.view(t.shape[0], 2, t.shape[2] // 2, *t.shape[3:]) for t in tensors]
    own = _BACKWARD(*(t.flatten(0, 1).unsqueeze(1) for t in halves), 0.0, True, scale=scale)  # noqa: FBT003
    rows, keys = slice(1, 2), slice(0, 1)
    parts = [t[:, part] for t, part in zip(halves, (rows, rows, keys, keys, rows, rows), strict=True)]
    found = [t.view(halves[0].shape) for t in own]
    for into, part, more in zip(found, (rows, keys, keys), _BACKWARD(*parts, 0.0, False, scale=scale), strict=True):  # noqa: FBT003
        into[:, part].add_(more)
    return found


def fits(inputs: Any) -> bool:
    """Whether PyTorch's kernel computes this.

    Args:
        inputs: The arguments of the op.

    Returns:
        Whether it does.
    """
    q, k, v = inputs.query, inputs.key, inputs.value
    return (
        inputs.softcap == 0
        and inputs.dropout_p == 0
        and q.shape[-1] == v.shape[-1]
        and min(q.numel(), k.numel()) > 0
        and q.dim() == k.dim() == v.dim()
        and (q.dim() == 4 or (q.shape[:2] == k.shape[:2] == v.shape[:2] and not _adds(scores_of(inputs), inputs.bias)))
        and all(
            t is None or t.dim() == rank
            for t, rank in ((inputs.bias, 4), (inputs.mask, 4), (inputs.slopes, 2), (inputs.ranges, 3))
        )
    )


def keeps_digits(lse: Tensor) -> bool:
    """Whether exp(S − ℓ), as PyTorch's backward has P, is P: the rounding of ℓ, relative to ℓ, is relative to 1 in P.

    It is to be what the scores' own rounding makes of P, or P is found anew. A bias of −1e9 or the lowest number along
    a whole row (a row of padding) leaves no digit of log Σ exp(S − max S) in ℓ, and PyTorch's gradients are then too
    large by as much as the number of keys.

    Args:
        lse: ℓ, of a query of float32 or float64.

    Returns:
        Whether it is.
    """
    if not lse.numel():
        return True
    low, high = (float(t) for t in torch.aminmax(lse))
    if low == -torch.inf:
        low = float(lse.masked_fill(lse == -torch.inf, 0).amin())
    return max(-low, high) <= _LARGEST_LSE


def forward(inputs: Any) -> tuple[Tensor, Tensor]:
    """The output o and ℓ.

    Args:
        inputs: The arguments of the op.

    Returns:
        o, of the query's shape, and ℓ.
    """
    at, scores, shape = _operands(inputs), scores_of(inputs), inputs.query.shape
    calls = _calls(at, scores)
    if _merges(at.q, at.k, at.v) and _adds_alike(at, scores):
        calls, at = map(Call.merged, calls), Operands(*map(_merged, at[:3]))
    first = next(calls)
    if first.group == 1 and _is_whole(first, at):
        o, lse = _forward(first, at, scores)
        return o.reshape(shape), lse.reshape(shape[:-1])
    o = at.q.new_zeros(at.q.shape)
    lse = at.q.new_full(at.q.shape[:-1], -torch.inf, dtype=_dtype_of_lse(at.q))
    for call in chain((first,), calls):
        if call.window.c < call.window.d:
            o_rows, lse_rows = _forward(call, at, scores)
            call.rows(o).copy_(o_rows)
            call.rows(lse).copy_(lse_rows)
    return o.reshape(shape), lse.reshape(shape[:-1])


def _forward(call: Call, at: Operands, scores: Scores) -> tuple[Tensor, Tensor]:
    """The o and ℓ of one call."""
    q, k, v = call.rows(at.q), call.keys(at.k), call.keys(at.v)
    o, lse = _FORWARD(q, k, v, 0.0, call.causal, attn_mask=call.added, scale=scores.scale)
    if call.added is not None:  # PyTorch gives 0 for a row that sees nothing
        lse = lse.masked_fill(call.added.amax(-1) == -torch.inf, -torch.inf)
    return o, lse


def backward(w: Tensor, inputs: Any, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The pullback of o.

    Args:
        w: The cotangent of o.
        inputs: The arguments of the op.
        outputs: o and ℓ.

    Returns:
        The cotangents of query, key and value, those of several calls summed in the dtype of ℓ.
    """
    at, scores = _operands(inputs), scores_of(inputs)
    w, o = (_unit(_four(t)) for t in (w, outputs[0]))
    lse = outputs[1].flatten(0, 1) if outputs[1].dim() == 4 else outputs[1]
    lse = lse.masked_fill(lse == -torch.inf, 0)  # rows that see nothing: exp(−∞ − 0) = 0
    shapes = [t.shape for t in operands_of(inputs)[:3]]
    calls = _calls(at, scores)
    if _merges(at.q, at.k, at.v) and _merges(w, o) and _adds_alike(at, scores):
        calls, at = map(Call.merged, calls), Operands(*map(_merged, at[:3]))
        w, o, lse = map(_merged, (w, o, lse))
    first = next(calls)
    if first.group == 1 and _is_whole(first, at):
        found = _BACKWARD(w, at.q, at.k, at.v, o, lse, 0.0, first.causal, attn_mask=first.added, scale=scores.scale)
        return tuple(t.reshape(shape) for t, shape in zip(found, shapes, strict=True))
    sums = [t.new_zeros(t.shape, dtype=lse.dtype) for t in at[:3]]
    for call in chain((first,), calls):
        if call.window.c == call.window.d:
            continue
        rows, keys = [call.rows(t) for t in (w, at.q, o, lse)], [call.keys(t) for t in (at.k, at.v)]
        found = _BACKWARD(*rows[:2], *keys, *rows[2:], 0.0, call.causal, attn_mask=call.added, scale=scores.scale)
        call.rows(sums[0]).copy_(found[0])
        for part, total_so_far in zip(found[1:], sums[1:], strict=True):
            call.keys(total_so_far).add_(part)
    return tuple(t.reshape(shape) for t, shape in zip(sums, shapes, strict=True))


def _calls(at: Operands, scores: Scores) -> Iterator[Call]:
    """The calls that make up one attention."""
    batch, heads, keys = at.k.shape[:3]
    group, rows = at.q.shape[1] // heads, at.q.shape[2]
    if not _adds(scores, at.bias):
        for member in range(group):
            yield Call(Window(0, rows, 0, keys), member, group, scores.right == 0, None)
        return
    runs = runs_of(scores.ranges) if scores.ranges is not None and _hides_by_range_alone(at, scores) else None
    if runs is not None:
        for run in runs:
            for member in range(group):
                yield Call(run.window, member, group, run.causal, None)
        return
    everything, like = Part(slice(0, batch), slice(0, heads), group), at.q.new_empty(0, dtype=_dtype_of_lse(at.q))
    for window in windows(at, scores, rows_of_call(_numbers_in_row(at, scores)) if _by_row(at, scores) else rows):
        added = _added(at, scores, everything, window, like)
        for member in range(group):
            one = None if added is None else added[:, :, min(member, added.shape[2] - 1)]
            yield Call(window, member, group, False, one)


def _adds(scores: Scores, bias: Tensor | None) -> bool:
    """Whether something is added to the scores, other than what PyTorch's causal attention hides."""
    plain = all(t is None for t in (bias, scores.mask, scores.slopes, scores.ranges)) and scores.left == UNBOUNDED
    return not (plain and (scores.right == UNBOUNDED or (scores.right == 0 and scores.offset == 0)))


def _hides_by_range_alone(at: Operands, scores: Scores) -> bool:
    return (
        all(t is None for t in (at.bias, scores.mask, scores.slopes))
        and scores.ranges is not None
        and len(scores.ranges) == 1
    )


def _by_row(at: Operands, scores: Scores) -> bool:
    """Whether what is added differs from row to row."""
    positional = scores.left >= 0 or scores.right >= 0 or scores.ranges is not None or scores.slopes is not None
    return positional or any(t is not None and t.shape[-2] > 1 for t in (at.bias, scores.mask))


def _numbers_in_row(at: Operands, scores: Scores) -> int:
    """How many numbers are added for one row."""
    shapes = [t.shape[:2] for t in (at.bias, scores.mask, scores.slopes) if t is not None]
    # torch.broadcast_shapes takes as long as a pass over the mask.
    return max([1, *(s[0] for s in shapes)]) * max([1, *(s[1] for s in shapes)]) * at.k.shape[2]


def _added(at: Operands, scores: Scores, part: Part, window: Window, like: Tensor) -> Tensor | None:
    """What is added to the scores of a window, (b, key heads or 1, group or 1, r, n), in the dtype of ℓ."""
    fill, bias = fill_of(scores, part, window, like), None
    if at.bias is not None:
        bias = part.scores(at.bias, window).to(like.dtype)
    if fill is None:
        return bias
    values = fill.values.reshape((1,) * (5 - fill.values.dim()) + fill.values.shape)
    values = torch.nn.functional.pad(values, (fill.start, 0)) if fill.start else values
    return values if bias is None else values + bias


def _adds_alike(at: Operands, scores: Scores) -> bool:
    """Whether what is added has one axis for batch and heads once these are merged."""
    batch, heads = at.k.shape[:2]
    shapes = [t.shape[:2] for t in (at.bias, scores.mask, scores.slopes) if t is not None]
    shapes += [] if scores.ranges is None else [(scores.ranges.shape[0], 1)]
    return heads == at.q.shape[1] and (batch == 1 or all(tuple(shape) == (1, 1) for shape in shapes))


def _merges(*tensors: Tensor) -> bool:
    """Whether batch and heads of (B, H, L, d) are one axis of a view, and large enough that it is worth while."""
    return tensors[0].numel() >= _WORTH_MERGING and all(
        t.shape[:2] == tensors[0].shape[:2] and (t.shape[0] == 1 or t.stride(0) == t.shape[1] * t.stride(1))
        for t in tensors
    )


def _merged(x: Tensor) -> Tensor:
    """(B, H, L, …) as (B · H, 1, L, …)."""
    return x.flatten(0, 1).unsqueeze(1)


def _is_whole(call: Call, at: Operands) -> bool:
    return call.window == (0, at.q.shape[2], 0, at.k.shape[2])


def _operands(inputs: Any) -> Operands:
    """Query, key and value without vmap's axis and without gaps along the last axis, and the bias."""
    q, k, v = (_unit(_four(t)) for t in (inputs.query, inputs.key, inputs.value))
    return Operands(q, k, v, inputs.bias)


def _four(x: Tensor) -> Tensor:
    """With vmap's axis merged into the batch."""
    return x.flatten(0, 1) if x.dim() == 5 else x


def _unit(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _dtype_of_lse(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
