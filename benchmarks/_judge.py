"""Whether a result is right, before anybody times it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22  # elements of a row operand that are worked on in float64 at a time

TensorFunction = Callable[..., Sequence[Tensor]]


class Judge:
    """Errors of results against float64, in units of the budget of ``torch_jvpvjp.testing``.

        error / budget,  budget = 2 · (err(reference in that dtype) + eps(dtype) · max|y₆₄|)

    Rows are independent, so float64 goes by blocks of rows and needs little memory; what is summed over rows is added
    up.

    Args:
        function: The operation on the plain formula; PyTorch takes its derivatives.
        arguments: Its arguments, in the dtype that is judged.
        argument_rows: The axis of rows of each argument, None for what all rows share.
        result_rows: The axis of rows of each result, None for what is summed over rows.
    """

    def __init__(
        self,
        function: TensorFunction,
        arguments: Sequence[Tensor],
        argument_rows: Sequence[int | None],
        result_rows: Sequence[int | None],
    ) -> None:
        self._function, self._arguments = function, arguments
        self._argument_rows, self._result_rows = argument_rows, result_rows
        low = function(*arguments)
        self._likes = [torch.empty_like(t, device="meta") for t in low]
        own, scale = self._errors(low)
        eps = torch.finfo(arguments[0].dtype).eps
        self.budgets = [2 * (e + eps * s) for e, s in zip(own, scale, strict=True)]

    def poison(self) -> None:
        """Leave NaN in the memory that the next results are likely to get, so that what is not written shows."""
        device = self._arguments[0].device
        blocks = [torch.full(t.shape, float("nan"), dtype=t.dtype, device=device) for t in self._likes]
        del blocks

    def __call__(self, results: Sequence[Tensor]) -> float:
        """The worst error of any result over its budget.

        Args:
            results: What a contender returned.

        Returns:
            At most 1 if all is right; infinity where there is NaN or a result of another shape.
        """
        shapes = [tuple(t.shape) for t in results]
        if shapes != [tuple(t.shape) for t in self._likes]:
            return float("inf")
        errors, _ = self._errors(results)
        pairs = zip(errors, self.budgets, strict=True)
        return max(e / b if b > 0 else (float("inf") if e > 0 else 0.0) for e, b in pairs)

    def _errors(self, results: Sequence[Tensor]) -> tuple[list[float], list[float]]:
        """Largest error and largest magnitude of every result."""
        device = self._arguments[0].device
        errors = [torch.zeros((), dtype=torch.float64, device=device) for _ in results]
        scales = [torch.zeros((), dtype=torch.float64, device=device) for _ in results]
        sums: list[Tensor | None] = [None for _ in results]

        def compare(j: int, actual: Tensor, exact: Tensor) -> None:
            distance = (actual.detach().double() - exact).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
            errors[j] = torch.maximum(errors[j], distance.max())
            scales[j] = torch.maximum(scales[j], exact.abs().max())

        for rows in self._blocks():
            part = [
                _rows_of(a, axis, rows).double() for a, axis in zip(self._arguments, self._argument_rows, strict=True)
            ]
            for j, (exact, axis) in enumerate(zip(self._function(*part), self._result_rows, strict=True)):
                if axis is None:
                    known = sums[j]
                    sums[j] = exact if known is None else known + exact
                else:
                    compare(j, _rows_of(results[j], axis, rows), exact)
        for j, exact in enumerate(sums):
            if exact is not None:
                compare(j, results[j], exact)
        return [float(e) for e in errors], [float(s) for s in scales]

    def _blocks(self) -> list[slice]:
        first = self._arguments[0]
        rows, n = first.shape
        size = max(1, CHUNK_ELEMENTS // n)
        return [slice(start, min(rows, start + size)) for start in range(0, rows, size)]


def _rows_of(tensor: Tensor, axis: int | None, rows: slice) -> Tensor:
    return tensor if axis is None else tensor.narrow(axis, rows.start, rows.stop - rows.start)
