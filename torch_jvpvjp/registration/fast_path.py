"""When nothing but plain eager PyTorch is going on, so that an op may skip the dispatcher.

A Python kernel behind the dispatcher costs tens of microseconds; these checks cost about one.
"""

from typing import Any

import torch

from . import _torch_private as private

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_plain_eager() -> bool:
    """Whether no transform, dual level, mode, autocast region or tracing is active.

    Returns:
        True if a call may go straight to its kernel or autograd node.
    """
    return (
        private.peek_interpreter_stack() is None
        and private.forward_ad._current_level < 0  # valid outside tracing, which the modes below exclude
        and not private.len_torch_dispatch_stack()
        and not private.len_torch_function_stack()
        and not private.is_any_autocast_enabled()
    )


def is_plain(value: Any) -> bool:
    """Whether a value is a tensor with data of its own: no subclass, no wrapper of a transform.

    Args:
        value: What came as a tensor argument.

    Returns:
        True if a kernel may read it directly.
    """
    return type(value) in _PLAIN and not private.is_functorch_wrapped_tensor(value)
