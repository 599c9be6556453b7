"""Dynamic tanh, a pointwise stand-in for normalisation layers."""

from typing import Any

import torch
from torch import Tensor

from ..registration import broadcasting_rule, differentiable_op, expanding_rule
from ._arguments import check_floating
from ._arithmetic import cotangents_like, times, total, wide
from ._batched import batched
from ._devices import triton_devices
from ._native import standing

__all__ = ["dyt", "op"]

_is_compiling = torch.compiler.is_dynamo_compiling


# ---- the reference and its rules -------------------------------------------------------------------------------------


@differentiable_op("torch_jvpvjp::dyt", composite=True)
def op(x: Tensor, alpha: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """The reference: y = tanh(α x) ∘ w + b.

    Args:
        x: Shape (m, n), or with axes in front, where vmap puts a batch; all broadcast from the right.
        alpha: α, shape (), or with axes in front, where vmap puts a batch.
        weight: w, shape (n,), likewise; or None for ones.
        bias: b, shape (n,), likewise; or None for zeros.

    Returns:
        y, of x's dtype and the broadcast shape.
    """
    up, a, w, b = (wide(t, x) for t in (x, alpha, weight, bias))
    return _affine(torch.tanh(a * up), w, b).to(x.dtype)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """ẏ = t′ (α̇ x + α ẋ) ∘ w + t ∘ ẇ + ḃ  with t = tanh(α x)."""
    x, a, w, b = (wide(t, primals.x) for t in primals)
    x_dot, a_dot, w_dot, b_dot = (wide(t, primals.x) for t in tangents)
    t = torch.tanh(a * x)
    moved = total(times(a_dot, x), times(a, x_dot))
    moved = None if moved is None else moved * (1 - t * t)
    y = _affine(t, w, b)
    y_dot = total(moved if w is None else times(moved, w), times(t, w_dot), b_dot)
    y_dot = torch.zeros_like(y) if y_dot is None else y_dot.expand(torch.broadcast_shapes(y.shape, y_dot.shape))
    return y.to(primals.x.dtype), y_dot.to(primals.x.dtype)


@op.vjp
def _vjp(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """With g = w ∘ ȳ ∘ t′:  x̄ = α g,  ᾱ = Σ x g,  w̄ = Σ t ∘ ȳ,  b̄ = Σ ȳ."""
    x, a, w, _ = (wide(t, inputs.x) for t in inputs)
    y_bar = wide(cotangents.y, inputs.x)
    t = torch.tanh(a * x)
    g = (y_bar if w is None else w * y_bar) * (1 - t * t) if needs[0] or needs[1] else None
    return cotangents_like(
        (
            a * g if needs[0] and g is not None else None,
            x * g if needs[1] and g is not None else None,
            t * y_bar if needs[2] else None,
            y_bar if needs[3] else None,
        ),
        inputs,
    )


def _affine(t: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
    y = t if w is None else t * w
    return y if b is None else y + b


op.vmap(broadcasting_rule(op, results_of=[range(4)]))
op.jvp.vmap(broadcasting_rule(op.jvp.op, results_of=[range(4), range(8)]))
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1, 2, 3, 4)))  # y_bar, x, alpha, weight, bias


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _primal_kernel(x: Tensor, alpha: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """One launch: y."""
    from ..triton_kernels.dyt import dyt_push

    operands = batched((x, alpha, weight, bias), 2)
    row, a, w, b = _flat(operands.tensors)
    return operands.result(dyt_push(row, a, w, b)[0])


def _jvp_kernel(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """One launch: y once, and ẏ for every tangent."""
    from ..triton_kernels.dyt import dyt_push

    operands = batched((*primals, *tangents), 2)
    x, alpha, w, b, *dots = operands.tensors
    row, a, w, b = _flat([x, alpha, w, b])
    y, y_dot = dyt_push(row, a, w, b, _flat(dots))
    assert y_dot is not None
    shape = torch.broadcast_shapes(*(t.shape for t in primals if t is not None))
    return operands.shared_result(y, shape), operands.result(y_dot)


def _vjp_kernel(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """One launch for x̄ and partial sums of the others, and one for each of those to add them up in a fixed order."""
    from ..triton_kernels.dyt import dyt_vjp

    operands = batched((*inputs, cotangents.y), 2)
    *primals, y_bar = operands.tensors
    wanted: Any = needs
    row, a, w, b = _flat(primals)
    x_bar, *sums = dyt_vjp(y_bar, row, a, w, b, wanted)
    return (
        None if x_bar is None else operands.result(x_bar, inputs.x),
        *(
            None if s is None else operands.result(s.reshape(s.shape[0], 1, s.shape[1:].numel()), like)
            for s, like in zip(sums, inputs[1:], strict=True)
        ),
    )


def _flat(operands: Any) -> Any:
    """x (K, M, N), α (K, 1, 1), w and b (K, 1, N) as launchers take them: α (K,), w and b (K, N)."""
    x, alpha, w, b = operands
    return x, None if alpha is None else alpha[:, 0, 0], *(None if t is None else t[:, 0] for t in (w, b))


def _vjp_cpu(cotangents: Any, inputs: Any, *, needs: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    """The formula with two buffers instead of one for each of its steps."""
    x, alpha, w, b = inputs
    y_bar = cotangents.y
    plain = x.dtype in (torch.float32, torch.float64) and x.shape == y_bar.shape and x.dim() == 2 and alpha.dim() == 0
    if not plain or any(t is not None and (t.dtype != x.dtype or t.dim() > 1) for t in (alpha, w, b)):
        return op.vjp.op.formula(cotangents, inputs, needs=needs)
    t = (x * alpha).tanh_()
    buffer = t * y_bar
    w_bar = buffer.sum(0) if needs[2] and w is not None else None
    b_bar = y_bar.sum(0) if needs[3] and b is not None else None
    if not needs[0] and not needs[1]:
        return None, None, w_bar, b_bar
    buffer.mul_(t).neg_().add_(y_bar)  # t′ ȳ = ȳ − t² ȳ
    if w is not None:
        buffer.mul_(w)
    alpha_bar = torch.mul(buffer, x, out=t).sum() if needs[1] else None
    return buffer.mul_(alpha) if needs[0] else None, alpha_bar, w_bar, b_bar


_DEVICES = triton_devices()
if _DEVICES:
    op.kernel(*_DEVICES)(_primal_kernel)
    op.jvp.kernel(*_DEVICES)(_jvp_kernel)
    op.vjp.kernel(*_DEVICES)(_vjp_kernel)
if "cpu" not in _DEVICES:  # in the interpreter, CPU tensors take the Triton kernels
    op.vjp.kernel("cpu")(_vjp_cpu)


# ---- the public face -------------------------------------------------------------------------------------------------


def dyt(x: Tensor, alpha: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Dynamic tanh, a pointwise layer in the place of a normalisation.

    With t = tanh(α x), t′ = 1 − t² and g = w ∘ ȳ ∘ t′:

        y = t ∘ w + b,    ẏ = t′ (α̇ x + α ẋ) ∘ w + t ∘ ẇ + ḃ
        x̄ = α g,    ᾱ = Σ x g,    w̄ = Σ t ∘ ȳ,    b̄ = Σ ȳ

    the sums in a fixed order. On a GPU the primal, the JVP (primal and tangents in one launch) and the VJP are one
    kernel each; elsewhere, and at every other order, the formulas run. It computes in float32, in float64 for float64
    x.

    Args:
        x: Input, shape (..., C); float16, bfloat16, float32 or float64.
        alpha: α, one number: shape () or (1,); any of those dtypes.
        weight: Gain w, shape (C,); any of those dtypes. Absent means ones.
        bias: Shift b, shape (C,); any of those dtypes. Absent means zeros.

    Returns:
        y, of the shape and dtype of x.

    Raises:
        TypeError: If an argument is not a tensor of a dtype named above.
        ValueError: If shapes or devices do not agree.

    Source: Zhu, Chen, He, LeCun and Liu (2025), Transformers without Normalization.
    """
    _check(x, alpha, weight, bias)
    if standing(x, alpha, weight, bias):
        y = torch.tanh(x * alpha)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias
    rows = x if x.dim() == 2 else x.flatten(0, -2) if x.dim() > 2 else x.unsqueeze(0)
    args = (rows, alpha.reshape(()), weight, bias)
    y = op(*args) if _is_compiling() else op.call_flat(args)[0]
    return y.reshape(x.shape)


def _check(x: Any, alpha: Any, weight: Any, bias: Any) -> None:
    """Refuse what is not a dynamic tanh before anything is computed."""
    affine = [(name, tensor) for name, tensor in (("weight", weight), ("bias", bias)) if tensor is not None]
    for name, tensor in (("x", x), ("alpha", alpha), *affine):
        check_floating("dyt", name, tensor, optional=name in ("weight", "bias"))
        if tensor.device != x.device:
            raise ValueError(f"dyt: {name} must be on x's device {x.device}, got {tensor.device}; use .to(x.device).")
    if x.dim() < 1:
        raise ValueError("dyt: x must have shape (..., C), got ().")
    if tuple(alpha.shape) not in ((), (1,)):
        raise ValueError(f"dyt: alpha must be one number, of shape () or (1,), got {tuple(alpha.shape)}.")
    for name, tensor in affine:
        if tensor.shape != x.shape[-1:]:
            raise ValueError(
                f"dyt: {name} must have shape {tuple(x.shape[-1:])} to match x's shape {tuple(x.shape)}, got "
                f"{tuple(tensor.shape)}."
            )
