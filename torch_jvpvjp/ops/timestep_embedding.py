"""The sinusoidal embedding of timesteps that diffusion models use."""

from math import log
from typing import Any

import torch
from torch import Tensor

from ..registration import differentiable_op, expanding_rule
from ._arguments import check_tensor
from ._arithmetic import FLOATS, cotangents_like, wide
from ._batched import batched, leading_rule
from ._devices import triton_devices
from ._native import RECORDED, WIDE, recorded, standing

__all__ = ["op", "timestep_embedding"]

_is_compiling = torch.compiler.is_dynamo_compiling


# ---- the reference and its rules -------------------------------------------------------------------------------------


@differentiable_op("torch_jvpvjp::timestep_embedding", composite=True)
def op(t: Tensor, dim: int, decay: float, scale: float, cosines_first: bool) -> Tensor:
    """The reference: sin φ and cos φ of φ_j = t f_j scale with f_j = exp(decay j).

    Args:
        t: Shape (M, 1), or with axes in front, where vmap puts a batch.
        dim: Width of the result.
        decay: Logarithm of the ratio of neighbouring frequencies.
        scale: Factor of the phases.
        cosines_first: Which half comes first.

    Returns:
        y, shape (M, dim), of t's dtype; the last column is zero if dim is odd.
    """
    phase = _slopes(wide(t, t), dim, decay, scale)
    return _joined(torch.cos(phase), torch.sin(phase), dim, cosines_first).to(t.dtype)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """φ̇_j = ṫ f_j scale;  d sin φ = cos φ φ̇,  d cos φ = −sin φ φ̇."""
    t, dim, decay, scale, first = primals
    phase = _slopes(wide(t, t), dim, decay, scale)
    phase_dot = _slopes(wide(tangents.t, t), dim, decay, scale)
    c, s = torch.cos(phase), torch.sin(phase)
    y_dot = _joined(-s * phase_dot, c * phase_dot, dim, first)
    return _joined(c, s, dim, first).to(t.dtype), y_dot.to(t.dtype)


@op.vjp
def _vjp(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    """t̄ = Σ_j f_j scale (cos φ_j s̄_j − sin φ_j c̄_j)."""
    t, dim, decay, scale, first = inputs
    phase = _slopes(wide(t, t), dim, decay, scale)
    y_bar = wide(cotangents.y, t)
    half = dim // 2
    one, other = y_bar[..., :half], y_bar[..., half : 2 * half]
    c_bar, s_bar = (one, other) if first else (other, one)
    slopes = _slopes(torch.ones_like(phase[..., :1]), dim, decay, scale)
    t_bar = (slopes * (torch.cos(phase) * s_bar - torch.sin(phase) * c_bar)).sum(-1, keepdim=True)
    return cotangents_like((t_bar,), (t,))


def _slopes(t: Tensor, dim: int, decay: float, scale: float) -> Tensor:
    """t f_j scale; the frequencies are computed in float64 and rounded once."""
    return t * _ladder(t, dim, decay) * scale


def _ladder(t: Tensor, dim: int, decay: float) -> Tensor:
    return torch.exp(decay * torch.arange(dim // 2, dtype=torch.float64, device=t.device)).to(t.dtype)


def _joined(c: Tensor, s: Tensor, dim: int, cosines_first: bool) -> Tensor:
    halves = (c, s) if cosines_first else (s, c)
    return torch.cat((*halves, torch.zeros_like(c[..., :1])) if dim % 2 else halves, -1)


op.vmap(leading_rule(op, [(0,)], lambda _: 2))
op.jvp.vmap(leading_rule(op.jvp.op, [(0,), (0, 5)], lambda _: 2))  # t, dim, decay, scale, cosines_first, t_dot
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1,)))  # y_bar, t, ...


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _primal_kernel(t: Tensor, dim: int, decay: float, scale: float, cosines_first: bool) -> Tensor:
    """One launch: y."""
    from ..triton_kernels.sinusoids import sinusoids_push

    operands = batched((t,), 2)
    half, layout = _layout(dim, decay, scale, cosines_first)
    return operands.result(sinusoids_push(operands.tensors[0], None, half, layout)[0])


