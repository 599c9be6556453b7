"""The Triton kernels of attention at the points of its tower: value, JVP, VJP, and all of the second order."""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._devices import triton_devices
from .inputs import rank_of
from .maps import Operands, Scores
from .points import NONE, Cotangents, Found
from .rules import op
from .tower import Outputs, Tower, stripes

_DEVICES = triton_devices()
_LARGEST_HEAD = 256


class Kernels:
    """The engine of Triton kernels; what they do not take is computed stripe by stripe."""

    def forward(self, at: Operands, dots: Operands, scores: Scores) -> Found:
        """One launch: o and ℓ once, ȯ and ℓ̇ for every tangent."""
        if not _runs(at, scores):
            return stripes.engine.forward(at, dots, scores)
        return _launchers().attention_forward(at, dots, _taken(scores))

    def second(
        self,
        at: Operands,
        dots: Operands,
        scores: Scores,
        w: Cotangents,
        u: Cotangents,
        needs_first: Sequence[bool],
        needs_second: Sequence[bool],
        outputs: Outputs,
    ) -> tuple[Operands, Operands]:
        """Two launches, by rows and by columns, and one more for a bias; o, ℓ and their tangents are read."""
        if not _runs(at, scores):
            return stripes.engine.second(at, dots, scores, w, u, needs_first, needs_second, outputs)
        bends = any(t is not None for t in dots) and any(t is not None for t in w) and any(needs_second)
        if not bends:
            return self._pull(at, scores, w, needs_first, outputs), self._pull(at, scores, u, needs_second, outputs)
        if not _launchers().second_order_fits(max(at.q.shape[-1], at.v.shape[-1]), at.q):
            return stripes.engine.second(at, dots, scores, w, u, needs_first, needs_second, outputs)
        o, lse, o_dot, lse_dot, rest = outputs
        assert o is not None and lse is not None  # only what is moved may be unknown
        if o_dot is None or lse_dot is None:
            o_dot, lse_dot = self.forward(at, dots, scores)[2:4]
        first, second = _launchers().attention_second_order(
            at,
            dots,
            o,
            lse,
            o_dot,
            lse_dot,
            *w,
            *u,
            _taken(scores),
            Operands(*map(bool, needs_first)),
            Operands(*map(bool, needs_second)),
            rest,
        )
        return Operands(*first), Operands(*second)

    def _pull(self, at: Operands, scores: Scores, w: Cotangents, needs: Sequence[bool], outputs: Outputs) -> Operands:
        if not any(needs) or all(t is None for t in w):
            return NONE
        o, lse = outputs.o, outputs.lse
        assert o is not None and lse is not None
        needed = Operands(*map(bool, needs))
        found = _launchers().attention_vjp(at, o, lse, *w, _taken(scores), needed, outputs.rest)
        return Operands(*found)


def _runs(at: Operands, scores: Scores) -> bool:
    """Whether kernels compute this.

    float64 is not multiplied by tensor cores on all GPUs, nor bfloat16 by the interpreter; what launchers take without
    an axis in front must have none.

    Args:
        at: The arguments.
        scores: What is done to the scores.

    Returns:
        Whether they do.
    """
    q, v = at.q, at.v
    refused = torch.bfloat16 if q.device.type == "cpu" else torch.float64
    if q.dtype == refused or not (0 < q.shape[-1] <= _LARGEST_HEAD and 0 < v.shape[-1] <= _LARGEST_HEAD):
        return False
    ranked = [("slopes", scores.slopes), ("ranges", scores.ranges)]
    if scores.blocks is not None:
        ranked += zip(("kv_count", "kv_index", "q_count", "q_index"), scores.blocks, strict=False)
    for name, t in ranked:
        if t is not None and t.dim() != rank_of(name):
            return False
    return True


@functools.cache
def _launchers() -> Any:
    """The launchers, which need Triton."""
    from ...triton_kernels import attention

    return attention


def _taken(scores: Scores) -> Any:
    """What is done to the scores, as launchers take it."""
    launchers = _launchers()
    slopes, blocks = scores.slopes, scores.blocks
    return launchers.Scores(
        scores.scale,
        scores.left,
        scores.right,
        scores.offset,
        scores.softcap,
        scores.mask,
        slopes if slopes is None else slopes.to(torch.float32),  # from float64 in autocast
        scores.ranges,
        scores.seed,
        scores.dropout_p,
        blocks if blocks is None else launchers.Blocks(*blocks),
    )


kernels = Tower(Kernels())


def _primal(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """o, ℓ and its rest in one launch."""
    return kernels.primal(op.signature.inputs_type(*args))


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(kernels.jvp)
    op.vjp.kernel(*_DEVICES)(kernels.vjp)
    op.jvp.vjp.kernel(*_DEVICES)(kernels.jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(kernels.vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(kernels.vjp_vjp)
