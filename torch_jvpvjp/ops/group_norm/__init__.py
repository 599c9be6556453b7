"""Group normalisation, with SiLU if asked: the public face."""

from math import inf, prod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from .._arguments import check_floating
from .._native import AS_IT_STANDS, RECORDED, REVERSED, WRITTEN, standing
from . import cpu as _cpu  # noqa: F401 -- registers kernels, as the next does
from . import kernels as _kernels  # noqa: F401
from .cpu import has_safe_node, recorded_group_norm, watched_group_norm
from .rules import op

__all__ = ["group_norm", "op"]

_is_compiling = torch.compiler.is_dynamo_compiling
_INTEGERS: Any = (int, torch.SymInt)


def group_norm(
    input: Tensor,  # noqa: A002 -- the name torch.nn.functional gives it
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
) -> Tensor:
    """Group normalisation with SiLU on top if asked; signature and semantics of ``torch.nn.functional.group_norm``.

    A group is C / G channels of a sample with all their sites. With ⟨·⟩ the mean over a group, m = ⟨x⟩,
    r = (⟨(x − m)²⟩ + ε)^(-1/2), x̂ = r (x − m), v = r ẋ and f the activation:

        z = x̂ ∘ w + b,    y = f(z)
        ẏ = f′(z) ((v − ⟨v⟩ − ⟨x̂ v⟩ x̂) ∘ w + x̂ ∘ ẇ + ḃ)
        z̄ = f′(z) ȳ,  g = w ∘ z̄:   x̄ = r (g − ⟨g⟩ − ⟨x̂ g⟩ x̂),    w̄ = Σ x̂ ∘ z̄,    b̄ = Σ z̄

    the sums over samples and sites, in a fixed order. On a GPU the primal, the JVP (primal and tangents in one launch),
    the VJP and the second order are one kernel each; elsewhere, and at every other order, the formulas run. It computes
    in float32, in float64 for float64 input.

    Args:
        input: x, shape (N, C, *spatial), float16, bfloat16, float32 or float64. If it lies in memory as
            ``torch.channels_last`` or ``torch.channels_last_3d``, so does the result, and no copy is made.
        num_groups: Number of groups G; divides C.
        weight: Gain w, shape (C,); any of those dtypes. Absent means ones.
        bias: Shift b, shape (C,); any of those dtypes. Absent means zeros.
        eps: ε, added to the variance; a finite number.
        activation: f: None for the identity, or "silu".

    Returns:
        y, of the shape and dtype of input.

    Raises:
        TypeError: If an argument is not of its type, or a tensor not of a dtype named above.
        ValueError: If shapes or devices do not agree, num_groups does not divide C, a group of a single sample has one
            element, eps is not finite, or there is no such activation.

    Source: Wu and He (2018), Group Normalization.
    """
    way = standing(input, weight, bias)
    shape = input.shape if way in REVERSED else ()  # these are dense tensors of one dtype on one device then
    if not (
        len(shape) > 2
        and type(num_groups) is int
        and num_groups > 0
        and not shape[1] % num_groups
        and input.numel() > shape[1]
        and (weight is None or weight.shape == shape[1:2])
        and (bias is None or bias.shape == shape[1:2])
        and type(eps) is float
        and 0 < eps < inf
        and activation is None
    ):  # not what nearly every call on a CPU is
        _check(input, num_groups, weight, bias, eps, activation)
    silu = activation is not None
    if way == WRITTEN and silu and input.numel():
        return F.silu(torch.group_norm(input, num_groups, weight, bias, float(eps)))
    if way in REVERSED and not silu and input.numel():
        if way in AS_IT_STANDS:
            return torch.group_norm(input, num_groups, weight, bias, float(eps))
        if has_safe_node(input, weight, bias):
            y = torch.group_norm(input, num_groups, weight, bias, float(eps))
            return watched_group_norm(y, num_groups, float(eps))
    channels_last = _is_channels_last(input)
    x = input.movedim(1, -1) if channels_last else input
    if _is_compiling():
        y = op(x, weight, bias, num_groups, x.dim(), channels_last, eps, silu)
    elif way == RECORDED:
        y = recorded_group_norm(x, weight, bias, num_groups, x.dim(), channels_last, float(eps), silu)
    else:  # a call of the op would only look at the arguments again
        y = op.call_flat((x, weight, bias, num_groups, x.dim(), channels_last, float(eps), silu))[0]
    return y.movedim(-1, 1) if channels_last else y


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels of an image or volume, and they alone, are adjacent in memory."""
    if x.dim() not in (4, 5) or x.is_contiguous():
        return False
    return x.movedim(1, -1).is_contiguous()  # vmap cannot be asked for a memory format


def _check(x: Any, num_groups: Any, weight: Any, bias: Any, eps: Any, activation: Any) -> None:
    """Refuse what is not a group norm before anything is computed."""
    check_floating("group_norm", "input", x)
    if x.dim() < 2:
        raise ValueError(f"group_norm: input must have shape (N, C, *spatial), got {tuple(x.shape)}.")
    if isinstance(num_groups, bool) or not isinstance(num_groups, _INTEGERS):
        raise TypeError(f"group_norm: num_groups must be an int, got {type(num_groups).__name__}.")
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise ValueError(
            f"group_norm: num_groups must be positive and divide the {channels} channels of input's shape "
            f"{tuple(x.shape)}, got {num_groups}."
        )
    if channels // num_groups * prod((x.shape[0], *x.shape[2:])) == 1:
        raise ValueError(
            f"group_norm: input must have more than one value per group of channels, as PyTorch asks, got shape "
            f"{tuple(x.shape)} with {num_groups} groups; use fewer groups."
        )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        check_floating("group_norm", name, tensor, optional=True)
        if tuple(tensor.shape) != (channels,):
            raise ValueError(
                f"group_norm: {name} must have shape ({channels},) to match input's shape {tuple(x.shape)}, got "
                f"{tuple(tensor.shape)}."
            )
        if tensor.device != x.device:
            raise ValueError(
                f"group_norm: {name} must be on input's device {x.device}, got {tensor.device}; use .to(input.device)."
            )
    if isinstance(eps, bool) or not isinstance(eps, float | int):
        raise TypeError(f"group_norm: eps must be a number, got {type(eps).__name__}.")
    if not -inf < eps < inf:
        raise ValueError(f"group_norm: eps must be finite, got {eps}.")
    if activation is not None and activation != "silu":
        raise ValueError(f'group_norm: activation must be None or "silu", got {activation!r}.')
