"""Group norm on the CPU: PyTorch's own primal and pullback, where they apply."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from ...registration._torch_private import saved_by
from .._devices import triton_devices
from .._native import recorded
from .._watched import watched
from .rules import op


def _primal(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    num_groups: int,
    ndim: int,
    channels_last: bool,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, m, r by PyTorch; by the formula where it has none: batched weights, other dtypes, half precision."""
    if not _native(x, weight, bias, ndim):
        return op.formula(x, weight, bias, num_groups, ndim, channels_last, eps, silu)
    rows = _rows(x, channels_last)
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    n, c = rows.shape[:2]
    y, mean, rstd = torch.native_group_norm(rows, weight, bias, n, c, prod(rows.shape[2:]), num_groups, eps)
    if silu:
        y = torch.ops.aten.silu_(y)
    shape = (n, num_groups, *(1,) * (ndim - 2))
    return y.movedim(1, -1) if channels_last else y, mean.view(shape), rstd.view(shape)


def _vjp(
    cotangents: Any, inputs: Any, *, needs: tuple[bool, ...], residuals: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """x̄, w̄, b̄ by PyTorch, from the saved moments; with SiLU, z is computed again."""
    x, weight, bias, num_groups, ndim, channels_last, eps, silu = inputs
    y_bar = cotangents.y
    shifted_only = weight is None and bias is not None and needs[2]  # "tensor does not have a device", PyTorch says
    if shifted_only or not _native(x, weight, bias, ndim) or y_bar.shape != x.shape:
        return op.vjp.op.formula(cotangents, inputs, needs=needs)
    rows, bars = _rows(x, channels_last), _rows(y_bar, channels_last)
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    n, c = rows.shape[:2]
    sites = prod(rows.shape[2:])
    if silu:
        z = torch.native_group_norm(rows, weight, bias, n, c, sites, num_groups, eps)[0]
        bars = torch.ops.aten.silu_backward(bars, z)
    mean, rstd = (m.reshape(n, num_groups) for m in residuals)
    wanted = [needs[0] or _writes_all(rows), needs[1] and weight is not None, needs[2] and bias is not None]
    x_bar, w_bar, b_bar = torch.ops.aten.native_group_norm_backward(
        bars, rows, mean, rstd, weight, n, c, sites, num_groups, wanted
    )
    if channels_last and x_bar is not None:
        x_bar = x_bar.movedim(1, -1)
    return x_bar if needs[0] else None, w_bar if wanted[1] else None, b_bar if wanted[2] else None


def _pull(y_bar: Tensor, args: Any, kept: Any, needs: Any) -> tuple[Tensor | None, ...]:
    inputs = op.signature.inputs_type(*args)
    return _vjp(op.signature.cotangents_type(y_bar), inputs, needs=tuple(needs[:3]), residuals=kept)


recorded_group_norm = recorded(op, _primal, _pull)


def _of_node(node: Any, num_groups: int, eps: float) -> tuple[Any, ...]:
    """The arguments of the op without activation, whose pullback does not look at the numbers of b, and m and r."""
    x, weight, mean, rstd = saved_by(node, "input", "weight", "result1", "result2")
    bias = None if node.next_functions[2][0] is None else x.new_zeros(x.shape[1])
    shape = (x.shape[0], num_groups, *(1,) * (x.dim() - 2))
    residuals = (m.detach().view(shape) for m in (mean, rstd))
    return x, weight, bias, num_groups, x.dim(), False, eps, False, *residuals


watched_group_norm = watched(op, _of_node)


def has_safe_node(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether PyTorch's own node pulls back whichever cotangents are asked for.

    Args:
        x: (N, C, *spatial).
        weight: w or None.
        bias: b or None.

    Returns:
        False where it raises, having a bias alone, or may write x̄ where nobody has asked for it.
    """
    return (weight is not None or bias is None) and x.is_contiguous() and not _writes_all(x)


def _native(x: Tensor, weight: Tensor | None, bias: Tensor | None, ndim: int) -> bool:
    """Whether PyTorch's kernels apply: one dtype, no batch axes, something to normalise."""
    plain = x.dtype in (torch.float32, torch.float64) and x.dim() == ndim and x.numel() > 0
    return plain and all(t is None or (t.dim() == 1 and t.dtype == x.dtype) for t in (weight, bias))


def _writes_all(rows: Tensor) -> bool:
    """Whether PyTorch's pullback writes x̄ even if nobody wants it: so it does, into no memory, for channels last."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(rows.dim())
    return layout is not None and rows.is_contiguous(memory_format=layout)


def _rows(x: Tensor, channels_last: bool) -> Tensor:
    """(N, C, *spatial) in the layout in which it lies."""
    return x.contiguous().movedim(-1, 1) if channels_last else x.contiguous()


if "cpu" not in triton_devices():  # in the interpreter, CPU tensors take the Triton kernels
    op.kernel("cpu")(_primal)
    op.vjp.kernel("cpu")(_vjp)
