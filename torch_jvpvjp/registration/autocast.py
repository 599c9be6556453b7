"""The Python kernels at the dispatcher's ``Autocast`` keys."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _torch_private as private

if TYPE_CHECKING:
    from .op import DifferentiableOp

AUTOCAST_DEVICES = ("cpu", "cuda", "xpu")


def register_autocast_kernel(op: "DifferentiableOp", library: torch.library.Library) -> None:
    """Register the op's autocast policy for every device that has autocast.

    Args:
        op: The op; its ``autocast_policy`` is set.
        library: The library in which it is defined.
    """
    for device in AUTOCAST_DEVICES:
        key = "Autocast" + private.dispatch_key_for_device(device)
        library.impl(op.__name__, _make_kernel(op, device, getattr(private.DispatchKey, key)), key)


def _make_kernel(op: "DifferentiableOp", device: str, key: Any) -> Callable[..., Any]:
    def autocast_kernel(*args: Any, **kwargs: Any) -> Any:
        args = op.signature.fill(args, kwargs)
        tensors = [args[i] for i in op.signature.tensors if _is_cast(args[i], device)]
        dtype = _target(op.autocast_policy, device, tensors)
        cast = [a.to(dtype) if isinstance(a, Tensor) and _is_cast(a, device) else a for a in args]
        with private.ExcludeKeys(private.DispatchKeySet(key)):
            return op.overload(*cast)

    return autocast_kernel


def _is_cast(value: Any, device: str) -> bool:
    """PyTorch's rule: floating point, on the device of the region, and not float64."""
    return (
        value is not None and value.is_floating_point() and value.dtype != torch.float64 and value.device.type == device
    )


def _target(policy: str | torch.dtype | None, device: str, tensors: list[Tensor]) -> torch.dtype | None:
    if policy == "lower":
        return torch.get_autocast_dtype(device)
    if policy == "promote":
        dtype = tensors[0].dtype if tensors else None
        for tensor in tensors[1:]:
            dtype = torch.promote_types(dtype, tensor.dtype)  # pyright: ignore[reportArgumentType]
        return dtype
    assert isinstance(policy, torch.dtype)
    return policy
