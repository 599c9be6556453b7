"""The most memory that a call holds beyond what was held before it."""

from collections.abc import Callable
from typing import Any

import torch


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Call a function once and watch the allocator.

    Args:
        run: The function.
        device: Whose memory is meant.

    Returns:
        Bytes, of results and everything on the way to them.
    """
    return _peak_on_gpu(run, device) if device.type == "cuda" else _peak_on_cpu(run)


def _peak_on_gpu(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(run: Callable[[], object]) -> int:
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        run()
    found = profile.profiler
    assert found is not None and found.kineto_results is not None
    events: list[Any] = [e for e in found.kineto_results.events() if e.name() == "[memory]"]
    level = highest = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        highest = max(highest, level)
    return highest