def _jvp_kernel(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """One launch: y once, and ẏ for every tangent."""
    from ..triton_kernels.sinusoids import sinusoids_push

    operands = batched((primals.t, tangents.t), 2)
    t, t_dot = operands.tensors
    half, layout = _layout(*primals[1:])
    y, y_dot = sinusoids_push(t, None, half, layout, (t_dot, None))
    assert y_dot is not None
    return operands.shared_result(y, (*primals.t.shape[:-1], y.shape[-1])), operands.result(y_dot)


def _vjp_kernel(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    """One launch: t̄."""
    from ..triton_kernels.sinusoids import sinusoids_pull

    operands = batched((cotangents.y, inputs.t), 2)
    y_bar, t = operands.tensors
    half, layout = _layout(*inputs[1:])
    return (operands.result(sinusoids_pull(y_bar, t, None, half, layout), inputs.t),)


def _layout(dim: int, decay: float, scale: float, cosines_first: bool) -> Any:
    from ..triton_kernels.sinusoids import Layout

    half = dim // 2
    return half, Layout(dim, 0 if cosines_first else half, half if cosines_first else 0, decay, scale)


def _forward_cpu(t: Tensor, dim: int, decay: float, scale: float, cosines_first: bool) -> tuple[Tensor, ...]:
    """y, and what backward wants: sines and cosines take most of the time, and PyTorch keeps them too."""
    ladder = _ladder(t, dim, decay)
    phase = (t * ladder).mul_(scale)
    c, s = torch.cos(phase), phase.sin_()
    return _joined(c, s, dim, cosines_first), c, s, ladder


def _backward_cpu(y_bar: Tensor, args: Any, kept: Any, _: Any) -> tuple[Tensor]:
    """t̄, by what was kept."""
    (_, dim, _, scale, first), (c, s, ladder) = args, kept
    half = dim // 2
    one, other = y_bar[:, :half], y_bar[:, half : 2 * half]
    c_bar, s_bar = (one, other) if first else (other, one)
    return (torch.mv((c * s_bar).addcmul_(s, c_bar, value=-1), ladder).mul_(scale).unsqueeze(-1),)


_recorded = recorded(op, _forward_cpu, _backward_cpu)

_DEVICES = triton_devices()
if _DEVICES:
    op.kernel(*_DEVICES)(_primal_kernel)
    op.jvp.kernel(*_DEVICES)(_jvp_kernel)
    op.vjp.kernel(*_DEVICES)(_vjp_kernel)


# ---- the public face -------------------------------------------------------------------------------------------------


def timestep_embedding(
    timesteps: Tensor,
    dim: int,
    *,
    max_period: float = 10000.0,
    flip_sin_to_cos: bool = False,
    downscale_freq_shift: float = 0,
    scale: float = 1.0,
) -> Tensor:
    """Sines and cosines of a time at geometrically spaced frequencies; arguments as in Hugging Face diffusers.

    With h = ⌊dim / 2⌋, j = 0, ..., h − 1 and φ_j = t f_j scale:

        f_j = max_period^(−j / (h − downscale_freq_shift)),    y = [sin φ, cos φ], or [cos φ, sin φ] if flip_sin_to_cos
        d sin φ_j = cos φ_j f_j scale ṫ,    d cos φ_j = −sin φ_j f_j scale ṫ
        t̄ = Σ_j f_j scale (cos φ_j s̄_j − sin φ_j c̄_j)

    and a last column of zeros if dim is odd. On a GPU the primal, the JVP (sines and cosines computed once for primal
    and tangents) and the VJP are one kernel each; elsewhere, and at every other order, the formulas run. Phases are
    computed in float32, in float64 for float64 timesteps; the frequencies in float64, then rounded.

    Args:
        timesteps: t, any shape; float16, bfloat16, float32, float64, or integers, which are taken as float32.
        dim: Width of the embedding; at least 2.
        max_period: Sets the smallest frequency; positive.
        flip_sin_to_cos: Whether cosines come first.
        downscale_freq_shift: With 1 the smallest frequency is 1 / max_period, with 0 it is above; less than dim // 2.
        scale: Factor of the phases.

    Returns:
        y, shape (*timesteps.shape, dim), of timesteps' dtype, float32 for integers.

    Raises:
        TypeError: If an argument is not of its type, or timesteps not of a dtype named above.
        ValueError: If dim < 2, max_period <= 0, or downscale_freq_shift >= dim // 2.

    Source: Ho, Jain and Abbeel (2020), Denoising Diffusion Probabilistic Models, after Vaswani et al. (2017).
    """
    _check(timesteps, dim, max_period, downscale_freq_shift, scale)
    t = timesteps if timesteps.is_floating_point() else timesteps.to(torch.float32)
    decay = -log(max_period) / (dim // 2 - downscale_freq_shift)
    args = (t.reshape(t.numel(), 1), dim, decay, float(scale), bool(flip_sin_to_cos))
    if t.dtype in WIDE and standing(t) == RECORDED:
        y = _recorded(*args)
    else:
        y = op(*args) if _is_compiling() else op.call_flat(args)[0]
    return y.reshape((*t.shape, dim))


def _check(t: Any, dim: Any, max_period: Any, shift: Any, scale: Any) -> None:
    """Refuse what is no embedding of timesteps before anything is computed."""
    check_tensor("timestep_embedding", "timesteps", t)
    other = t.dtype == torch.bool or t.is_floating_point() or t.is_complex() or t.is_quantized
    if t.dtype not in FLOATS and other:
        raise TypeError(
            f"timestep_embedding: timesteps must be float16, bfloat16, float32, float64 or integers, got {t.dtype}; "
            "use .to()."
        )
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"timestep_embedding: dim must be an int, got {type(dim).__name__}.")
    if dim < 2:
        raise ValueError(f"timestep_embedding: dim must be at least 2, got {dim}.")
    for name, number in (("max_period", max_period), ("downscale_freq_shift", shift), ("scale", scale)):
        if isinstance(number, bool) or not isinstance(number, float | int):
            raise TypeError(f"timestep_embedding: {name} must be a number, got {type(number).__name__}.")
    if not max_period > 0:
        raise ValueError(f"timestep_embedding: max_period must be positive, got {max_period}.")
    if not shift < dim // 2:
        raise ValueError(
            f"timestep_embedding: downscale_freq_shift must be less than dim // 2 = {dim // 2}, got {shift}."
        )
