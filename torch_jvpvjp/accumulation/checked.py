"""Options that count or decide something, checked: whole numbers of any kind, and truth values."""

from __future__ import annotations

from operator import index as as_index


def whole(caller: str, name: str, value: object, *, least: int) -> int:
    """An option that counts something.

    Args:
        caller: The function to name in an error.
        name: The option.
        value: What it was given: a whole number of any kind, such as NumPy's; a bool counts nothing.
        least: The least value allowed.

    Returns:
        The value as a Python integer.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is too small.
    """
    number = integer_of(value)
    if number is None:
        raise TypeError(f"{caller}: {name} must be an integer, got {value!r}.")
    if number < least:
        raise ValueError(f"{caller}: {name} must be at least {least}, got {number}.")
    return number


def truth(caller: str, name: str, value: object) -> bool:
    """An option that is on or off.

    Args:
        caller: The function to name in an error.
        name: The option.
        value: What it was given.

    Returns:
        The value.

    Raises:
        TypeError: If it is neither True nor False.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{caller}: {name} must be True or False, got {value!r}.")
    return value


def integer_of(value: object) -> int | None:
    """Return the whole number of any kind, such as NumPy's, that a value is; None if it is none, as a bool."""
    if type(value) is int:
        return value
    if isinstance(value, bool):
        return None
    try:
        return as_index(value)  # pyright: ignore[reportArgumentType] (what has no index raises)
    except TypeError:
        return None
