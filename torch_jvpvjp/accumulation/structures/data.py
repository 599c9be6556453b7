"""Structures from the dictionaries of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .base import Structure


def structure_from_data(data: Mapping[str, Any]) -> Structure:
    """Make the structure that `Structure.to_data` wrote, or that a file of chains gives.

    Args:
        data: "kind" ("dense", "diag", "banded", "block_diag", "lower_tri", "pool", "gather", or the name of another)
            and the sizes of that kind ("m", "n", "kl", "ku", "b", "idx", …).

    Returns:
        The structure.

    Raises:
        ValueError: If the kind is unknown, a size is missing, or m and n are not those of the structure.
    """
    kind = data.get("kind")
    found = _kind(kind) if isinstance(kind, str) else None
    if found is None:
        known = ", ".join(sorted({known.kind for known in Structure.KINDS.values()}))
        raise ValueError(f"structure_from_data: kind must be one of {known}; got {kind!r}.")
    arguments: dict[str, Any] = {}
    for field in fields(found):  # pyright: ignore[reportArgumentType] - every structure is a dataclass
        key = "idx" if field.name == "index" else field.name
        if key not in data:
            raise ValueError(f"structure_from_data: a {kind} must have {key!r}, got only {', '.join(map(repr, data))}.")
        value = data[key]
        arguments[field.name] = structure_from_data(value) if isinstance(value, Mapping) else value
    structure = found(**arguments)
    for key, size in (("m", structure.m), ("n", structure.n)):
        if data.get(key, size) != size:
            raise ValueError(f"structure_from_data: {key} of {structure} must be {size}, got {data[key]!r}.")
    return structure


def _kind(name: str) -> type[Structure] | None:
    """Return the class of a kind, whether its words are joined by - or by _."""
    return Structure.KINDS.get(name) or Structure.KINDS.get(name.replace("_", "-"))
