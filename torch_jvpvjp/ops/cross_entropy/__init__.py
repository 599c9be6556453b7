"""Cross-entropy: the public face."""

import torch
from torch import Tensor

from ...registration import _torch_private as private
from ...registration.autocast import is_autocast
from . import cpu as _cpu  # noqa: F401 -- registers kernels, as the next two do
from . import cpu_second_order as _cpu_second_order  # noqa: F401
from . import kernels as _kernels  # noqa: F401
from .arguments import check, check_options, classes_of
from .native import is_native, native_loss
from .reduction import reduced
from .rules import op

__all__ = ["cross_entropy", "op"]

_is_compiling, _any_autocast = torch.compiler.is_dynamo_compiling, private.is_any_autocast_enabled


def cross_entropy(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> Tensor:
    """Cross-entropy of logits; ``torch.nn.functional.cross_entropy`` with a z-loss and a cap on the logits.

    For one row, with z = x or κ tanh(x / κ), L = log Σ exp z, p = exp(z − L), and τ the weights that its target gives
    the classes, τ_j = (1 − ε) w_t [j = t] + ε w_j / n for a class t, τ_j = w_j ((1 − ε) q_j + ε / n) for probabilities:

        ℓ = Σ τ (L − z)
        ℓ̇ = Σ τ (L̇ − ż) + τ̇ (L − z),      L̇ = Σ p ż,   ż = z′ ẋ
        x̄ = ℓ̄ (p Σ τ − τ) z′,             q̄ = w (1 − ε) ℓ̄ (L − z)
        H ẋ = p ∘ (ẋ − L̇) Σ τ,            without a cap: the product of ℓ's Hessian with ẋ

    The z-loss adds λ L² for each row that is not ignored; class weights do not touch it. "mean" divides the losses by
    the sum of the w_t that count (by the number of rows for probabilities), as PyTorch does, and the z-loss by the
    number of rows that count. Where none counts, the mean is NaN, as in PyTorch.

    On a GPU, a row is read once for the losses and all their tangents, and once for the gradient; the second order is
    one kernel. Neither softmax nor a one-hot target is ever stored, and the logits are not written into (on a CPU
    PyTorch's own function keeps log p in the place of x). It computes in float32, in float64 for float64 input.

    Args:
        input: x, logits (n), (N, n) or (N, n, d₁, ...); float16, bfloat16, float32 or float64.
        target: Classes, integers of shape (), (N) or (N, d₁, ...), each ignore_index or from 0 to n − 1; or
            probabilities, floating-point of input's shape, in which the loss is differentiable too.
        weight: Weights w of the classes, (n); no derivative. Absent means ones.
        ignore_index: The class whose rows count for nothing; for classes only.
        reduction: "none", "mean" or "sum".
        label_smoothing: ε, from 0 to 1.
        z_loss: λ, at least 0.
        softcap: κ, positive. Absent means no cap.

    Returns:
        The loss: a scalar, or one for each row with reduction="none". Its dtype is input's, or the wider of input's and
        the probabilities'; under autocast it is at least float32.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes or devices do not agree, or an option is out of range.
        IndexError: On the CPU, if a class does not exist. Elsewhere nothing waits for the GPU: such a row is NaN.

    Source: Szegedy et al. (2016), label smoothing; Chowdhery et al. (2022), PaLM, z-loss; Gemma Team (2024), the cap.
    """
    check_options("cross_entropy", ignore_index, reduction, label_smoothing, z_loss, softcap)
    check(input, target, weight, ignore_index)
    probabilities = target.is_floating_point()
    if not z_loss and softcap is None and is_native(input, target if probabilities else None, weight):
        return native_loss("cross_entropy", input, target, weight, ignore_index, reduction, label_smoothing)
    target = target if probabilities else classes_of(target, ignore_index)
    dim = -1 if input.dim() < 2 else 1 - input.dim()
    rows_target = target if probabilities else target.unsqueeze(dim if input.dim() > 1 else -1)
    shaped = None if weight is None else weight.reshape(len(weight), *(1,) * (-dim - 1))
    args = (input, rows_target, shaped, dim, ignore_index, float(label_smoothing), softcap)
    # A call of the op leaves autocast, which would lower sums that are made as products.
    losses, lse = op(*args) if _is_compiling() or _any_autocast() else op.visible(op.call_flat(args))
    counts = None if probabilities else rows_target != ignore_index
    loss = reduced(losses, lse, dim, counts, rows_target, weight, reduction, z_loss)
    dtype = loss.dtype if is_autocast(input.device.type) else input.dtype
    return loss.to(torch.promote_types(dtype, target.dtype) if probabilities else dtype)
