"""Sweeps of tangents or adjoints through products: with few rows, few copies, and few ways through memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from torch import Tensor

from ..calls import ProgramCall
from .layout import Layouts
from .samples_apart import with_samples_apart
from .shared_tangents import with_shared_tangents
from .sums_in_products import with_sums_in_products


def with_quick_sweeps(
    calls: Sequence[ProgramCall],
    fixed: Mapping[int, Tensor],
    given: Collection[int],
    results: Sequence[int],
    layouts: Layouts,
    new_value: Callable[[], int],
) -> list[ProgramCall]:
    """Return calls whose sweeps through products take less time.

    Args:
        calls: A straight line of calls none of which writes into a tensor.
        fixed: Values that are the same in every run.
        given: Which of these the program has not made, so that others may write into them.
        results: The values that are returned.
        layouts: How each value lies in memory; those of the values that are added are added.
        new_value: Makes the number of another value.
    """
    own = {index: fixed[index] for index in fixed.keys() - set(given)}
    calls = with_shared_tangents(calls, results, own, layouts, new_value)
    calls = with_samples_apart(calls, results, layouts, new_value)
    return with_sums_in_products(calls, results, layouts, new_value)
