"""What is run to measure a device: the ops that a plan is made of, at a few sizes each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

LINE = 32  # ops in the straight line that tells the launch cost
_SMALL = (
    (24, 8, 8),
    (8, 24, 8),
    (8, 8, 24),
    (64, 4, 4),
    (4, 64, 4),
    (4, 4, 64),
    (16, 16, 16),
)  # products, to the same end


class Probe(NamedTuple):
    """One run of known work."""

    run: Callable[[], object]
    size: int  # what the rate depends on
    work: int  # fma, or bytes
    launches: int


class Probes:
    """The runs that measure one device in one dtype.

    Args:
        device: The device.
        dtype: A floating dtype.
        sides: Sides of products and numbers of columns, increasing; the last stands for "wide".
        traffic: Entries of the vectors that tell the bandwidth, increasing.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, sides: Sequence[int], traffic: Sequence[int]) -> None:
        self.device, self.dtype, self.sides, self.sizes = device, dtype, sides, traffic

    def all(self) -> dict[str, list[Probe]]:
        """Return all of them, by the name that a `DeviceModel` gives to what they tell."""
        return {
            "launch": self.launch(),
            "gemm_launch": self.gemm_launch(),
            "gemm_rows": self.gemm(lambda side, wide: (side, wide, wide)),
            "gemm_inner": self.gemm(lambda side, wide: (wide, side, wide)),
            "gemm_columns": self.gemm(lambda side, wide: (wide, wide, side)),
            "push": self.sweep(tangent=True),
            "pull": self.sweep(tangent=False),
            "traffic": self.traffic(),
            "irregular": self.irregular(),
        }

    def launch(self) -> list[Probe]:
        """A straight line of small ops: scalings of rows and of columns, sums and copies."""
        matrix, vector = self._matrix(16, 16), self._matrix(1, 16)[0]

        def line() -> Tensor:
            value = matrix
            for _ in range(LINE // 4):
                value = (vector[:, None] * value + matrix).mT.contiguous() * vector
            return value

        return [Probe(line, LINE, LINE, 0)]

    def gemm_launch(self) -> list[Probe]:
        """Small products of several shapes, one by one: threads that they wake may be slow to come."""
        pairs = [(self._matrix(m, k), self._matrix(k, n)) for m, k, n in _SMALL]
        return [Probe(partial(torch.mm, *pair), place, 1, 0) for place, pair in enumerate(pairs, 1)]

    def gemm(self, shape: Callable[[int, int], tuple[int, int, int]]) -> list[Probe]:
        """Products with one side narrow and the others wide."""
        probes: list[Probe] = []
        for side in self.sides:
            m, k, n = shape(side, self.sides[-1])
            probes.append(Probe(partial(torch.mm, self._matrix(m, k), self._matrix(k, n)), side, m * k * n, 1))
        return probes

    def sweep(self, *, tangent: bool) -> list[Probe]:
        """A batch passes y = x + φ(W x), the rows of the batch being the tangents.

            Ẏ = Ẋ + (Ẋ Wᵀ) ⊙ φ'   and   X̄ = Ȳ + (Ȳ ⊙ φ') W

        Args:
            tangent: Whether the batch is pushed or pulled.

        Returns:
            One probe for each size of the batch.
        """
        width = max(self.sides[-1] // 2, 1)
        weight, slope = self._matrix(width, width), self._matrix(1, width)

        def push(x_dot: Tensor) -> Tensor:
            return x_dot + torch.mm(x_dot, weight.mT) * slope

        def pull(y_bar: Tensor) -> Tensor:
            return y_bar + torch.mm(y_bar * slope, weight)

        function = push if tangent else pull
        fma = width * width + 2 * width
        return [Probe(partial(function, self._matrix(side, width)), side, side * fma, 3) for side in self.sides]

    def traffic(self) -> list[Probe]:
        """The product x ⊙ y of two vectors, which moves three."""
        x, y = self._matrix(2, self.sizes[-1])
        moved = [3 * size * self.dtype.itemsize for size in self.sizes]
        return [
            Probe(partial(torch.mul, x[:size], y[:size]), work, work, 1)
            for size, work in zip(self.sizes, moved, strict=True)
        ]

    def irregular(self) -> list[Probe]:
        """The sums out[r] += a[i] · b[j] over index lists, as a product of two sparse patterns forms them."""
        size = max(self.sides[-1] ** 2 // 4, 16)
        x, y, zero = self._matrix(3, size)
        index = (torch.arange(size, device=self.device) * 7919) % size
        return [Probe(lambda: zero.index_add(0, index, x[index] * y[index]), size, size, 4)]

    def _matrix(self, m: int, n: int) -> Tensor:
        return torch.full((m, n), 0.25, dtype=self.dtype, device=self.device)
