"""Which functions of PyTorch have an op of ours, and how a call of one becomes a call of the other.

An adapter has the signature of PyTorch's function. It returns NotImplemented for what the op is not for: results that
are written somewhere (``out=``, ``inplace=True``), dtypes that have no derivative, sparse and nested tensors,
subclasses of Tensor that have their own way with functions, and arguments that PyTorch has deprecated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from .. import ops
from ..registration import _torch_private as private

Adapter = Callable[..., Any]  # returns NotImplemented where PyTorch's function is to run

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_Tensor, _Parameter = torch.Tensor, torch.nn.Parameter


def _is_ours(x: Any, *others: Any) -> bool:
    """Return whether an op takes x, a floating tensor, and others, tensors of any dtype or None."""
    return _is_plain(x) and x.dtype in _DTYPES and all(other is None or _is_plain(other) for other in others)


def _are_alike(x: Any, target: Any, *others: Any) -> bool:
    """Return whether a loss of two tensors takes these: PyTorch's broadcasts too, with a warning."""
    return _is_ours(x, target, *others) and target.dtype in _DTYPES and x.shape == target.shape


def _is_plain(x: Any) -> bool:
    kind = type(x)
    if not (
        kind is _Tensor
        or kind is _Parameter
        or (isinstance(x, Tensor) and kind.__torch_function__ is private.leaves_functions_alone)
    ):
        return False
    return x.layout is torch.strided and not x.is_nested


def _layer_norm(
    input: Tensor, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *others: Any
) -> Any:
    if len(others) > 1 or not _is_ours(input, weight, bias):  # one more says whether to use cuDNN
        return NotImplemented
    return ops.layer_norm(input, normalized_shape, weight, bias, eps)


def _rms_norm(input: Tensor, normalized_shape: Any, weight: Any = None, eps: float | None = None) -> Any:
    return ops.rms_norm(input, normalized_shape, weight, eps) if _is_ours(input, weight) else NotImplemented


def _group_norm(
    input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *others: Any
) -> Any:
    if len(others) > 1 or not _is_ours(input, weight, bias):
        return NotImplemented
    return ops.group_norm(input, num_groups, weight, bias, eps)


def _linear(input: Tensor, weight: Tensor, bias: Any = None) -> Any:
    return ops.linear(input, weight, bias) if _is_ours(input, weight, bias) else NotImplemented


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if not _is_ours(query, key, value, attn_mask):
        return NotImplemented
    return ops.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)


def _gelu(input: Tensor, *, approximate: str = "none", **others: Any) -> Any:
    return ops.gelu(input, approximate) if not others and _is_ours(input) else NotImplemented


def _softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0, **others: Any) -> Any:
    return ops.softplus(input, beta, threshold) if not others and _is_ours(input) else NotImplemented


def _glu(input: Tensor, dim: int = -1) -> Any:
    return ops.glu(input, dim) if _is_ours(input) else NotImplemented


def _f_softmax(op: Callable[..., Tensor]) -> Adapter:
    """An adapter of `F.softmax` or `F.log_softmax`.

    Args:
        op: The op.

    Returns:
        It.
    """

    def adapter(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
        return _softmax_by(op, input, dim, dtype)

    return adapter


def _softmax(op: Callable[..., Tensor]) -> Adapter:
    """An adapter of `torch.softmax` or `torch.log_softmax`, methods of tensors included.

    Args:
        op: The op.

    Returns:
        It.
    """

    def adapter(input: Tensor, dim: Any = None, dtype: Any = None, **others: Any) -> Any:
        return NotImplemented if others else _softmax_by(op, input, dim, dtype)

    return adapter


def _softmax_by(op: Callable[..., Tensor], input: Tensor, dim: Any, dtype: Any) -> Any:
    if type(dim) is not int or not _is_ours(input) or (dtype is not None and dtype not in _DTYPES):
        return NotImplemented
    return op(input, dim, dtype=dtype)


def _logsumexp(input: Tensor, dim: Any, keepdim: bool = False, **others: Any) -> Any:
    dims = (dim,) if type(dim) is int else dim
    if others or not _is_ours(input) or not all(type(d) is int for d in dims):
        return NotImplemented
    return ops.logsumexp(input, dim, keepdim)


def _pointwise(op: Callable[[Tensor], Tensor]) -> Adapter:
    """An adapter of a function of one tensor.

    Args:
        op: The op.

    Returns:
        It.
    """

    def adapter(input: Tensor, inplace: bool = False, **others: Any) -> Any:
        return op(input) if not inplace and not others and _is_ours(input) else NotImplemented

    return adapter


def _cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Any = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    if size_average is not None or reduce is not None or not _is_ours(input, target, weight):
        return NotImplemented
    return ops.cross_entropy(
        input, target, weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )


def _kl_div(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    log_target: bool = False,
) -> Any:
    if size_average is not None or reduce is not None or not _are_alike(input, target):
        return NotImplemented
    return ops.kl_div(input, target, reduction, log_target)


def _mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: Any = None,
    reduce: Any = None,
    reduction: str = "mean",
    weight: Any = None,
) -> Any:
    if size_average is not None or reduce is not None or not _are_alike(input, target, weight):
        return NotImplemented
    return ops.mse_loss(input, target, reduction, weight)


