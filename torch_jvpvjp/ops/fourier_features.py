"""Fourier features: cosines and sines of linear maps of the input."""

from math import tau
from typing import Any

import torch
from torch import Tensor

from ..registration import _torch_private as private
from ..registration import differentiable_op, expanding_rule
from ._arguments import check_floating
from ._arithmetic import cotangents_like, total, wide
from ._batched import batched, leading_rule
from ._devices import triton_devices

__all__ = ["fourier_features", "op"]

_is_compiling, _any_autocast = torch.compiler.is_dynamo_compiling, private.is_any_autocast_enabled


# ---- the reference and its rules -------------------------------------------------------------------------------------


@differentiable_op("torch_jvpvjp::fourier_features", composite=True)
def op(x: Tensor, frequencies: Tensor) -> Tensor:
    """The reference: y = (cos φ, sin φ) with φ = 2π F x.

    Args:
        x: Shape (M, d), or with axes in front, where vmap puts a batch.
        frequencies: F, shape (m, d), likewise.

    Returns:
        y, shape (M, 2m), of x's dtype.
    """
    return torch.cat(_cos_sin(wide(x, x), wide(frequencies, x)), -1).to(x.dtype)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """ẏ = (−sin φ, cos φ) φ̇ with φ̇ = 2π (F ẋ + Ḟ x)."""
    x, f = (wide(t, primals.x) for t in primals)
    x_dot, f_dot = (wide(t, primals.x) for t in tangents)
    c, s = _cos_sin(x, f)
    turns = total(None if x_dot is None else _products(x_dot, f), None if f_dot is None else _products(x, f_dot))
    phase_dot = torch.zeros_like(c) if turns is None else tau * turns
    y, y_dot = torch.cat((c, s), -1), torch.cat((-s * phase_dot, c * phase_dot), -1)
    return y.to(primals.x.dtype), y_dot.to(primals.x.dtype)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """φ̄ = cos φ · s̄ − sin φ · c̄  for ȳ = (c̄, s̄);  x̄ = 2π Fᵀ φ̄,  F̄ = 2π Σ φ̄ xᵀ."""
    x, f = (wide(t, inputs.x) for t in inputs)
    c, s = _cos_sin(x, f)
    c_bar, s_bar = wide(cotangents.y, inputs.x).chunk(2, -1)
    return _pull_phase(c * s_bar - s * c_bar, x, f, inputs, needs)


def _pull_phase(phase_bar: Tensor, x: Tensor, f: Tensor, inputs: Any, needs: tuple[bool, ...]) -> Any:
    x_bar = tau * (phase_bar @ f) if needs[0] else None
    f_bar = tau * (phase_bar.mT @ x) if needs[1] else None
    return cotangents_like((x_bar, f_bar), inputs)


def _products(x: Tensor, f: Tensor) -> Tensor:
    """F x for every row."""
    return x @ f.mT


def _cos_sin(x: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    turns = _products(x, f)
    phase = tau * (turns - turns.round())
    return torch.cos(phase), torch.sin(phase)


op.vmap(leading_rule(op, [(0, 1)], lambda _: 2))
op.jvp.vmap(leading_rule(op.jvp.op, [(0, 1), range(4)], lambda _: 2))
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1, 2)))  # y_bar, x, frequencies


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _primal_kernel(x: Tensor, frequencies: Tensor) -> Tensor:
    """One launch: y."""
    from ..triton_kernels.sinusoids import sinusoids_push

    operands = batched((x, frequencies), 2)
    (row, f), (m, layout) = operands.tensors, _layout(frequencies)
    return operands.result(sinusoids_push(row, f, m, layout)[0])


def _jvp_kernel(primals: Any, tangents: Any) -> tuple[Tensor, Tensor | None]:
    """One launch: y once, and ẏ for every tangent."""
    from ..triton_kernels.sinusoids import sinusoids_push

    operands = batched((*primals, *tangents), 2)
    x, f, *dots = operands.tensors
    lead = torch.broadcast_shapes(*(t.shape[:-2] for t in primals))
    present: Any = None if dots[0] is dots[1] else tuple(dots)
    m, layout = _layout(f)
    y, y_dot = sinusoids_push(x, f, m, layout, present)
    shape = (*lead, *y.shape[1:])
    return operands.shared_result(y, shape), None if y_dot is None else operands.result(y_dot)


