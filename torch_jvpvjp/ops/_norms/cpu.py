"""The norms on the CPU: PyTorch's own primals, and pullbacks in as few ops as it takes.

On a small tensor an op costs mostly its dispatch, so the pullbacks work in place on what they have just made.
"""

from typing import Any

import torch
from torch import Tensor

from ...registration._torch_private import saved_by
from .._devices import triton_devices
from .._groups import sum_to
from .._watched import watched
from .rules import check_tangents, op

_WIDE = (torch.float32, torch.float64)
_native = torch.ops.aten.native_layer_norm.default
_native_backward = torch.ops.aten.native_layer_norm_backward.default


def value(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalized_ndim: int,
    eps: float,
    centred: bool,
    offset: float,
    rounded: bool,
) -> Tensor:
    """y by PyTorch's own; by the formula where dtypes differ, or half precision is modulated."""
    plain = (
        _plain(x, weight, normalized_ndim) and _plain(x, bias, normalized_ndim) and not (weight is not None and offset)
    )
    wide = x.dtype in _WIDE
    # A slice of a shape takes longer to make and to parse than a tuple of one size.
    shape = (x.shape[-1],) if normalized_ndim == 1 else x.shape[-normalized_ndim:]
    if plain and not (rounded and not wide):
        if centred:
            return _native(x, shape, *_filled(x, shape, weight, bias), eps)[0]
        if bias is None:
            return torch.rms_norm(x, shape, weight, eps)
    if not wide or not all(t is None or t.dtype == x.dtype for t in (weight, bias)):
        return op.formula(x, weight, bias, normalized_ndim, eps, centred, offset, rounded)
    if centred:
        unit = _native(x, shape, *_filled(x, shape, None, None), eps)[0]
    else:
        unit = torch.rms_norm(x, shape, None, eps)
    if weight is None:
        return unit if bias is None else unit + bias
    gain = weight + offset if offset else weight
    return unit * gain if bias is None else torch.addcmul(bias, unit, gain)


def _filled(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Ones and zeros for what is absent, where these cost little: PyTorch's kernel is half as fast without them."""
    if x.numel() >= 16 * shape[-1] and (weight is None) + (bias is None):
        weight = x.new_ones(shape) if weight is None else weight
        bias = x.new_zeros(shape) if bias is None else bias
    return weight, bias


_watch = watched(op, lambda node, *options: (*saved_by(node, "input", "weight", "bias"), *options))


def watched_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int, eps: float, *options: Any
) -> Tensor:
    """Layer norm by PyTorch, recorded.

    Args:
        x: Input.
        weight: w or None.
        bias: b or None.
        ndim: How many axes are normalised.
        eps: ε.
        *options: The other options of the op.

    Returns:
        y, right at every order.
    """
    shape = (x.shape[-1],) if ndim == 1 else x.shape[x.dim() - ndim :]
    if weight is None or bias is None:
        weight, bias = _filled(x, shape, weight, bias)
    return _watch(torch.layer_norm(x, shape, weight, bias, eps), ndim, eps, *options)


def _plain(x: Tensor, weight: Tensor | None, normalized_ndim: int) -> bool:
    """Whether PyTorch's own norms take a weight or bias, and round as they should."""
    return weight is None or (weight.dim() == normalized_ndim and weight.dtype == x.dtype)


