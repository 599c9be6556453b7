"""What ``torch.autocast`` does to an op: its arguments are cast as its policy says, and nothing inside it is.

A call from Python is cast before any transform sees it, since functorch restores the autocast state of its own entry
for every level below. The kernels at the dispatcher's ``Autocast`` keys serve callers of ``torch.ops``.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _torch_private as private
from .signature import Signature

if TYPE_CHECKING:
    from .op import DifferentiableOp

Policy = str | torch.dtype | None
AUTOCAST_DEVICES = ("cpu", "cuda", "xpu")


def register_autocast_kernels(op: "DifferentiableOp", library: torch.library.Library) -> None:
    """Register a kernel at the key of every device that has autocast.

    Args:
        op: The op; its ``autocast_policy`` is looked up when the kernel runs.
        library: The library in which it is defined.
    """
    for device in AUTOCAST_DEVICES:
        key = "Autocast" + private.dispatch_key_for_device(device)
        library.impl(op.__name__, _make_kernel(op, device, getattr(private.DispatchKey, key)), key)


def _make_kernel(op: "DifferentiableOp", device: str, key: Any) -> Callable[..., Any]:
    def autocast_kernel(*args: Any, **kwargs: Any) -> Any:
        cast = cast_by_policy(op.signature.fill(args, kwargs), op.signature, op.autocast_policy, device)
        with private.ExcludeKeys(private.DispatchKeySet(key)):
            return op.overload(*cast)

    return autocast_kernel


def is_autocast(device: str) -> bool:
    """Whether a region is open for a device type; PyTorch's own question raises for one that has none, such as "meta".

    Args:
        device: The device type.

    Returns:
        True if so.
    """
    return device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


def region_of(args: Sequence[Any], signature: Signature) -> str | None:
    """The device type whose autocast region the arguments are in.

    Args:
        args: One value per argument.
        signature: Of the op.

    Returns:
        The device type of the first tensor if autocast is enabled for it, else None.
    """
    for i in signature.tensors:
        value = args[i]
        if isinstance(value, Tensor):
            device = value.device.type
            return device if is_autocast(device) else None
    return None


def without_autocast(args: Sequence[Any], signature: Signature) -> Any:
    """A context in which nothing is autocast.

    Args:
        args: One value per argument; the first tensor's device is meant.
        signature: Of the op.

    Returns:
        The context manager.
    """
    device = next((args[i].device.type for i in signature.tensors if args[i] is not None), "cpu")
    return _Disabled(device)


class _Disabled:
    """``torch.autocast(device, enabled=False)`` for every device that has a region open."""

    def __init__(self, device: str) -> None:
        devices = [d for d in AUTOCAST_DEVICES if torch.is_autocast_enabled(d)] or [device]
        self._regions = [torch.autocast(d, enabled=False) for d in devices]

    def __enter__(self) -> None:
        for region in self._regions:
            region.__enter__()

    def __exit__(self, *raised: Any) -> None:
        for region in reversed(self._regions):
            region.__exit__(*raised)


def cast_by_policy(args: Sequence[Any], signature: Signature, policy: Policy, device: str) -> tuple[Any, ...]:
    """The arguments as the policy wants them.

    Args:
        args: One value per argument.
        signature: Of the op.
        policy: "lower", "promote", a dtype, or None for no cast.
        device: Device type of the autocast region; tensors elsewhere stay as they are.

    Returns:
        The arguments, floating-point tensors below float64 cast.
    """
    if policy is None:
        return tuple(args)
    eligible = [i for i in signature.tensors if _is_cast(args[i], device)]
    if policy == "lower":
        dtype = torch.get_autocast_dtype(device)
    elif policy == "promote":
        dtype = torch.float16 if not eligible else args[eligible[0]].dtype
        for i in eligible[1:]:
            dtype = torch.promote_types(dtype, args[i].dtype)
    else:
        dtype = policy
    return tuple(a.to(dtype) if i in eligible else a for i, a in enumerate(args))


def _is_cast(value: Any, device: str) -> bool:
    """PyTorch's rule: floating point, on the device of the region, and not float64."""
    return (
        value is not None and value.is_floating_point() and value.dtype != torch.float64 and value.device.type == device
    )
