"""The stated numbers that planning uses on a device that was not calibrated.

- CPU: one core of an AMD EPYC 7003 (AVX2, MKL) in float32, measured by `calibrate`; more threads help a side of s by
  1 + (threads - 1) · s / (s + 128), as two threads did there. float64 runs at half the rate, 16-bit types at a quarter.
- CUDA: the data sheet of an A100 (FP32 19.5 Tflop/s, FP64 9.7, BF16 and FP16 312, 1.55 TB/s, 40 MB of L2), a side of s
  reaching s / (s + 64) of the peak, and 5 µs from one launch to the next, 7 µs for products: eager PyTorch's host. An
  estimate.
- Any other accelerator: the data sheet of an Apple M1 (FP32 2.6 Tflop/s, 68 GB/s), 20 µs for a launch. An estimate.

Calls of 37 plans in float32 and in float64 (networks, filters, robots, elements, molecules, linear algebra; one thread
of an AMD EPYC) took 0.3 to 2 times what these numbers say of them, but for large results of few entries, whose zeros
are not priced (2 to 3.5 times), and exponentials of small matrices, whose host cost is not either (2 to 4.4 times).
That is the time of the thread; the clock that `verify` reads counts what other processes take as well.

They order steps that differ by 2x; `python -m torch_jvpvjp calibrate` measures the device itself.
"""

from __future__ import annotations

import torch

from .curve import Curve
from .model import DeviceModel

SIDES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_MIB = 2.0**20

# fma/s in units of 1e9 for sides of SIDES
_CPU_ROWS = (7.5, 7.7, 10.3, 16.5, 26.0, 30.0, 35.0, 36.5, 36.5, 36.5)
_CPU_INNER = (4.0, 5.2, 10.0, 16.0, 28.0, 29.0, 30.0, 36.5, 36.5, 36.5)
_CPU_COLUMNS = (7.0, 1.3, 2.5, 4.5, 24.5, 28.5, 34.0, 36.5, 36.5, 36.5)


def default_model(name: str, kind: str, dtype: torch.dtype, threads: int) -> DeviceModel:
    """The stated model of a kind of device.

    Args:
        name: Name of the device.
        kind: "cpu", "cuda", or any other type of a torch.device.
        dtype: A floating dtype.
        threads: PyTorch's threads; it counts on a CPU only.

    Returns:
        The model.
    """
    itemsize = dtype.itemsize
    build = {"cpu": _cpu, "cuda": _cuda}.get(kind, _accelerator)
    launch, gemm_launch, rows, inner, columns, traffic, irregular = build(itemsize, threads)
    return DeviceModel(
        device=name,
        dtype=str(dtype).removeprefix("torch."),
        itemsize=itemsize,
        torch=torch.__version__,
        threads=threads,
        source=f"stated default for {kind}",
        launch=launch,
        gemm_launch=gemm_launch,
        gemm_rows=rows,
        gemm_inner=inner,
        gemm_columns=columns,
        push=rows,  # a batch of tangents, or of cotangents, stands in the rows
        pull=rows,
        traffic=traffic,
        irregular=irregular,
    )


_Numbers = tuple[float, float, Curve, Curve, Curve, Curve, float]


def _cpu(itemsize: int, threads: int) -> _Numbers:
    scale = {8: 0.5, 4: 1.0}.get(itemsize, 0.25)

    def side(rates: tuple[float, ...]) -> Curve:
        faster = (1 + (threads - 1) * s / (s + 128) for s in SIDES)
        return Curve(SIDES, tuple(1e9 * scale * rate * by for rate, by in zip(rates, faster, strict=True)))

    # In cache; out of cache; and results so large that each is fresh memory from the system, page by page.
    traffic = Curve((2 * _MIB, 16 * _MIB, 64 * _MIB, 128 * _MIB), (4e10, 2e10, 1e10, 4e9))
    return 3e-6, 3.5e-6, side(_CPU_ROWS), side(_CPU_INNER), side(_CPU_COLUMNS), traffic, 1e8


def _cuda(itemsize: int, threads: int) -> _Numbers:
    peak = {8: 4.85e12, 4: 9.75e12}.get(itemsize, 156e12)
    knots = (*SIDES, 1024.0, 4096.0)
    side = Curve(knots, tuple(peak * s / (s + 64) for s in knots))
    return 5e-6, 7e-6, side, side, side, Curve((20 * _MIB, 100 * _MIB), (3e12, 1.4e12)), 2e10


def _accelerator(itemsize: int, threads: int) -> _Numbers:
    side = Curve(SIDES, tuple(1.3e12 * min(1.0, 4 / itemsize) * s / (s + 64) for s in SIDES))
    return 20e-6, 20e-6, side, side, side, Curve.constant(6e10), 1e9
