"""An array of indices that can stand in a hashable structure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

Integers: TypeAlias = NDArray[np.int64]


class Index:
    """A read-only int64 vector, compared by value, whose hash is computed once."""

    def __init__(self, values: IndexLike) -> None:
        """Keep a flat int64 copy, since the caller could still write into the values.

        Args:
            values: Any sequence of integers, a NumPy array of them, or another Index.

        Raises:
            ValueError: If the values are not integers in one dimension.
        """
        if isinstance(values, Index):
            array = values.array
        else:
            array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
            if array.size == 0:
                array = array.astype(np.int64).reshape(-1)
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise ValueError(
                    f"Index: values must be integers in one dimension, got {array.dtype} of shape {array.shape}."
                )
            array = array.astype(np.int64)
            array.flags.writeable = False
        self.array: Integers = array
        self._tensors: dict[torch.device, Tensor] = {}

    @cached_property
    def _hash(self) -> int:
        # equality compares every entry, so the hash may read few of a long vector: their sum and 64 of them
        array = self.array
        return hash((array.size, int(array.sum()), array[:: array.size // 64 + 1].tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Index):
            return NotImplemented
        return self._hash == other._hash and np.array_equal(self.array, other.array)

    def __len__(self) -> int:
        return self.array.size

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.array[:6].tolist()))
        return f"Index([{shown}{', ...' if len(self) > 6 else ''}], {len(self)})"

    @cached_property
    def progression(self) -> tuple[int, int] | None:
        """The (start, step) of an index that is a slice with a positive step, None of any other."""
        if len(self) < 2:
            return (int(self.array[0]), 1) if len(self) else None
        start, step = int(self.array[0]), int(self.array[1] - self.array[0])
        return (start, step) if step > 0 and bool((np.diff(self.array) == step).all()) else None

    def tensor(self, device: torch.device) -> Tensor:
        """The index as an int64 tensor on `device`, made once."""
        found = self._tensors.get(device)
        if found is None:
            # the one copy that may be written (by nobody): torch warns about read-only memory
            found = torch.from_numpy(self.array.copy())
            if device.type != "cpu":
                found = found.to(device)
            # what was made inside a transform or a fake mode ends with it
            if type(found) is Tensor and not is_functorch_wrapped_tensor(found):
                self._tensors[device] = found
        return found

    def take(self, values: Tensor, dim: int) -> Tensor:
        """`values` read at the index along `dim`; a view where the index is a slice."""
        if self.progression is None:
            return values.index_select(dim, self.tensor(values.device))
        start, step = self.progression
        if step == 1:
            return values.narrow(dim, start, len(self))
        key = [slice(None)] * dim + [slice(start, start + step * (len(self) - 1) + 1, step)]
        return values[tuple(key)]


IndexLike: TypeAlias = Union[Index, Sequence[int], np.ndarray, Tensor]  # noqa: UP007 - Index is defined above


def frozen(array: np.ndarray) -> Index:
    """An Index of a fresh array that nobody else holds, without a copy."""
    array = np.ascontiguousarray(array, dtype=np.int64)
    array.flags.writeable = False
    made = Index(())
    made.array = array
    return made
