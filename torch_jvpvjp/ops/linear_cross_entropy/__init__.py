"""Linear cross-entropy: the public face."""

from typing import Any

import torch
from torch import Tensor

from ...registration.autocast import is_autocast
from .._native import FIRST_ORDER, standing
from ..cross_entropy.arguments import check_floating, check_options, check_target, classes_of
from ..cross_entropy.native import native_loss
from ..cross_entropy.reduction import reduced
from . import kernels as _kernels  # noqa: F401 -- registers them
from .chunks import chunk_rows
from .rules import op

__all__ = ["linear_cross_entropy", "op"]

_is_compiling = torch.compiler.is_dynamo_compiling


def linear_cross_entropy(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional.linear gives it
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    chunk_size: int | None = None,
) -> Tensor:
    """Cross-entropy of the logits of a linear layer, which are never in memory at once.

    With Z = X Wᵀ + b and ℓ the cross-entropy of a row (see ``cross_entropy``), for a chunk of them at a time:

        ℓ = cross_entropy(Z),    ℓ̇ = its J(Ż)  with  Ż = Ẋ Wᵀ + X Ẇᵀ + ḃ
        X̄ = Z̄ W,    W̄ = Z̄ᵀ X,    b̄ = Σ Z̄      with  Z̄ = its Jᵀ(ℓ̄)

    and, for the second order, with Z̄ and Ż̄ the cotangents of Z and Ż that ℓ̇ and ℓ have together:

        Ẋ̄ = Ż̄ W,    X̄ = Z̄ W + Ż̄ Ẇ,    Ẇ̄ = Ż̄ᵀ X,    W̄ = Z̄ᵀ X + Ż̄ᵀ Ẋ

    The value, the JVP, the gradient and the second order hold a few tensors of chunk_size · V logits; the backward
    computes logits again instead of keeping them (on a CPU, where all of them are one chunk, it keeps that chunk).
    Products are taken in the dtype of input, what is done to logits, and sums over chunks, in float32 (float64 for
    float64 input). On a GPU value, JVP and gradient go by chunks of classes that hold as many logits, one kernel for
    each beside its products; everywhere else, and at second order, by chunks of rows, with cross-entropy's kernels.
    Third orders, and vmap, run the formulas, in chunks too.

    Args:
        input: X, (*batch, D); float16, bfloat16, float32 or float64.
        weight: W, (V, D), of input's dtype, as a linear layer has it.
        target: Classes, integers of shape batch, each ignore_index or from 0 to V − 1.
        bias: b, (V). Absent means zero.
        ignore_index: The class whose rows count for nothing.
        reduction: "none", "mean" or "sum"; "mean" divides by the number of rows that count.
        label_smoothing: ε, from 0 to 1.
        z_loss: λ of λ L² with L = log Σ exp z, at least 0; reduced as the loss is.
        softcap: κ of z = κ tanh(x / κ), positive. Absent means no cap.
        chunk_size: Rows of a chunk, at least 1. Absent means about 2²⁵ logits.

    Returns:
        The loss, of input's dtype: a scalar, or one for each row with reduction="none". Under autocast products are
        taken in its dtype, and the loss is float32.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes, dtypes or devices do not agree, or an option is out of range.
        IndexError: On the CPU, if a class does not exist. Elsewhere such a row is NaN.

    Source: Hsu et al. (2024), Liger Kernel, for the chunks of rows; Wijmans et al. (2024), Cut Your Losses.
    """
    check_options("linear_cross_entropy", ignore_index, reduction, label_smoothing, z_loss, softcap)
    autocast = isinstance(input, Tensor) and is_autocast(input.device.type)
    _check(input, weight, target, bias, chunk_size, same_dtype=not autocast)
    rows, batch = input.reshape(-1, input.shape[-1]), input.shape[:-1]
    flat = classes_of(target.reshape(-1), ignore_index)
    if chunk_size is None and not z_loss and softcap is None and _is_native(rows, weight, bias):
        z = torch.nn.functional.linear(rows, weight, bias)
        loss = native_loss("linear_cross_entropy", z, flat, None, ignore_index, reduction, float(label_smoothing))
        return loss.reshape(batch) if reduction == "none" else loss
    args = (rows, weight, bias, flat, ignore_index, float(label_smoothing), softcap, chunk_size)
    losses, lse = op(*args) if autocast or _is_compiling() else op.visible(op.call_flat(args))
    counts = flat != ignore_index
    loss = reduced(losses.unsqueeze(-1), lse.unsqueeze(-1), -1, counts, flat, None, reduction, z_loss)
    loss = loss.reshape(batch) if reduction == "none" else loss
    return loss if autocast else loss.to(input.dtype)


def _is_native(rows: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether PyTorch's own layer and loss are right here; one chunk of logits is what they keep."""
    # Numbers of rows, which may be symbols, are compared only where nothing is traced.
    return standing(rows, weight, bias) in FIRST_ORDER and 0 < len(rows) == chunk_rows(len(rows), len(weight), None)


def _check(x: Any, weight: Any, target: Any, bias: Any, chunk_size: Any, *, same_dtype: bool) -> None:
    """Refuse what is no linear cross-entropy before anything is computed."""
    name = "linear_cross_entropy"
    check_floating(name, "input", x)
    check_floating(name, "weight", weight)
    if not x.dim() or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{name}: weight must have shape (V, D) with D the last size of input's shape {tuple(x.shape)}, got "
            f"{tuple(weight.shape)}."
        )
    if not weight.shape[0]:
        raise ValueError(f"{name}: weight must have at least one row, one for each class, got {tuple(weight.shape)}.")
    if bias is not None:
        check_floating(name, "bias", bias)
        if tuple(bias.shape) != (weight.shape[0],):
            raise ValueError(
                f"{name}: bias must have shape ({weight.shape[0]},), as weight has, got {tuple(bias.shape)}."
            )
    for what, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if (same_dtype and tensor.dtype != x.dtype) or tensor.device != x.device:
            raise ValueError(
                f"{name}: {what} must have input's dtype {x.dtype} and device {x.device}, got {tensor.dtype} on "
                f"{tensor.device}; use .to(input)."
            )
    check_target(name, target, tuple(x.shape[:-1]), x.device)
    if chunk_size is not None:
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int):
            raise TypeError(f"{name}: chunk_size must be an int or None, got {chunk_size!r}.")
        if chunk_size < 1:
            raise ValueError(f"{name}: chunk_size must be at least 1, got {chunk_size}.")
