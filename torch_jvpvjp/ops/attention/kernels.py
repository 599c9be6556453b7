"""The Triton kernels of attention at the points of its tower: value, JVP, VJP, and all of the second order."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._devices import triton_devices
from .inputs import rank_of
from .maps import Operands, Scores
from .points import NONE, Cotangents
from .rules import op
from .tower import Outputs, Tower, stripes

_DEVICES = triton_devices()
_LARGEST_HEAD = 256


class Kernels:
    """The engine of Triton kernels; what they do not take is computed stripe by stripe."""

    def forward(
        self, at: Operands, dots: Operands, scores: Scores
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """One launch: o and ℓ once, ȯ and ℓ̇ for every tangent."""
        if not _runs(at, scores):
            return stripes.engine.forward(at, dots, scores)
        from ...triton_kernels.attention import attention_forward

        moves = any(t is not None for t in dots)
        o, lse, o_dot, lse_dot = attention_forward(_five(at), _five(dots) if moves else None, _taken(scores))
        batched = _is_batched(at, scores)
        return (
            _shown(o, batched),
            _shown(lse, batched),
            _shown(o_dot, batched or _is_batched(dots, scores)),
            _shown(lse_dot, batched or _is_batched(dots, scores)),
        )

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
        from ...triton_kernels.attention import Operands as Needs
        from ...triton_kernels.attention import attention_second_order

        bends = any(t is not None for t in dots) and any(t is not None for t in w) and any(needs_second)
        if not bends:
            return self._pull(at, scores, w, needs_first, outputs), self._pull(at, scores, u, needs_second, outputs)
        o, lse, o_dot, lse_dot = outputs
        assert o is not None and lse is not None  # only what is moved may be unknown
        if o_dot is None or lse_dot is None:
            o_dot, lse_dot = self.forward(at, dots, scores)[2:]
        first, second = attention_second_order(
            _five(at),
            _five(dots),
            *_fronts(o, lse),
            *_fronts(o_dot, lse_dot),
            *_fronts(*w),
            *_fronts(*u),
            _taken(scores),
            Needs(*map(bool, needs_first)),
            Needs(*map(bool, needs_second)),
        )
        return Operands(*first), Operands(*second)

    def _pull(self, at: Operands, scores: Scores, w: Cotangents, needs: Sequence[bool], outputs: Outputs) -> Operands:
        from ...triton_kernels.attention import Operands as Needs
        from ...triton_kernels.attention import attention_vjp

        if not any(needs) or all(t is None for t in w):
            return NONE
        o, lse = outputs[:2]
        assert o is not None and lse is not None
        needed = Needs(*map(bool, needs))
        return Operands(*attention_vjp(_five(at), *_fronts(o, lse), *_fronts(*w), _taken(scores), needed))


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
    fits = 0 < q.shape[-1] <= _LARGEST_HEAD and 0 < v.shape[-1] <= _LARGEST_HEAD
    refused = torch.bfloat16 if q.device.type == "cpu" else torch.float64
    ranked = [("slopes", scores.slopes), ("ranges", scores.ranges)]
    ranked += zip(("kv_count", "kv_index", "q_count", "q_index"), scores.blocks or (), strict=False)
    return fits and q.dtype != refused and all(t is None or t.dim() == rank_of(name) for name, t in ranked)


def _five(operands: Sequence[Tensor | None]) -> Any:
    """Operands with the axis in front that vmap fills."""
    from ...triton_kernels.attention import Operands as KernelOperands

    return KernelOperands(*(t if t is None or t.dim() == 5 else t.unsqueeze(0) for t in operands))


def _fronts(o: Tensor | None, lse: Tensor | None) -> tuple[Any, Any]:
    """Something for o and ℓ, with that axis."""
    return (
        o if o is None or o.dim() == 5 else o.unsqueeze(0),
        lse if lse is None or lse.dim() == 4 else lse.unsqueeze(0),
    )


def _taken(scores: Scores) -> Any:
    """What is done to the scores, as launchers take it."""
    from ...triton_kernels.attention import Blocks
    from ...triton_kernels.attention import Scores as KernelScores

    mask = scores.mask
    return KernelScores(
        scores.scale,
        scores.left,
        scores.right,
        scores.offset,
        scores.softcap,
        mask if mask is None or mask.dim() == 5 else mask.unsqueeze(0),
        None if scores.slopes is None else scores.slopes.to(torch.float32),  # from float64 in autocast
        scores.ranges,
        None if scores.seed is None else scores.seed.reshape(-1),
        scores.dropout_p,
        None if scores.blocks is None else Blocks(*scores.blocks),
    )


def _is_batched(operands: Operands, scores: Scores) -> bool:
    """Whether a result of these has the axis in front."""
    seeds = scores.seed is not None and scores.seed.dim() > 0
    return seeds or any(t is not None and t.dim() == 5 for t in (*operands, scores.mask))


def _shown(result: Any, batched: bool) -> Any:  # noqa: FBT001
    return result if result is None or batched else result.squeeze(0)


kernels = Tower(Kernels())


def _primal(*args: Any) -> tuple[Tensor, Tensor]:
    """o and ℓ in one launch."""
    return kernels.primal(op.signature.inputs_type(*args))


if _DEVICES:
    op.kernel(*_DEVICES)(_primal)
    op.jvp.kernel(*_DEVICES)(kernels.jvp)
    op.vjp.kernel(*_DEVICES)(kernels.vjp)
    op.jvp.vjp.kernel(*_DEVICES)(kernels.jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(kernels.vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(kernels.vjp_vjp)