def _huber_loss(input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Any = None) -> Any:
    if not _are_alike(input, target, weight):
        return NotImplemented
    return ops.huber_loss(input, target, reduction, delta, weight)


# By the op: PyTorch's functions that it stands for, with what translates a call.
_ADAPTERS: dict[str, list[tuple[Callable[..., Any], Adapter]]] = {
    "layer_norm": [(F.layer_norm, _layer_norm), (torch.layer_norm, _layer_norm)],
    "rms_norm": [(F.rms_norm, _rms_norm), (torch.rms_norm, _rms_norm)],
    "group_norm": [(F.group_norm, _group_norm), (torch.group_norm, _group_norm)],
    "linear": [(F.linear, _linear)],
    "scaled_dot_product_attention": [(F.scaled_dot_product_attention, _attention)],
    "gelu": [(F.gelu, _gelu)],
    "silu": [(F.silu, _pointwise(ops.silu))],
    "mish": [(F.mish, _pointwise(ops.mish))],
    "softplus": [(F.softplus, _softplus)],
    "relu": [(f, _pointwise(ops.relu)) for f in (F.relu, torch.relu, Tensor.relu)],
    "sigmoid": [(f, _pointwise(ops.sigmoid)) for f in (F.sigmoid, torch.sigmoid, Tensor.sigmoid)],
    "tanh": [(f, _pointwise(ops.tanh)) for f in (F.tanh, torch.tanh, Tensor.tanh)],
    "sin": [(f, _pointwise(ops.sin)) for f in (torch.sin, Tensor.sin)],
    "glu": [(F.glu, _glu)],
    "softmax": [
        (F.softmax, _f_softmax(ops.softmax)),
        *((f, _softmax(ops.softmax)) for f in (torch.softmax, Tensor.softmax, torch.special.softmax)),
    ],
    "log_softmax": [
        (F.log_softmax, _f_softmax(ops.log_softmax)),
        *((f, _softmax(ops.log_softmax)) for f in (torch.log_softmax, Tensor.log_softmax, torch.special.log_softmax)),
    ],
    "logsumexp": [(f, _logsumexp) for f in (torch.logsumexp, Tensor.logsumexp, torch.special.logsumexp)],
    "cross_entropy": [(F.cross_entropy, _cross_entropy)],
    "kl_div": [(F.kl_div, _kl_div)],
    "mse_loss": [(F.mse_loss, _mse_loss)],
    "huber_loss": [(F.huber_loss, _huber_loss)],
}
OPS = tuple(_ADAPTERS)  # that stand for a function of PyTorch


def adapters(caller: str, only: Collection[str] | None) -> Mapping[Callable[..., Any], Adapter]:
    """What PyTorch's functions are called as.

    Args:
        caller: The function to name in an error.
        only: The ops that take part; None for all.

    Returns:
        An adapter for each function of PyTorch that has one.

    Raises:
        TypeError: If only is a text, or no collection.
        ValueError: If it names what is no such op.
    """
    return {function: adapter for name in chosen(caller, only) for function, adapter in _ADAPTERS[name]}


def chosen(caller: str, only: Collection[str] | None) -> Collection[str]:
    """The ops that take part.

    Args:
        caller: The function to name in an error.
        only: Their names; None for all.

    Returns:
        The names.

    Raises:
        TypeError: If only is a text, or no collection.
        ValueError: If it names what is no such op.
    """
    if only is None:
        return OPS
    if isinstance(only, str) or not isinstance(only, Collection):
        raise TypeError(f"{caller}: only must be a list of names of ops, got {only!r}; write [{only!r}] for one.")
    unknown = [name for name in only if name not in OPS]
    if unknown:
        raise ValueError(f"{caller}: only must name ops among {', '.join(OPS)}, got {unknown[0]!r}.")
    return only


def _reopened(function: FunctionType) -> Callable[..., Any]:
    """A function of torch.nn.functional that does not ask any mode about itself, so that one can see what it calls.

    Args:
        function: The function.

    Returns:
        The same code, to which nothing overrides functions.
    """
    never = dict.fromkeys(_ASKS, lambda *_: False)
    same = FunctionType(function.__code__, {**function.__globals__, **never}, function.__name__, function.__defaults__)
    same.__kwdefaults__ = function.__kwdefaults__
    return same


_ASKS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
# Functions of PyTorch that call those above; they are run as they stand, under the mode.
COMPOSED: dict[Callable[..., Any], Callable[..., Any]] = {
    function: _reopened(function) for function in (F.multi_head_attention_forward, F.gumbel_softmax, F.softmin)
}
