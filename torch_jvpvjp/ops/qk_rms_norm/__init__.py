"""The RMS norm of queries and keys, head by head: the public face."""

from typing import Any

import torch
from torch import Tensor

from .._arguments import check_floating
from .._native import VALUE, standing
from .._norms.arguments import check_device, check_weight, eps_of, is_rounded
from . import kernels as _kernels  # noqa: F401 -- registers them
from .rules import op

__all__ = ["op", "qk_rms_norm"]

_is_compiling = torch.compiler.is_dynamo_compiling


def qk_rms_norm(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
    casting: str = "torch",
) -> tuple[Tensor, Tensor]:
    """Root-mean-square normalisation of queries and keys over their last axis, the size of a head: QK-norm.

    It is :func:`rms_norm` of each, with its equations,

        q̂ = N(q, w_q),    k̂ = N(k, w_k),

    and on a GPU one launch for both: one for the primals, one for primals and tangents, one for the cotangents. At the
    second order it is one launch each. Axes in front of the last may be any, and others for q than for k: heads
    before or after positions, more heads of q than of k.

    Args:
        q: Queries, shape (*batch, n); float16, bfloat16, float32 or float64.
        k: Keys, shape (*other_batch, n), of the dtype and device of q.
        q_weight: Gain of q, shape (n,); any of those dtypes. Absent means a gain of ones.
        k_weight: Gain of k, likewise.
        eps: ε, added under the root; finite. Absent means the machine epsilon of the dtype it computes in.
        weight_offset: Added to the weights where there are any, see :func:`rms_norm`.
        casting: "torch", "llama" or "gemma", see :func:`rms_norm`.

    Returns:
        Both, each of the shape and dtype of what it normalises.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes, dtypes or devices do not agree, eps is not finite, or casting is unknown or does not fit.

    Source: Henry et al. (2020), Query-Key Normalization for Transformers; Zhang and Sennrich (2019).
    """
    name = "qk_rms_norm"
    native = standing(q, k, q_weight, k_weight) == VALUE  # and so dense tensors of one dtype on one device
    shape = q.shape[-1:] if native else ()
    if (
        not shape
        or k is None
        or k.shape[-1:] != shape
        or (q_weight is not None and q_weight.shape != shape)
        or (k_weight is not None and k_weight.shape != shape)
    ):
        _check(q, k, q_weight, k_weight)
    eps = eps_of(name, eps, q)
    rounded = is_rounded(name, casting, weight_offset, q, q_weight, k_weight)
    plain = (q_weight is None and k_weight is None) or not weight_offset
    if native and plain and not rounded and q.numel() and k.numel():
        return torch.rms_norm(q, shape, q_weight, eps), torch.rms_norm(k, shape, k_weight, eps)
    arguments = (q, k, q_weight, k_weight, eps, float(weight_offset), rounded)
    return op(*arguments) if _is_compiling() else op.call_flat(arguments)  # pyright: ignore[reportReturnType]


def _check(q: Any, k: Any, q_weight: Any, k_weight: Any) -> None:
    """Refuse what cannot be normalised together before anything is computed."""
    name = "qk_rms_norm"
    check_floating(name, "q", q)
    check_floating(name, "k", k)
    if q.dim() == 0 or k.dim() == 0 or k.shape[-1] != q.shape[-1] or k.dtype != q.dtype:
        raise ValueError(
            f"{name}: k must have the last size and dtype of q, which have shapes {tuple(k.shape)} and "
            f"{tuple(q.shape)}, dtypes {k.dtype} and {q.dtype}."
        )
    check_device(name, "k", k, "q", q)
    shape = (q.shape[-1],)
    check_weight(name, "q_weight", q_weight, q, shape, "the last size of q", "q")
    check_weight(name, "k_weight", k_weight, q, shape, "the last size of k", "q")
