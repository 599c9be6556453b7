"""The objective `time`: seconds of each step by the model of one device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch

from ..bracket import Mode
from ..cost import Number
from ..factor import Factor
from ..structure import Dense, Structure
from .current import device_model
from .model import DeviceModel
from .products import by_entries, product_seconds


@dataclass(frozen=True)
class Time:
    """Seconds, by a roofline of one device in one dtype.

        accumulate = sweep of n tangents or m cotangents, traffic of the values in closed form, 0 if given
        multiply   = launches · launch + max(fma / rate(sides), bytes / traffic)
        push, pull = sweep of the columns, of the rows, of a block; of a given Jacobian the product with it; but
                     a dense block goes through the op itself past a pattern, such as a convolution's
        compressed = sweep of the colours

    with sweep(c) = launches · launch + max(c · fma / rate(c), bytes / traffic). An op of a factor reads two values of
    the mean size of its input and output and writes one, which makes the bytes.

    Of a batch, fma, bytes and columns are those of all samples, and the launches are paid once.

    Args:
        model: What the device takes for what.
        samples: How many samples each thing is done for at once.
    """

    model: DeviceModel
    name: str = "time"
    unit: str = "s"
    samples: int = 1

    def batched(self, copies: int) -> Time:
        """Return the seconds of doing everything for so many samples at once."""
        return replace(self, samples=copies)

    def accumulate(self, factor: Factor, mode: Mode) -> float:
        """Return the seconds of forming the Jacobian of one factor; in closed form, of writing it."""
        if mode is Mode.GIVEN:
            return 0.0
        if mode is Mode.CLOSED:
            assert factor.forming_cost is not None, "a planner priced a closed form that there is none of"
            # Each value that the formula computes is read and written about once more on its way. They are those of
            # all its ops, of which each moves its share.
            values = max(factor.forming_cost, factor.jacobian.entries)
            return self.model.move(3 * self.samples * values / factor.launches, factor.launches)
        if mode is Mode.TANGENT:
            return self._sweep(factor, factor.n, tangent=True)
        return self._sweep(factor, factor.m, tangent=False)

    def multiply(self, left: Structure, right: Structure) -> float:
        """Return the seconds of the product of two matrices in their structure."""
        if isinstance(left, Dense) and isinstance(right, Dense):
            return self.model.gemm(left.m, left.n, right.n, self.samples)
        seconds = self._products.get((left, right))
        if seconds is None:
            seconds = self._products[left, right] = product_seconds(self.model, left, right, self.samples)
        return seconds

    def multiply_dense(self, m: Number, k: Number, n: Number) -> Number:
        """Return the seconds of an (m, k) by (k, n) product; arrays of sizes give an array of floats."""
        if isinstance(m, int) and isinstance(k, int) and isinstance(n, int):
            return self.model.gemm(m, k, n, self.samples)  # pyright: ignore[reportReturnType] (a float for integers)
        return self.model.gemm_array(m, k, n, self.samples)  # pyright: ignore[reportReturnType] (an array for arrays)

    def push(self, factor: Factor, block: Structure) -> float:
        """Return the seconds of pushing the columns of a block through a factor."""
        if not factor.given:
            return self._sweep(factor, block.n, tangent=True)
        if factor.jvp_cost is not None and _is_carried(factor, block):
            return self._carried(factor, block.n, tangent=True)
        return self.multiply(factor.jacobian, block)

    def pull(self, factor: Factor, block: Structure) -> float:
        """Return the seconds of pulling the rows of a block through a factor."""
        if not factor.given:
            return self._sweep(factor, block.m, tangent=False)
        if factor.vjp_cost is not None and _is_carried(factor, block):
            return self._carried(factor, block.m, tangent=False)
        return self.multiply(block, factor.jacobian)

    def compressed(self, factor: Factor, colours: int) -> float:
        """Return the seconds of pushing one column for each colour."""
        return self._sweep(factor, colours, tangent=True)

    @cached_property
    def _products(self) -> dict[tuple[Structure, Structure], float]:
        return {}

    def _carried(self, factor: Factor, columns: int, *, tangent: bool) -> float:
        """Return the seconds of a sweep through an op with a known pattern, such as a convolution.

        Its fma run as in a product whose inner side is as long as the sums are, and whose other side is as long as each
        entry is used: convolutions of one channel take ten times as long for an fma as those of sixteen.
        """
        structure, fma = factor.jacobian, factor.jvp_cost if tangent else factor.vjp_cost
        sides = max(structure.entries // max(structure.m, 1), 1), max(structure.entries // max(structure.n, 1), 1)
        inner, outer = sides if tangent else sides[::-1]
        carried = columns * self.samples
        seconds = carried * (fma or 0) * self.model.gemm_slowness(carried, inner, outer)
        return max(self._sweep(factor, columns, tangent=tangent), seconds)

    def _sweep(self, factor: Factor, columns: int, *, tangent: bool) -> float:
        fma = factor.jvp_cost if tangent else factor.vjp_cost
        assert fma is not None, "a planner priced a sweep through a factor that has none"
        touched = 1.5 * (factor.n + factor.m)
        launches = factor.launches if tangent or factor.pull_launches is None else factor.pull_launches
        return self.model.sweep(columns * self.samples, fma, touched, launches, tangent=tangent)


def _is_carried(factor: Factor, block: Structure) -> bool:
    """Return whether a block goes through the op of a factor whose entries are known: a dense one past a pattern."""
    return isinstance(block, Dense) and by_entries(factor.jacobian)


def time_objective(device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Time:
    """The objective `time` for a device: by its stored calibration, or by the stated defaults. Nothing is measured.

    Args:
        device: The device; PyTorch's default device if None.
        dtype: The dtype of the Jacobian; PyTorch's default dtype if None.

    Returns:
        The objective.
    """
    device = torch.get_default_device() if device is None else torch.device(device)
    return Time(device_model(device, dtype))
