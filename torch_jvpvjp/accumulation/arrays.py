"""NumPy arrays whose entries must stay what they are, looked at in every call."""

from __future__ import annotations

from typing import Any

import numpy as np

MOST_BYTES = 1 << 20
"""Bytes of all arrays of a function that are compared in every call, which takes a tenth of a millisecond at most."""


class Arrays:
    """Arrays, with copies of what they hold, such as tables and calibrations.

    Attributes:
        arrays: The arrays.
        size: Their bytes.
    """

    def __init__(self) -> None:
        self.arrays: list[np.ndarray[Any, Any]] = []
        self._forms: list[Any] = []
        self._bytes: list[bytes] = []
        self.size = 0

    def add(self, array: np.ndarray[Any, Any]) -> None:
        """Add an array, with what it holds now."""
        self.arrays.append(array)
        self._forms.append(_form(array))
        self._bytes.append(array.tobytes())
        self.size += array.nbytes

    def hold(self) -> bool:
        """Return whether all arrays have the form and the very bits that they had."""
        same = list(map(_form, self.arrays)) == self._forms
        return same and [array.tobytes() for array in self.arrays] == self._bytes

    def restore(self) -> None:
        """Put back what stood in those that can be written into."""
        for array, (shape, _, dtype), held in zip(self.arrays, self._forms, self._bytes, strict=True):
            if array.flags.writeable and (array.shape, array.dtype) == (shape, dtype):
                array[...] = np.frombuffer(held, dtype).reshape(shape)


def _form(array: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    return array.shape, array.strides, array.dtype


def is_watchable(array: Any) -> bool:
    """Return whether the bytes of an array are all that there is to it, as they are not where it holds objects."""
    return type(array) is np.ndarray and not array.dtype.hasobject


def is_constant(value: Any) -> bool:
    """Return whether a value of NumPy's never changes: a number, a dtype, a function of arrays."""
    return (isinstance(value, np.generic) and not isinstance(value, np.void)) or isinstance(value, (np.dtype, np.ufunc))
