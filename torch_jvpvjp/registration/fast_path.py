"""The shortest way that is right: past the dispatcher where nothing but plain eager PyTorch is going on.

A Python kernel behind the dispatcher costs tens of microseconds; these checks cost about one, so they are written out.
"""

from typing import Any

import torch
from torch import Tensor

from . import _torch_private as private

# How a call is carried out. Plain integers: looking up a member of an Enum takes as long as one of the checks.
COMPUTE, RECORD, PUSH, DISPATCH = range(4)

_Tensor, _Parameter = Tensor, torch.nn.Parameter
_interpreter, _wrapped = private.peek_interpreter_stack, private.is_functorch_wrapped_tensor
_dispatch_modes, _function_modes = private.len_torch_dispatch_stack, private.len_torch_function_stack
_is_zero_tensor, _is_legacy_batched = private.is_zero_tensor, private.is_legacy_batched
_tracing, _grad_enabled = private.get_tracing_state, torch.is_grad_enabled
_forward_ad, _JVP = private.forward_ad, private.TransformType.Jvp
_any_autocast = private.is_any_autocast_enabled


def choose_way(args: tuple[Any, ...], tensors: tuple[int, ...], frozen: tuple[int, ...]) -> int:
    """The way for these arguments, here and now.

    Args:
        args: One value per argument.
        tensors: Positions of the tensors among them.
        frozen: Positions of those that carry no derivative.

    Returns:
        ``DISPATCH`` if a mode or tracing is active, a tensor is a subclass, a wrapper or lazy, or derivatives nest;
        ``PUSH`` if one forward-mode level is open, which may be all, and no autocast; else ``RECORD`` if a gradient may
        be asked for, else ``COMPUTE``.
    """
    if _dispatch_modes() or _function_modes() or _tracing() is not None:
        return DISPATCH
    top = _interpreter()
    if top is not None:
        return PUSH if top.level() == 1 and top.key() == _JVP and not _any_autocast() else DISPATCH
    if _forward_ad._current_level >= 0:  # valid outside tracing, which the modes exclude
        return DISPATCH if _any_autocast() else PUSH
    requires_grad = False
    for i in tensors:
        value = args[i]
        if value is not None:
            kind = type(value)
            if kind is not _Tensor and kind is not _Parameter:
                return DISPATCH
            if _wrapped(value) or value.is_neg() or _is_zero_tensor(value):  # the latter two are `private.is_lazy`
                return DISPATCH
            if value.requires_grad:
                requires_grad = True
    if not requires_grad or not _grad_enabled():
        return COMPUTE
    for i in frozen:
        if args[i] is not None and args[i].requires_grad:
            return DISPATCH  # which explains what is wrong
    return RECORD


def is_plain_backward(cotangent: Tensor) -> bool:
    """Whether, where no compiler is active, a backward is not differentiated in turn, nor watched by a mode.

    Args:
        cotangent: What it is about to pull back.

    Returns:
        True if numbers are all that is asked for.
    """
    return (
        type(cotangent) is _Tensor
        and not _grad_enabled()
        and _interpreter() is None
        and _forward_ad._current_level < 0
        and not _dispatch_modes()
        and not _is_legacy_batched(cotangent)
    )


def is_untransformed() -> bool:
    """Whether no transform of ``torch.func`` and no dual level is active.

    Returns:
        True if backward is the only derivative that can follow.
    """
    return _interpreter() is None and _forward_ad._current_level < 0
