"""What identifies a device to a calibration: its name, and the threads that PyTorch has there."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Return the name of a device: the model of a GPU, or of the processor with the vector instructions in use."""
    if device.type == "cpu":
        return f"{_processor()} ({torch.backends.cpu.get_cpu_capability()})"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} of {_processor()}"


def threads_of(device: torch.device) -> int:
    """Return PyTorch's threads on a CPU, which its speed depends on; 1 elsewhere."""
    return torch.get_num_threads() if device.type == "cpu" else 1


@cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine() or "unknown processor"
