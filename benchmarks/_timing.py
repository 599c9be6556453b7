"""Timing of several functions interleaved in one run, on a GPU or a CPU."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Thunk = Callable[[], object]

FLUSH_BYTES = 256 << 20  # several times the last-level cache of any GPU of today
MIN_REPEATS, MAX_REPEATS = 10, 100
HOST_REPEATS = 5


@dataclass(frozen=True)
class Timing:
    """Times of one function.

    Attributes:
        median_ms: Median time, on a GPU of the kernels alone: the host has run ahead. On a CPU, wall time.
        p20_ms: 20th percentile.
        p80_ms: 80th percentile.
        host_us: Median wall time for the host to enqueue the work, without waiting for it; None on a CPU.
        repeats: How many times it was timed.
    """

    median_ms: float
    p20_ms: float
    p80_ms: float
    host_us: float | None
    repeats: int


def summarise(samples_ms: list[float], host_us: float | None = None) -> Timing:
    """Median and 20th to 80th percentile of some samples.

    Args:
        samples_ms: Times in milliseconds.
        host_us: Host time to record with them.

    Returns:
        The summary.
    """
    ordered = sorted(samples_ms)
    last = len(ordered) - 1
    return Timing(
        statistics.median(ordered), ordered[round(0.2 * last)], ordered[round(0.8 * last)], host_us, len(ordered)
    )


def time_interleaved(
    functions: Mapping[str, Thunk],
    device: torch.device,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
    least: int = MIN_REPEATS,
) -> dict[str, Timing]:
    """Time functions in turn, round after round, so that a drift of the machine falls on all of them alike.

    Args:
        functions: What to time, by name; they need not be warm.
        device: Where they work.
        seconds: About how long the rounds shall take in all; there are at most 100 of them.
        clock: On a CPU, what tells the time: ``time.thread_time`` is not disturbed by what else the machine does.
        least: How many rounds there are at least; warming up takes three calls, or as many if fewer.

    Returns:
        The timing of each.
    """
    if not functions:
        return {}
    with _quiet_collector():
        if device.type == "cuda":
            return _time_on_gpu(functions, device, seconds, least)
        return _time_on_cpu(functions, seconds, clock, least)


def _time_on_cpu(
    functions: Mapping[str, Thunk], seconds: float, clock: Callable[[], float], least: int
) -> dict[str, Timing]:
    one_round = sum(min(_wall(f) for _ in range(min(3, least))) for f in functions.values())
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for name in _rounds(functions, _repeats(seconds, one_round, least)):
        samples[name].append(1e3 * _wall(functions[name], clock))
    return {name: summarise(times) for name, times in samples.items()}


def _time_on_gpu(functions: Mapping[str, Thunk], device: torch.device, seconds: float, least: int) -> dict[str, Timing]:
    """Device events around each call, after a cache flush and a pause in which the host enqueues all of the call."""
    # Without the pause, the time between the events of a short kernel would be that of the Python in front of it.
    # The flush writes, so that dirty lines stand in the cache before a call as they do after it.
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device)
    cycles_per_second = _sleep_rate(device)
    for function in functions.values():
        for _ in range(3):
            function()
    host = {name: statistics.median(_host_samples(f, device, 5)) for name, f in functions.items()}
    pauses = {name: int(cycles_per_second * (2.0 * h + 50e-6)) for name, h in host.items()}
    one_round = sum(_elapsed(f, device) + 3.0 * host[name] + 250e-6 for name, f in functions.items())
    repeats = _repeats(seconds, one_round, least)
    events: dict[str, list[tuple[Any, Any]]] = {name: [] for name in functions}
    for number, name in enumerate(_rounds(functions, repeats)):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        torch.cuda._sleep(pauses[name])
        start.record()
        functions[name]()
        stop.record()
        events[name].append((start, stop))
        if number % len(functions) == len(functions) - 1:
            torch.cuda.synchronize(device)  # an overlong queue would block the host and so disturb the pauses
    host_samples: dict[str, list[float]] = {name: [] for name in functions}
    for name in _rounds(functions, min(repeats, HOST_REPEATS)):
        host_samples[name] += _host_samples(functions[name], device, 1)
    return {
        name: summarise([a.elapsed_time(b) for a, b in events[name]], 1e6 * statistics.median(host_samples[name]))
        for name in functions
    }


def time_host(
    functions: Mapping[str, Thunk], device: torch.device, samples: int = 200, calls: int = 20
) -> dict[str, Timing]:
    """Host time of a call, from interleaved batches of calls; on a GPU the host does not wait for the device.

    Args:
        functions: What to time, by name.
        device: Where they work.
        samples: Number of batches of each function.
        calls: Calls in a batch.

    Returns:
        Times of a single call, ``host_us`` being the median.
    """
    with _quiet_collector():
        for function in functions.values():
            for _ in range(calls):
                function()
        times: dict[str, list[float]] = {name: [] for name in functions}
        for name in _rounds(functions, samples):
            function = functions[name]
            _wait(device)
            start = time.perf_counter()
            for _ in range(calls):
                function()
            times[name].append(1e3 * (time.perf_counter() - start) / calls)
        _wait(device)
    return {name: summarise(t, 1e3 * statistics.median(t)) for name, t in times.items()}


def copy_bandwidth(device: torch.device) -> float:
    """Measured bandwidth of a large ``copy_``, what all percentages refer to.

    Args:
        device: The device.

    Returns:
        Bytes read plus bytes written, per second.
    """
    numel = (1 << 30) if device.type == "cuda" else (1 << 25)
    source = torch.ones(numel, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    timing = time_interleaved({"copy": lambda: target.copy_(source)}, device, seconds=0.5)["copy"]
    return 2 * numel / (1e-3 * timing.median_ms)


def _rounds(functions: Mapping[str, Thunk], repeats: int) -> Iterator[str]:
    """Names round after round, each round starting one further, so that none is always after the same other."""
    names = list(functions)
    for r in range(repeats):
        shift = r % len(names)
        yield from names[shift:] + names[:shift]


def _repeats(seconds: float, one_round: float, least: int) -> int:
    return max(least, min(MAX_REPEATS, int(seconds / max(one_round, 1e-9))))


def _wall(function: Thunk, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    function()
    return clock() - start


def _host_samples(function: Thunk, device: torch.device, count: int) -> list[float]:
    samples = []
    for _ in range(count):
        _wait(device)
        samples.append(_wall(function))
    _wait(device)
    return samples


def _elapsed(function: Thunk, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def _sleep_rate(device: torch.device) -> float:
    """Cycles per second of the device's busy wait."""
    cycles = 2_000_000
    rates = []
    for _ in range(3):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        torch.cuda._sleep(cycles)
        stop.record()
        torch.cuda.synchronize(device)
        rates.append(cycles / (1e-3 * start.elapsed_time(stop)))
    return max(rates)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """No garbage collection while timing."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
