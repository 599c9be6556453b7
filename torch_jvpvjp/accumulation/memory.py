"""Memory limits: how much a call may hold, and how many columns a sweep may then carry at once."""

from __future__ import annotations

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def read_memory(caller: str, limit: int | str | None) -> int | None:
    """A memory limit in bytes.

    Args:
        caller: The function to name in an error.
        limit: Bytes, or a text such as "8GB" or "512MiB"; None for no limit.

    Returns:
        Bytes, or None.

    Raises:
        TypeError: If it is neither.
        ValueError: If the text is no size, or the size not positive.
    """
    if limit is None:
        return None
    if isinstance(limit, str):
        text = limit.replace(" ", "").upper()
        digits = text.rstrip("BKMGTI")
        try:
            number = int(float(digits) * _UNITS[text[len(digits) :]])
        except (ValueError, KeyError, OverflowError):  # no number, no unit, or infinite
            raise ValueError(
                f"{caller}: memory_limit must be a size such as '8GB' or '512MiB', got {limit!r}."
            ) from None
    elif isinstance(limit, int) and not isinstance(limit, bool):
        number = limit
    else:
        raise TypeError(f"{caller}: memory_limit must be bytes or a size such as '8GB', got {type(limit).__name__}.")
    if number <= 0:
        raise ValueError(f"{caller}: memory_limit must be positive, got {limit!r}.")
    return number


def chunk_for(limit: int, itemsize: int, resident: int, column: int) -> int:
    """Return how many columns of `column` entries fit beside `resident` ones within a limit in bytes; one at least."""
    return max(1, (limit // itemsize - resident) // max(column, 1))
