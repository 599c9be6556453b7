"""What l2_norm and pixel_norm share: vectors along an axis, divided by a length; the op, its rules and kernels."""

from typing import Any

import torch
from torch import Tensor

from ..registration import broadcasting_rule, differentiable_op, expanding_rule
from ..registration._torch_private import is_zero_tensor
from ._arguments import check_floating
from ._arithmetic import cotangents_like, wide
from ._axis_norm_second import Points, formula_of
from ._batched import batched
from ._devices import triton_devices
from ._native import VALUE, WIDE, standing

_is_compiling = torch.compiler.is_dynamo_compiling


@differentiable_op("torch_jvpvjp::axis_norm", composite=True)
def op(x: Tensor, eps: float, floored: bool) -> Tensor:
    """The reference: y = s x with s = 1 / max(‖x‖, ε), or (mean(x²) + ε)^(-1/2).

    Args:
        x: Shape (A, n, B), vectors along the middle axis; or with axes in front, where vmap puts a batch.
        eps: ε.
        floored: Which s.

    Returns:
        y, of x's shape and dtype.
    """
    up = wide(x, x)
    return (up * _scale(up, eps, floored)[0]).to(x.dtype)


@op.jvp
def _jvp(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """ẏ = J ẋ = s (ẋ − c ⟨y, ẋ⟩ y)."""
    x = wide(primals.x, primals.x)
    y, y_dot = _apply(x, wide(tangents.x, primals.x), primals.eps, primals.floored)
    return y.to(primals.x.dtype), y_dot.to(primals.x.dtype)


@op.vjp
def _vjp(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    """x̄ = J ȳ, J being symmetric."""
    x = wide(inputs.x, inputs.x)
    x_bar = _apply(x, wide(cotangents.y, inputs.x), inputs.eps, inputs.floored)[1]
    return cotangents_like((x_bar,), (inputs.x,))


def _scale(x: Tensor, eps: float, floored: bool) -> tuple[Tensor, Any]:
    """s and c: c is 1, or 0 where the length is below its floor; or 1/n."""
    squares = x.square().sum(-2, keepdim=True)
    if not floored:
        n = max(x.shape[-2], 1)
        return torch.rsqrt(squares / n + eps), 1.0 / n
    short = squares.sqrt() < eps
    root = torch.where(short, 1.0, squares).sqrt()  # its derivative at 0 is infinite
    return torch.where(short, 1.0 / eps if eps else 1.0, 1.0 / root), torch.where(short, 0.0, 1.0)


def _apply(x: Tensor, v: Tensor, eps: float, floored: bool) -> tuple[Tensor, Tensor]:
    """y, and J v = s (v − c ⟨y, v⟩ y)."""
    s, c = _scale(x, eps, floored)
    y = s * x
    return y, s * (v - c * (y * v).sum(-2, keepdim=True) * y)


points = Points(formula_of(_scale))
op.jvp.vjp(points.jvp_vjp)
op.vjp.jvp(points.vjp_jvp)
op.vjp.vjp(points.vjp_vjp)

op.vmap(broadcasting_rule(op, results_of=[(0,)]))
op.jvp.vmap(broadcasting_rule(op.jvp.op, results_of=[(0,), (0, 3)]))  # x, eps, floored, x_dot
op.vjp.vmap(expanding_rule(op.vjp.op, results_like=(1,)))  # y_bar, x, ...
op.jvp.vjp.vmap(expanding_rule(op.jvp.vjp.op, results_like=(2, 5)))  # y_bar, y_dot_bar, x, eps, floored, x_dot
op.vjp.jvp.vmap(expanding_rule(op.vjp.jvp.op, results_like=(1, 1)))
op.vjp.vjp.vmap(expanding_rule(op.vjp.vjp.op, results_like=(1, 2)))  # x_bar_bar, y_bar, x, ...


# ---- kernels ---------------------------------------------------------------------------------------------------------


def _primal_kernel(x: Tensor, eps: float, floored: bool) -> Tensor:
    """One launch: y."""
    from ..triton_kernels.axis_norm import axis_norm

    operands = batched((x,), 3)
    y, _ = axis_norm(operands.tensors[0], None, eps, floored, wants_y=True)
    assert y is not None
    return operands.result(y)


def _jvp_kernel(primals: Any, tangents: Any) -> tuple[Tensor, Tensor]:
    """One launch: y once, and ẏ for every tangent."""
    from ..triton_kernels.axis_norm import axis_norm

    operands = batched((primals.x, tangents.x), 3)
    x, x_dot = operands.tensors
    y, y_dot = axis_norm(x, x_dot, primals.eps, primals.floored, wants_y=True)
    assert y is not None and y_dot is not None
    return operands.shared_result(y, primals.x.shape), operands.result(y_dot)


def _vjp_kernel(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    """One launch: x̄ for every cotangent."""
    from ..triton_kernels.axis_norm import axis_norm

    operands = batched((inputs.x, cotangents.y), 3)
    x, y_bar = operands.tensors
    _, x_bar = axis_norm(x, y_bar, inputs.eps, inputs.floored, wants_y=False)
    assert x_bar is not None
    return (operands.result(x_bar, inputs.x),)


def _second_order(inputs: Any, t: Any, a: Any, b: Any, wants: tuple[bool, bool, bool]) -> Any:
    """One launch: J a, J b + S(a, t) and J t."""
    from ..triton_kernels.axis_norm_second_order import Bent, axis_norm_second_order

    operands = batched((inputs.x, t, a, b), 3)
    x, t, a, b = operands.tensors
    got = axis_norm_second_order(x, t, a, b, inputs.eps, inputs.floored, Bent(*wants))
    return tuple(None if result is None else operands.result(result) for result in got)


def _primal_cpu(x: Tensor, eps: float, floored: bool) -> Tensor:
    """y, where PyTorch computes in the dtype of x."""
    return _value_cpu(x, eps, floored, -2) if x.dtype in WIDE else op.formula(x, eps, floored)


def _value_cpu(x: Tensor, eps: float, floored: bool, dim: int) -> Tensor:
    """y in two passes: PyTorch's norm, and a product, in the memory of the squares where there are any."""
    if x.stride(dim) == 1:
        return x / _length_cpu(x, dim).clamp_min_(eps) if floored else x * _root_mean_square_cpu(x, eps, dim)
    y = x * x
    squares = y.sum(dim, True)
    if floored:
        return torch.div(x, squares.sqrt_().clamp_min_(eps), out=y)
    return torch.mul(x, squares.div_(max(x.shape[dim], 1)).add_(eps).rsqrt_(), out=y)


def _vjp_cpu(cotangents: Any, inputs: Any) -> tuple[Tensor | None, ...]:
    """x̄ = s (ȳ − c s² ⟨x, ȳ⟩ x), in place on what was just made."""
    x, y_bar = inputs.x, cotangents.y
    if x.dtype not in (torch.float32, torch.float64) or x.shape != y_bar.shape:
        return op.vjp.op.formula(cotangents, inputs)
    s, c = _scale_cpu(x, inputs.eps, inputs.floored)
    inner = (x * y_bar).sum(-2, keepdim=True).mul_(s).mul_(s).mul_(c)
    return (torch.addcmul(y_bar, x, inner, value=-1).mul_(s),)


def _scale_cpu(x: Tensor, eps: float, floored: bool) -> tuple[Tensor, Any]:
    if floored:
        root = _length_cpu(x, -2)
        return root.clamp_min(eps).reciprocal_(), (root < eps).logical_not_().to(x.dtype)
    return _root_mean_square_cpu(x, eps, -2), 1.0 / max(x.shape[-2], 1)


def _root_mean_square_cpu(x: Tensor, eps: float, dim: int) -> Tensor:
    """(mean(x²) + ε)^(-1/2)."""
    if x.stride(dim) != 1:
        return (x * x).mean(dim, keepdim=True).add_(eps).rsqrt_()
    return _length_cpu(x, dim).square_().div_(max(x.shape[dim], 1)).add_(eps).rsqrt_()


def _length_cpu(x: Tensor, dim: int) -> Tensor:
    """‖x‖, by PyTorch's norm along adjacent elements, along others by a sum of squares: there the norm is slow."""
    if x.stride(dim) == 1:
        return torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return (x * x).sum(dim, keepdim=True).sqrt_()


_DEVICES = triton_devices()
if _DEVICES:
    op.kernel(*_DEVICES)(_primal_kernel)
    op.jvp.kernel(*_DEVICES)(_jvp_kernel)
    op.vjp.kernel(*_DEVICES)(_vjp_kernel)
    kernels = Points(_second_order)
    op.jvp.vjp.kernel(*_DEVICES)(kernels.jvp_vjp)
    op.vjp.jvp.kernel(*_DEVICES)(kernels.vjp_jvp)
    op.vjp.vjp.kernel(*_DEVICES)(kernels.vjp_vjp)
if "cpu" not in _DEVICES:  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(_primal_cpu)
    op.vjp.kernel("cpu")(_vjp_cpu)


# ---- what both public functions do -----------------------------------------------------------------------------------


def along_axis(name: str, argument: str, x: Any, dim: Any, eps: Any, floored: bool) -> Tensor:
    """Check the arguments, bring the vectors to the middle of three axes without a copy if memory allows, and call op.

    Args:
        name: Of the public function, for its errors.
        argument: What it calls x.
        x: The input.
        dim: The axis of the vectors.
        eps: ε.
        floored: Which length.

    Returns:
        y, of x's shape and layout in memory.

    Raises:
        TypeError: If an argument is not of its type.
        ValueError: If there is no such axis, or eps < 0.
    """
    check_floating(name, argument, x)
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"{name}: dim must be an int, got {type(dim).__name__}.")
    rank = x.dim()
    if not -rank <= dim < rank:
        raise ValueError(
            f"{name}: dim must be an axis of {argument}'s shape {tuple(x.shape)}, from {-rank} to {rank - 1}, got "
            f"{dim}."
        )
    if isinstance(eps, bool) or not isinstance(eps, float | int):
        raise TypeError(f"{name}: eps must be a number, got {type(eps).__name__}.")
    if not eps >= 0:
        raise ValueError(f"{name}: eps must not be negative, got {eps}.")
    dim %= rank
    if standing(x) == VALUE and x.dtype in WIDE and x.is_contiguous() and not is_zero_tensor(x):
        return _value_cpu(x, float(eps), floored, dim)
    # Channels that come last in memory, as in torch.channels_last, are rows of a matrix.
    last = not x.is_contiguous() and x.movedim(dim, -1).is_contiguous()
    moved = x.movedim(dim, -1) if last else x
    rows = moved.flatten(0, -2).unsqueeze(-1) if last else _three_axes(x, dim)
    y = op(rows, float(eps), floored) if _is_compiling() else op.call_flat((rows, float(eps), floored))[0]
    return y.reshape(moved.shape).movedim(-1, dim) if last else y.reshape(x.shape)


def _three_axes(x: Tensor, dim: int) -> Tensor:
    front, back = 1, 1
    for size in x.shape[:dim]:
        front *= size
    for size in x.shape[dim + 1 :]:
        back *= size
    return x.reshape(front, x.shape[dim], back)
