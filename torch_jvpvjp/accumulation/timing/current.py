"""Which model stands for a device now: its stored calibration, or the stated defaults."""

from __future__ import annotations

from functools import lru_cache

import torch

from .calibrate import calibrate, is_disturbed
from .defaults import default_model
from .device import device_name, threads_of
from .model import DeviceModel
from .store import Key, load, save

ATTEMPTS = 3

_measured: dict[Key, DeviceModel] = {}  # of this process: a home that cannot be written to keeps nothing


def device_model(device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> DeviceModel:
    """The model of a device, looked up and never measured: planning must not stop to calibrate.

    Args:
        device: The device; PyTorch's default device if None.
        dtype: A floating dtype; PyTorch's default dtype if None.

    Returns:
        What `calibrate_device` measured, in this process or before; the stated defaults if it was never called.
    """
    device, dtype = _resolved(device, dtype)
    return _known(device.type, _key(device, dtype), dtype)


def calibrate_device(
    device: torch.device | str | None = None, dtype: torch.dtype | None = None, *, refresh: bool = False
) -> DeviceModel:
    """Measure a device, in a second or two, and keep the result in the user's cache folder.

    `objective="time"` plans by it from then on, in this process and in others. It holds for one device, one dtype, one
    version of PyTorch and, on a CPU, one number of threads.

    Args:
        device: The device; PyTorch's default device if None.
        dtype: A floating dtype; PyTorch's default dtype if None.
        refresh: Measure anew even if there is a result.

    Returns:
        The model.

    Raises:
        ValueError: If the dtype is not floating.
        RuntimeError: If the machine was too busy, at each of several attempts, for the result to mean anything.
    """  # noqa: DOC502 (raised further down)
    device, dtype = _resolved(device, dtype)
    key = _key(device, dtype)
    stored = None if refresh else _measured.get(key) or load(key)
    if stored is None:
        stored = _measure(device, dtype)
        save(stored)
    _measured[key] = stored
    _known.cache_clear()
    return stored


def _measure(device: torch.device, dtype: torch.dtype) -> DeviceModel:
    for _ in range(ATTEMPTS):
        model = calibrate(device, dtype)
        if not is_disturbed(model):
            return model
    raise RuntimeError(
        f"calibrate_device: {device} must be free while it is measured, but small products took as long as large ones "
        f"in {ATTEMPTS} attempts; try again when nothing else runs, or with fewer threads (torch.set_num_threads)."
    )


@lru_cache(maxsize=64)
def _known(kind: str, key: Key, dtype: torch.dtype) -> DeviceModel:
    return _measured.get(key) or load(key) or default_model(key[0], kind, dtype, key[3])


def _resolved(device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    device = torch.get_default_device() if device is None else torch.device(device)
    return device, torch.get_default_dtype() if dtype is None else dtype


@lru_cache(maxsize=64)
def _name(device: torch.device) -> str:
    return device_name(device)


def _key(device: torch.device, dtype: torch.dtype) -> Key:
    return _name(device), str(dtype).removeprefix("torch."), torch.__version__, threads_of(device)
