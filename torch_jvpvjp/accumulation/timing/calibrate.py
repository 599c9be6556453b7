"""Measuring a device: the fastest of many short runs of each probe.

All probes are run in turn, round after round, and the fastest run of each counts: what else the machine does only ever
adds time, and while it is busy the median of a threaded op can be a hundred times its own time.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from time import perf_counter

import torch

from .curve import Curve
from .device import device_name, threads_of
from .model import DeviceModel
from .probes import LINE, Probe, Probes

CPU_SIDES = (1, 2, 3, 4, 6, 8, 16, 32, 64, 128, 256, 512)
ACCELERATOR_SIDES = (*CPU_SIDES, 1024, 2048, 4096)
CPU_TRAFFIC = (2**16, 2**18, 2**20, 2**22, 2**24)  # entries; the last is fresh memory from the system at every op
ACCELERATOR_TRAFFIC = (2**20, 2**22, 2**24, 2**26)
_ENOUGH = 0.01  # seconds of its own in which a probe has been seen undisturbed


def calibrate(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    sides: Sequence[int] | None = None,
    traffic: Sequence[int] | None = None,
    rounds: int = 24,
    seconds: float = 5.0,
) -> DeviceModel:
    """Measure a device in one dtype, in one to three seconds on a quiet machine.

    Args:
        device: The device.
        dtype: A floating dtype.
        sides: Sides of products and numbers of columns, increasing; the last stands for "wide".
        traffic: Entries of the vectors that tell the bandwidth, increasing.
        rounds: Most samples of each probe; a long probe is sampled less often.
        seconds: Time after which no more than three samples of each are taken, as on a busy machine.

    Returns:
        The model.

    Raises:
        ValueError: If the dtype is not floating.
    """
    device = torch.device(device)
    if not dtype.is_floating_point:
        raise ValueError(f"calibrate: dtype must be a floating dtype, got {dtype}.")
    on_cpu = device.type == "cpu"
    sides = sides or (CPU_SIDES if on_cpu else ACCELERATOR_SIDES)
    traffic = traffic or (CPU_TRAFFIC if on_cpu else ACCELERATOR_TRAFFIC)
    with torch.no_grad():
        probes = Probes(device, dtype, sides, traffic).all()
        stopwatch = _Stopwatch(device, rounds, seconds)
        fastest = iter(stopwatch.fastest([probe for group in probes.values() for probe in group]))
    taken = {name: [next(fastest) for _ in group] for name, group in probes.items()}
    launch = taken.pop("launch")[0] / LINE
    gemm_launch = max(fmean(taken.pop("gemm_launch")), launch)
    launches = {name: gemm_launch if name.startswith("gemm") else launch for name in taken}
    curves = {name: _curve(probes[name], times, launches[name]) for name, times in taken.items()}
    return DeviceModel(
        device=device_name(device),
        dtype=str(dtype).removeprefix("torch."),
        itemsize=dtype.itemsize,
        torch=torch.__version__,
        threads=threads_of(device),
        source="measured",
        launch=launch,
        gemm_launch=gemm_launch,
        irregular=curves.pop("irregular").rates[0],
        traffic=Curve.of_seconds(curves["traffic"].knots, _seconds(curves.pop("traffic"))),
        **curves,
    )


def is_disturbed(model: DeviceModel) -> bool:
    """Whether a calibration shows that the processor was not free for it.

    Where another process holds a core, each threaded op waits for that core, milliseconds whatever its size: small
    products then take far longer than small ops, or as long as large products.

    Args:
        model: The calibration.

    Returns:
        Whether it should be measured again.
    """
    if model.gemm_launch > 20 * model.launch:
        return True
    for curve in (model.gemm_rows, model.gemm_inner, model.gemm_columns, model.push, model.pull):
        seconds = [size / rate for size, rate in zip(curve.knots, curve.rates, strict=True)]
        # A wide product is at least 64 times the work; a narrow one may be less efficient, up to 20 times.
        narrow = [taken for size, taken in zip(curve.knots, seconds, strict=True) if size * 64 <= curve.knots[-1]]
        if any(taken > seconds[-1] / 2 for taken in narrow):
            return True
    return False


def _curve(probes: Sequence[Probe], seconds: Sequence[float], launch: float) -> Curve:
    """Return work over time net of launches, of which at least a tenth is left, noise or not."""
    net = [max(taken - p.launches * launch, taken / 10) for p, taken in zip(probes, seconds, strict=True)]
    rates = [probe.work / taken for probe, taken in zip(probes, net, strict=True)]
    # A lone size at less than half the rate of both its neighbours was disturbed, for all its rounds.
    for place in range(1, len(rates) - 1):
        rates[place] = max(rates[place], min(rates[place - 1], rates[place + 1]) / 2)
    return Curve(tuple(float(probe.size) for probe in probes), tuple(rates))


def _seconds(traffic: Curve) -> list[float]:
    return [size / rate for size, rate in zip(traffic.knots, traffic.rates, strict=True)]


class _Stopwatch:
    def __init__(self, device: torch.device, rounds: int, seconds: float) -> None:
        self.device, self.rounds, self.seconds = device, rounds, seconds
        # A sample must be long against the clock; on an accelerator against waiting for it as well.
        self.sample_seconds = 1e-4 if device.type == "cpu" else 1e-3

    def fastest(self, probes: Sequence[Probe]) -> list[float]:
        """Return the seconds of each probe."""
        start = perf_counter()
        best = [self._timed(probe, 1) for probe in probes]
        for sample in range(1, self.rounds):
            for place, probe in enumerate(probes):
                # A short probe is easily disturbed and cheaply repeated; a long one is neither.
                if sample < 3 or (sample * best[place] < _ENOUGH and perf_counter() - start < self.seconds):
                    repeats = max(1, round(self.sample_seconds / best[place]))
                    best[place] = min(best[place], self._timed(probe, repeats) / repeats)
        return best

    def _timed(self, probe: Probe, repeats: int) -> float:
        """Return the seconds of so many runs, until the device is done, after one that fills the caches."""
        run = probe.run
        run()
        self._wait()
        start = perf_counter()
        for _ in range(repeats):
            run()
        self._wait()
        return max(perf_counter() - start, 1e-9)

    def _wait(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
