"""What a device takes for the things that a plan does: a roofline, as numbers."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .curve import Array, Curve

_CURVES = ("gemm_rows", "gemm_inner", "gemm_columns", "push", "pull", "traffic")


@dataclass(frozen=True)
class DeviceModel:
    """Seconds of products, sweeps and plain memory traffic on one device in one dtype.

    With one fma a multiply-add, every price is

        launches · launch + max(fma / rate(sizes), bytes / traffic(bytes)).

    The fma of an (m, k) by (k, n) product take, each, the time of a wide product and what its narrow sides add to it:

        1 / peak + Σ over the sides of (1 / rate(side) - 1 / peak),

    rate(side) being measured with the other two sides wide; the three differ by up to 7x for sides of 2 to 8.

    Attributes:
        device: Name of the device.
        dtype: Name of the dtype, such as "float32".
        itemsize: Bytes of one entry.
        torch: Version of PyTorch.
        threads: PyTorch's threads; 1 for an accelerator.
        source: "measured", or where the numbers come from.
        launch: Seconds from one op to the next in a straight line of small ops.
        gemm_launch: The same for products, which may wake threads.
        gemm_rows: fma/s of a product of m rows.
        gemm_inner: fma/s of a product over k.
        gemm_columns: fma/s of a product of n columns.
        push: fma/s of a pushforward of so many tangents at once.
        pull: fma/s of a pullback of so many cotangents at once.
        traffic: bytes/s of an op that reads and writes so many bytes once, its result in fresh memory.
        irregular: fma/s of a product of two general sparse matrices.
    """

    device: str
    dtype: str
    itemsize: int
    torch: str
    threads: int
    source: str
    launch: float
    gemm_launch: float
    gemm_rows: Curve
    gemm_inner: Curve
    gemm_columns: Curve
    push: Curve
    pull: Curve
    traffic: Curve
    irregular: float

    def __post_init__(self) -> None:
        for name in ("launch", "gemm_launch", "irregular", "itemsize", "threads"):
            number = getattr(self, name)
            if not (math.isfinite(number) and number > 0):
                raise ValueError(f"DeviceModel: {name} must be positive and finite, got {number}.")

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What the numbers hold for: device, dtype, version of PyTorch and threads."""
        return self.device, self.dtype, self.torch, self.threads

    def move(self, entries: float, launches: int = 1) -> float:
        """Return the seconds of ops of which each reads and writes so many entries."""
        return launches * (self.launch + self._moved(entries))

    def gemm(self, m: int, k: int, n: int, count: int = 1) -> float:
        """Return the seconds of an (m, k) by (k, n) product, or of several at once."""
        seconds = self.gemm_slowness(m, k, n) * (m * n) * k * count
        return self.gemm_launch + max(seconds, self._moved(((m + n) * k + m * n) * count))

    def gemm_slowness(self, m: int, k: int, n: int) -> float:
        """Return the seconds of one fma in an (m, k) by (k, n) product."""
        return self.gemm_rows.inverse(m) + self.gemm_columns.inverse(n) + self.gemm_inner.inverse(k) - self._spare

    def gemm_array(self, m: Any, k: Any, n: Any, count: int = 1) -> Array:
        """Return the seconds of `count` products each, whose sides are arrays of integers that broadcast."""
        m, k, n = np.asarray(m), np.asarray(k), np.asarray(n)
        outer = self.gemm_rows.inverse_of(m) + self.gemm_columns.inverse_of(n) - self._spare
        inner = self.gemm_inner.inverse_of(k)
        m, k, n = m.astype(np.float64), k.astype(np.float64), n.astype(np.float64)
        seconds = (outer + inner) * (m * n) * k * count
        moved = ((m + n) * k + m * n) * float(self.itemsize * count)
        # Most chains are so small that all their traffic runs at one rate, which needs no logarithm for each product.
        if moved.size and moved.max() > self.traffic.knots[0]:
            moved *= self.traffic.inverse_at(np.maximum(moved, 1.0))
        else:
            moved /= self.traffic.rates[0]
        np.maximum(seconds, moved, out=seconds)
        seconds += self.gemm_launch
        return seconds

    @cached_property
    def _spare(self) -> float:
        """2 / peak: what the three sides of a product, measured one by one, hold too much."""
        return 2 / max(*self.gemm_rows.rates, *self.gemm_inner.rates, *self.gemm_columns.rates)

    def sweep(self, columns: int, fma: int, touched: float, launches: int, *, tangent: bool) -> float:
        """The seconds of carrying tangents, or cotangents, through a factor.

        Args:
            columns: How many are carried.
            fma: What one of them costs.
            touched: Entries that one op of the factor reads and writes for one of them.
            launches: Ops that one sweep launches.
            tangent: Pushforward or pullback.

        Returns:
            Seconds.
        """
        slowness = (self.push if tangent else self.pull).inverse(columns)
        return launches * self.launch + max(columns * fma * slowness, launches * self._moved(columns * touched))

    def _moved(self, entries: float) -> float:
        moved = entries * self.itemsize
        return moved / self.traffic.at(moved)

    def to_json(self) -> str:
        """Return the model as JSON."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> DeviceModel:
        """The model that `to_json` wrote.

        Args:
            text: What `to_json` returned.

        Returns:
            The model.

        Raises:
            ValueError: If the text is not a model.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            for name in _CURVES:
                data[name] = Curve(tuple(data[name]["knots"]), tuple(data[name]["rates"]))
            return cls(**data)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"DeviceModel.from_json: text must be what to_json wrote, got {error!r}.") from error