def _vjp_kernel(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch for φ̄, and a product of matrices for each cotangent."""
    from ..triton_kernels.sinusoids import sinusoids_pull

    operands = batched((cotangents.y, *inputs), 2)
    y_bar, x, f = operands.tensors
    m, layout = _layout(f)
    phase_bar = operands.result(sinusoids_pull(y_bar, x, f, m, layout))
    return _pull_phase(phase_bar, wide(inputs.x, inputs.x), wide(inputs.frequencies, inputs.x), inputs, needs)


def _layout(frequencies: Tensor) -> Any:
    from ..triton_kernels.sinusoids import Layout

    m = frequencies.shape[-2]
    return m, Layout(2 * m, 0, m)


_DEVICES = triton_devices()
if _DEVICES:
    op.kernel(*_DEVICES)(_primal_kernel)
    op.jvp.kernel(*_DEVICES)(_jvp_kernel)
    op.vjp.kernel(*_DEVICES)(_vjp_kernel)


# ---- the public face -------------------------------------------------------------------------------------------------


def fourier_features(x: Tensor, frequencies: Tensor) -> Tensor:
    """Cosines, then sines, of 2π times linear maps of the input.

    With φ = 2π F x, one for each row f of F:

        y = [cos φ₁, ..., cos φ_m, sin φ₁, ..., sin φ_m]
        ẏ = [−sin φ ∘ φ̇, cos φ ∘ φ̇],    φ̇ = 2π (F ẋ + Ḟ x)
        φ̄ = cos φ ∘ s̄ − sin φ ∘ c̄  for ȳ = [c̄, s̄]:    x̄ = 2π Fᵀ φ̄,    F̄ = 2π Σ φ̄ xᵀ

    On a GPU the primal, the JVP (cosines and sines computed once for primal and tangents) and φ̄ are one kernel each;
    elsewhere, and at every other order, the formulas run. It computes in float32, in float64 for float64 x; of F x only
    the distance to the nearest integer is multiplied by 2π, so large frequencies lose no more than the product does.

    Args:
        x: Input, shape (..., d), or any shape if frequencies has one axis; float16, bfloat16, float32 or float64.
        frequencies: F, shape (m, d); or (m,), m features of every number of x. Any of those dtypes.

    Returns:
        y, shape (..., 2m), of x's dtype: cosines first.

    Raises:
        TypeError: If an argument is not a tensor of a dtype named above.
        ValueError: If shapes or devices do not agree.

    Source: Tancik et al. (2020), Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional
    Domains.
    """
    _check(x, frequencies)
    scalar = frequencies.dim() == 1
    lead = x.shape if scalar else x.shape[:-1]
    count = 1
    for size in lead:
        count *= size
    rows = x.reshape(count, 1 if scalar else x.shape[-1])
    f = frequencies.unsqueeze(-1) if scalar else frequencies
    # A call of the op leaves autocast, which would lower the product.
    y = op(rows, f) if _is_compiling() or _any_autocast() else op.call_flat((rows, f))[0]
    return y.reshape((*lead, 2 * f.shape[0]))


def _check(x: Any, frequencies: Any) -> None:
    """Refuse what has no Fourier features before anything is computed."""
    for name, tensor in (("x", x), ("frequencies", frequencies)):
        check_floating("fourier_features", name, tensor)
    if frequencies.device != x.device:
        raise ValueError(
            f"fourier_features: frequencies must be on x's device {x.device}, got {frequencies.device}; use "
            ".to(x.device)."
        )
    if frequencies.dim() not in (1, 2):
        raise ValueError(
            f"fourier_features: frequencies must have shape (m, d) or (m,), got {tuple(frequencies.shape)}."
        )
    if frequencies.dim() == 2 and (x.dim() < 1 or x.shape[-1] != frequencies.shape[1]):
        raise ValueError(
            f"fourier_features: x must have shape (..., {frequencies.shape[1]}) to match frequencies of shape "
            f"{tuple(frequencies.shape)}, got {tuple(x.shape)}."
        )