def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The pullback, by `pull`."""
    return pull(cotangents.y, inputs, needs)


def pull(y_bar: Tensor, inputs: Any, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """x̄ = r P (g − ⟨x̂ g⟩ x̂),  w̄ = Σ x̂ ∘ ȳ,  b̄ = Σ ȳ; by the formula unless all is one dtype and one axis wide."""
    x, weight, bias, normalized_ndim, eps, centred, offset, _ = inputs
    alike = x.shape == y_bar.shape and x.dtype in _WIDE and all(t is None or t.dtype == x.dtype for t in (weight, bias))
    if normalized_ndim != 1 or not alike or x.numel() == 0:
        return op.vjp.op.formula(op.signature.cotangents_type(y_bar), inputs, needs=needs)
    if centred:
        return _pull_centred(x, weight, bias, y_bar, eps, offset, needs)
    n = x.shape[-1]
    r = (x * x).sum(-1, True).div_(n).add_(eps).rsqrt_()
    unit = x * r  # x̂
    x_bar = None
    if needs[0]:
        g = y_bar if weight is None else y_bar * (weight + offset if offset else weight)
        inner = (unit * g).sum(-1, True).div_(n)  # ⟨x̂ g⟩
        x_bar = torch.addcmul(g, unit, inner, value=-1).mul_(r)
    return x_bar, *_weight_bars(unit, weight, bias, y_bar, needs)


def _weight_bars(
    unit: Tensor, weight: Tensor | None, bias: Tensor | None, y_bar: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    return (
        sum_to(unit * y_bar, weight.shape) if needs[1] and weight is not None else None,
        sum_to(y_bar, bias.shape) if needs[2] and bias is not None else None,
    )


def _pull_centred(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    y_bar: Tensor,
    eps: float,
    offset: float,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """The pullback of layer norm by PyTorch's own, which also sums over rows where these share w and b."""
    shape = (x.shape[-1],)
    plain = not offset and _plain(x, weight, 1) and _plain(x, bias, 1)
    fillings = _filled(x, shape, weight, bias) if plain else _filled(x, shape, None, None)
    _, mean, r = _native(x, shape, *fillings, eps)
    if plain:
        mask = [needs[0], needs[1] and weight is not None, needs[2] and bias is not None]
        return _native_backward(y_bar.contiguous(), x, shape, mean, r, weight, bias, mask)
    x_bar = None
    if needs[0]:
        g = y_bar if weight is None else y_bar * (weight + offset if offset else weight)
        x_bar = _native_backward(g.contiguous(), x, shape, mean, r, None, None, [True, False, False])[0]
    return x_bar, *_weight_bars((x - mean).mul_(r), weight, bias, y_bar, needs)


def push(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """y, and ẏ = r (P ẋ − ⟨x̂ ẋ⟩ x̂) ∘ W + x̂ ∘ ẇ + ḃ, with one x̂; by the formula unless all is one dtype and shape."""
    x, weight, bias, normalized_ndim, eps, centred, offset, _ = primals
    x_dot, w_dot, b_dot = tangents
    alike = x.dtype in _WIDE and all(t is None or t.dtype == x.dtype for t in (weight, bias))
    fixed = all(t is None or t.dim() <= x.dim() for t in (weight, bias, w_dot, b_dot))  # a batch has axes in front
    if normalized_ndim != 1 or not alike or not fixed or x_dot is None or x_dot.shape != x.shape or x.numel() == 0:
        return op.jvp.op.formula(primals, tangents)
    check_tangents(primals, tangents)
    n = x.shape[-1]
    if centred:
        shape = (n,)
        unit, _, r = _native(x, shape, *_filled(x, shape, None, None), eps)
        moved = x_dot - x_dot.mean(-1, True)
    else:
        r = torch.linalg.vecdot(x, x).unsqueeze(-1).div_(n).add_(eps).rsqrt_()
        unit, moved = x * r, x_dot
    inner = torch.linalg.vecdot(unit, moved).unsqueeze(-1).div_(n)  # ⟨x̂ ẋ⟩
    y_dot = torch.addcmul(moved, unit, inner, value=-1).mul_(r)
    y = unit
    if weight is not None:
        gain = weight + offset if offset else weight
        y, y_dot = unit * gain, y_dot * gain
    if w_dot is not None:
        y_dot = torch.addcmul(y_dot, unit, w_dot)
    return y if bias is None else y + bias, y_dot if b_dot is None else y_dot + b_dot


if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(value)
    op.jvp.kernel("cpu")(push)
    op.vjp.kernel("cpu")(_vjp)
