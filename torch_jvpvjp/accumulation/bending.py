"""Tangents by adjoints, where PyTorch's forward mode is wrong, or right once and silently wrong when differentiated.

The JVP of `logcumsumexp` divides by Σ eˣ + 1e-13, relative to the largest x: what lies 30 below it is wrong. That of
`scatter_reduce` is wrong at ties, and of products anywhere; that of `cholesky_inverse` is not that of its VJP; that of
`det` is 0 or refused at singular matrices, and so is its VJP where nothing is recorded of that.

The JVP formulas of a few ops read what the op saved, the mean of a batch or the factors of a matrix, which autograd
takes for constants: J(x) ẋ is right and its gradient in x is not (norms in 2.11 to 2.15, linear algebra before 2.15).
Their pullbacks are differentiated rightly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ._torch import vjp
from ._torch_autograd import recording_of
from .carrying import carry_each
from .tracing.op_arguments import argument
from .tracing.tape import TapeOp

_aten: Any = torch.ops.aten
_STATISTICS = ("native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "cudnn_batch_norm")
_SMOOTH = {getattr(packet, name) for packet in (getattr(_aten, n) for n in _STATISTICS) for name in packet.overloads()}
_MISPUSHED = {
    _aten.logcumsumexp.default,
    _aten.scatter_reduce.two,
    _aten.cholesky_inverse.default,
    _aten._linalg_det.default,
}
_TRANSPOSED = _MISPUSHED | {
    _aten._linalg_solve_ex.default,
    _aten._linalg_slogdet.default,
    _aten.linalg_householder_product.default,
    _aten.triangular_solve.default,
    _aten.glu.default,  # whose JVP has no derivative at all
}


def smooth_target(target: Any) -> Any:
    """Return what may stand for an op whose forward mode is to be differentiated.

    Args:
        target: The op.

    Returns:
        A batch normalisation as a formula, if it is one; else the op.
    """
    if target not in _SMOOTH:
        return target
    names = [argument.name for argument in target._schema.arguments]

    def batch_norm(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        given = dict(zip(names, args, strict=False)) | kwargs
        if not given.get("training", True):
            return target(*args, **kwargs)
        results = target(*args, **kwargs)
        eps = given["eps"] if "eps" in given else given["epsilon"]
        return _normalised(given["input"], given["weight"], given["bias"], eps), *results[1:]

    return batch_norm


def _normalised(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """y = w (x − mean) / √(var + eps) + b, by channels, with the moments of the batch."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    var, mean = torch.var_mean(wide, [0, *range(2, x.dim())], correction=0, keepdim=True)
    y = (wide - mean) * torch.rsqrt(var + eps)
    shape = mean.shape
    y = y if weight is None else y * weight.reshape(shape)
    return (y if bias is None else y + bias.reshape(shape)).to(x.dtype)


def is_transposed(target: Any, *, live: bool) -> bool:
    """Return whether tangents of an op are to be taken by `transposed`, those that are `live` to be differentiated."""
    return target in (_TRANSPOSED if live else _MISPUSHED)


def is_pulled_alone(op: TapeOp) -> bool:
    """Return whether the pullback of an op is no derivative, as that of an embedding that is scaled by frequency."""
    if op.target is not _aten.embedding.default:
        return False
    return bool(argument(op.target, op.args, dict(op.kwargs), "scale_grad_by_freq"))


def pulled_through(target: Any) -> AbstractContextManager[object]:
    """Return the context in which cotangents are pulled through an op rightly."""
    return torch.enable_grad() if target is _aten._linalg_det.default else nullcontext()


def transposed(
    function: Callable[..., tuple[Tensor, ...]], primals: Sequence[Tensor], tangents: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Return J ẋ as the adjoint of the pullback ȳ ↦ Jᵀ ȳ, which is linear.

    Args:
        function: From tensors to tensors.
        primals: Where.
        tangents: ẋ, one for each.

    Returns:
        The tangents of the results.
    """
    results: Any = torch.func.vjp(function, *primals)
    outputs, pullback = results
    adjoint: Any = torch.func.vjp(lambda *y_bars: pullback(y_bars), *map(torch.ones_like, outputs))
    return adjoint[1](tuple(tangents))


def rows_where_bent(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return f(x) and the rows of its Jacobian, (m, n), if PyTorch's forward mode of f must not be differentiated.

    Args:
        function: f.
        x: The point.

    Returns:
        Both, or None if forward mode will do.
    """
    bent = False

    def watched(x: Tensor) -> Tensor:
        nonlocal bent
        y = function(x)
        bent = not recording_of(y).bends_rightly
        return y

    y, pullback = vjp(watched, x)
    return _pulled_rows(y, pullback) if bent else None


def rows_of(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(x) and the rows of its Jacobian, (m, n)."""
    return _pulled_rows(*vjp(function, x))


def _pulled_rows(y: Tensor, pullback: Callable[[Tensor], tuple[Tensor]]) -> tuple[Tensor, Tensor]:
    rows = torch.eye(y.numel(), dtype=y.dtype, device=y.device).reshape(-1, *y.shape)
    (pulled,) = carry_each(pullback, [rows])
    return y, pulled.reshape(y.numel(), -1)
