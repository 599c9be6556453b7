"""The kernels of one point of the tower, by device: which there are, and how they run."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _torch_private as private
from .agreement import check_agreement, check_device
from .conventions import Convention, FlatFunction, Function, check_function, takes_only_positions
from .promises import common_device, finished


class Kernels:
    """The kernels of one point, by device type.

    Args:
        convention: Of the point.
    """

    def __init__(self, convention: Convention) -> None:
        self._convention = convention
        self._flat: dict[str, FlatFunction] = {}
        self._written: dict[str, Function] = {}  # the kernels as they were written
        self._seen: set[torch.device] = set()  # devices on which a kernel has run
        self._direct: dict[torch.device | None, Function] = {}  # ... of a primal, for short calls

    @property
    def devices(self) -> tuple[str, ...]:
        """Device types with a kernel, in the order of registration."""
        return tuple(self._flat)

    def keys_of(self, devices: Sequence[str]) -> list[str]:
        """The dispatch keys of devices that have no kernel yet.

        Args:
            devices: Device types.

        Returns:
            One key per device.

        Raises:
            ValueError: If a device type is unknown to PyTorch, or has a kernel already.
            TypeError: If no device is given.
        """
        qualname = self._convention.qualname
        if not devices or not all(isinstance(d, str) for d in devices):
            raise TypeError(f"{qualname}.kernel: name the device types, e.g. @op.kernel('cuda'), got {devices!r}.")
        keys = [_dispatch_key(qualname, device) for device in devices]
        for device in devices:
            if device in self._flat:
                raise ValueError(
                    f"{qualname}: device {device!r} has a kernel already ({self._written[device].__qualname__}); "
                    "one kernel per device: choose inside it."
                )
        return keys

    def add(self, devices: Sequence[str], function: Function) -> None:
        """Enter a kernel.

        Args:
            devices: Device types.
            function: The kernel, called as the formula beside it is.
        """
        check_function(self._convention.qualname, "kernel", function)
        flat = self._convention.flatten(function)
        for device in devices:
            self._flat[device], self._written[device] = flat, function
        self._direct.clear()
        self._seen.clear()

    def run(self, args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        """The results by the kernel for the arguments' device.

        Args:
            args: One value per argument.

        Returns:
            One fresh, contiguous tensor per result; None if there is no kernel for that device.
        """
        device = common_device(self._convention, args)
        results = self._results(device, args)
        if results is not None:
            assert device is not None
            function = self._written[device.type]
            check_device(self._convention, results, device, function)
            check_agreement(self._convention, results, args, function)
        return results

    def _results(self, device: torch.device | None, args: tuple[Any, ...]) -> tuple[Tensor, ...] | None:
        convention = self._convention
        direct = self._direct.get(device)
        if direct is not None:
            returned = convention.normalise(direct(*args), args, direct)
            contiguous = True
            for y in returned:
                contiguous = contiguous and y.is_contiguous()
                for a in args:
                    if y is a:  # what .contiguous() and .to() return where there is nothing to do
                        return finished(convention, returned, args)
            return returned if contiguous else finished(convention, returned, args, look_for_aliases=False)
        kernel = None if device is None else self._flat.get(device.type)
        if device is None or kernel is None:
            return None
        if device in self._seen:
            return finished(convention, kernel(args), args)
        return self._first_run(device, kernel, args)

    def _first_run(self, device: torch.device, kernel: FlatFunction, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """A run that is looked at more closely; check_op looks at every sample."""
        before = self._versions(args)
        results = finished(self._convention, kernel(args), args)
        if self._versions(args) != before:
            raise ValueError(
                f"{self._convention.qualname}: the kernel for {device.type} writes into an argument; write into a copy."
            )
        self._seen.add(device)
        written = self._written[device.type]
        if not self._convention.derived and takes_only_positions(written):
            self._direct[device] = written  # calls may skip the convention
        return results

    def _versions(self, args: tuple[Any, ...]) -> list[int]:
        """How often each tensor was written into, as far as PyTorch knows."""
        tensors = [args[i] for i in self._convention.signature.tensors if args[i] is not None]
        return [t._version for t in tensors if not t.is_inference()]


def _dispatch_key(qualname: str, device: str) -> str:
    if device == "meta":
        raise ValueError(
            f"{qualname}.kernel: 'meta' tensors have no data; use @{qualname.partition('::')[2]}.fake instead."
        )
    try:
        return private.dispatch_key_for_device(torch.device(device).type)
    except RuntimeError as error:
        raise ValueError(
            f"{qualname}.kernel: unknown device type {device!r}; PyTorch knows 'cpu', 'cuda' (NVIDIA and AMD), 'xpu', "
            "'mps', ..."
        ) from error
