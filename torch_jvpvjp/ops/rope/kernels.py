"""The Triton kernel of rope at every point of its tower."""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from .._devices import triton_devices
from .._shapes import broadcast
from .maps import Frame, Pair, spread
from .points import Points, Pulled, Wants
from .rules import op

_DEVICES = triton_devices()


class _Kernel:
    """The maps by one launch each."""

    @staticmethod
    def turn(frame: Frame, a: Pair, b: Pair, *, inverse: bool, wants: tuple[bool, bool]) -> tuple[Pair, Pair]:
        results = _launch(frame, Pair(), Pair(), a, b, inverse, wants, (False, False))
        turning = (*frame.e, *frame.e_dot, frame.position_ids)
        # Leads may differ here: what was computed along axes that a result has not is equal along them.
        first = (_narrowed(y, (x, *frame.e, frame.position_ids)) for y, x in zip(results[0], a, strict=True))
        second = (_narrowed(y, (x, x_dot, *turning)) for y, x, x_dot in zip(results[1], a, b, strict=True))
        return Pair(*first), Pair(*second)

    @staticmethod
    def pull(frame: Frame, x: Pair, x_dot: Pair, a: Pair, b: Pair, wants: Wants) -> tuple[Pulled, Pulled]:
        # Heads without a cotangent add nothing, and their lead would count the sums of the others along it.
        x_dot = Pair(*(one if other is not None else None for one, other in zip(x_dot, a, strict=True)))
        x = Pair(*(one if any(t is not None for t in others) else None for one, *others in zip(x, a, b, strict=True)))
        wants_sums = (wants[2] and _meet(x, a), wants[3] and (_meet(x, b) or _meet(x_dot, a)))
        first, second, *sums = _launch(frame, x, x_dot, a, b, True, wants[:2], wants_sums)
        return Pulled(first, spread(sums[0], frame)), Pulled(second, spread(sums[1], frame))


def _meet(x: Pair, a: Pair) -> bool:
    """Whether Σ x̄ a has a term."""
    return any(one is not None and other is not None for one, other in zip(x, a, strict=True))


def _launch(
    frame: Frame,
    x: Pair,
    x_dot: Pair,
    a: Pair,
    b: Pair,
    inverse: bool,
    wants: tuple[bool, bool],
    wants_sums: tuple[bool, bool],
) -> tuple[Pair, Pair, Pair, Pair]:
    """Bring all operands to (G, B, ...), launch, and shape the results back, with the lead of all operands."""
    from ...triton_kernels.rope import Angles, Heads, rope_turn

    rows = [*a, *b, *(t if any(wants_sums) else None for t in (*x, *x_dot))]
    angles = [*frame.e, *frame.e_dot]
    ids = frame.position_ids
    present = [t for t in (*rows, *angles, ids) if t is not None]
    rank = max(t.dim() for t in present) - 3
    leads = [_padded(t, rank) for t in present]
    lead = broadcast(*leads)
    cut = rank
    while cut and all(t is None or _padded(t, rank)[cut - 1] == lead[cut - 1] for t in rows):
        cut -= 1

    def merged(tensor: Tensor | None) -> Any:
        if tensor is None:
            return None
        if frame.heads_last:
            tensor = tensor.transpose(-2, -3)
        own, have = tensor.shape[-3:], _padded(tensor, rank)
        tensor = tensor.reshape((*have, *own)) if rank != tensor.dim() - 3 else tensor
        parts = [have[:cut], have[cut:]]
        full = [lead[:cut], lead[cut:]]
        target = [(1,) * len(p) if prod(p) == 1 else f for p, f in zip(parts, full, strict=True)]
        if rank == 1:  # the common case: nothing to merge
            return tensor.unsqueeze(1 if cut else 0)
        return tensor.expand((*target[0], *target[1], *own)).reshape(prod(target[0]), prod(target[1]), *own)

    a_q, a_k, b_q, b_k, x_q, x_k, x_dot_q, x_dot_k = (merged(t) for t in rows)
    cos, sin, cos_dot, sin_dot = (None if t is None else merged(t).squeeze(2) for t in angles)
    turned = rope_turn(
        Heads(a_q, a_k),
        Angles(cos, sin),
        b=Heads(b_q, b_k),
        dots=Angles(cos_dot, sin_dot),
        x=Heads(x_q, x_k),
        x_dot=Heads(x_dot_q, x_dot_k),
        positions=None if ids is None else merged(ids).squeeze(2).squeeze(-1),
        inverse=inverse,
        interleaved=frame.interleaved,
        heads_last=frame.heads_last,
        wants_first=wants[0],
        wants_second=wants[1],
        wants_first_sum=wants_sums[0],
        wants_second_sum=wants_sums[1],
    )

    def shaped(result: Tensor | None) -> Tensor | None:
        if result is None:
            return None
        if result.dim() == 4:  # sums over heads
            result = result.unsqueeze(2)
        if frame.heads_last:
            result = result.transpose(2, 3)
        groups = lead[:cut] if result.shape[0] == prod(lead[:cut]) else (1,) * cut
        return result.reshape((*groups, *lead[cut:], *result.shape[2:]))

    first, second, first_sum, second_sum = (Pair(*(shaped(t) for t in pair)) for pair in turned)
    return first, second, first_sum, second_sum


def _padded(tensor: Tensor, rank: int) -> tuple[int, ...]:
    """The lead of a tensor with ones in front."""
    return (*(1,) * (rank - tensor.dim() + 3), *tensor.shape[:-3])


def _narrowed(result: Tensor | None, sources: Sequence[Tensor | None]) -> Tensor | None:
    """A result with the lead that its sources have, taken once along axes that are not theirs."""
    if result is None:
        return None
    rank = result.dim() - 3
    lead = broadcast(*(_padded(t, rank) for t in sources if t is not None))
    for axis, size in enumerate(lead):
        if size == 1 and result.shape[axis] != 1:
            result = result.narrow(axis, 0, 1)
    ones = rank - max(t.dim() - 3 for t in sources if t is not None)
    return result.expand((*lead, *result.shape[-3:])).reshape((*lead[ones:], *result.shape[-3:]))


_points = Points(_Kernel())
if _DEVICES:
    op.kernel(*_DEVICES)(_points.primal)
    op.jvp.kernel(*_DEVICES)(_points.jvp)
    op.vjp.kernel(*_DEVICES)(_points.vjp)
    op.jvp.vjp.kernel(*_DEVICES)(_points.jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(_points.vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(_points.vjp_vjp)
