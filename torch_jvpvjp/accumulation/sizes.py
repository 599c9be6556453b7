"""The factors of a chain that is known by its sizes, costs and structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from .checked import integer_of
from .factor import Factor
from .structure import Dense, Structure, structure_from_data

Structured = Structure | Mapping[str, Any] | None


def factors_from_sizes(
    dims: Sequence[int],
    costs: Mapping[str, Sequence[int] | None],
    structures: Sequence[Structured] | None,
) -> tuple[Factor, ...]:
    """The factors that `Chain.from_sizes` makes.

    Args:
        dims: Sizes d_0 .. d_q.
        costs: "edges", "jvp_cost", "vjp_cost" and "tape", each None or one number for each factor.
        structures: None, or for each factor a Structure, an object of a chain file, or None for a dense one.

    Returns:
        The factors. Their Jacobians are given if there are no costs.

    Raises:
        ValueError: If sizes are not positive, costs negative, their number is not that of the factors, only some of
            the costs are there, or a structure does not fit its sizes.
        TypeError: If one of them is of the wrong type.
    """  # noqa: DOC502 (the TypeError is raised by _integers and _structure)
    sizes = _integers("dims", dims, least=1)
    if len(sizes) < 2:
        raise ValueError(f"Chain.from_sizes: dims must hold at least two sizes, got {sizes}.")
    pushed, pulled, held = _costs(costs, len(sizes) - 1)
    kinds = _structures(structures, sizes)
    given = pushed is None
    missing: list[int | None] = [None] * (len(sizes) - 1)
    return tuple(
        Factor(n, m, jvp, vjp, tape, kind or (Dense(m, n) if given else None), given=given)
        for (n, m), jvp, vjp, tape, kind in zip(
            pairwise(sizes), pushed or missing, pulled or missing, held or missing, kinds, strict=True
        )
    )


def _costs(
    named: Mapping[str, Sequence[int] | None], factors: int
) -> tuple[list[int] | None, list[int] | None, list[int] | None]:
    """Costs of a JVP, of a VJP and tapes, checked; None where there are none.

    Args:
        named: The costs by name; "edges" stands for those that are not there.
        factors: How many factors there are.

    Returns:
        One list for each.

    Raises:
        ValueError: If their number is not that of the factors, or only some of the costs are there.
    """
    costs = {name: _integers(name, values, least=0) for name, values in named.items() if values is not None}
    for name, values in costs.items():
        if len(values) != factors:
            raise ValueError(
                f"Chain.from_sizes: {name} must hold one number for each of the {factors} factors, got {len(values)}."
            )
    if "edges" in costs:
        costs = {name: costs.get(name, costs["edges"]) for name in ("jvp_cost", "vjp_cost", "tape")}
    if costs and not {"jvp_cost", "vjp_cost"} <= costs.keys():
        raise ValueError(
            f"Chain.from_sizes: jvp_cost and vjp_cost must be given together, or edges for all, got {list(costs)}."
        )
    return costs.get("jvp_cost"), costs.get("vjp_cost"), costs.get("tape")


def _structures(structures: Sequence[Structured] | None, sizes: list[int]) -> list[Structure | None]:
    """The structure of each factor, checked.

    Args:
        structures: What `from_sizes` was given.
        sizes: d_0 .. d_q.

    Returns:
        A structure for each factor, None for a dense one.

    Raises:
        ValueError: If their number is not that of the factors, or one does not fit its sizes.
        TypeError: If they are not a sequence.
    """
    if structures is None:
        return [None] * (len(sizes) - 1)
    if isinstance(structures, (str, Mapping)) or not isinstance(structures, Sequence):
        raise TypeError(
            f"Chain.from_sizes: structures must be a sequence of structures, got {type(structures).__name__}."
        )
    if len(structures) != len(sizes) - 1:
        raise ValueError(
            f"Chain.from_sizes: structures must hold one for each of the {len(sizes) - 1} factors, got "
            f"{len(structures)}."
        )
    found: list[Structure | None] = []
    for place, (value, (n, m)) in enumerate(zip(structures, pairwise(sizes), strict=True), 1):
        structure = _structure(place, value, m, n)
        if structure is not None and (structure.m, structure.n) != (m, n):
            raise ValueError(
                f"Chain.from_sizes: the structure of factor F{place} must be of shape ({m}, {n}) as dims say, got "
                f"{structure.name} of shape ({structure.m}, {structure.n})."
            )
        found.append(None if isinstance(structure, Dense) else structure)
    return found


def _structure(place: int, value: Structured, m: int, n: int) -> Structure | None:
    """One structure.

    Args:
        place: Which factor, from 1.
        value: What `from_sizes` was given for it.
        m: Its outputs, for an object that does not say.
        n: Its inputs, likewise.

    Returns:
        The structure.

    Raises:
        ValueError: If an object is no structure.
        TypeError: If it is neither a Structure nor an object.
    """
    if value is None or isinstance(value, Structure):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(
            f"Chain.from_sizes: the structure of factor F{place} must be a Structure, an object like "
            f'{{"kind": "diag"}}, or None, got {type(value).__name__}.'
        )
    try:
        return structure_from_data({"m": m, "n": n, **value})  # sizes that the object does not say are those of dims
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Chain.from_sizes: the structure of factor F{place} must be a known one of shape ({m}, {n}), got {error}"
        ) from error


def _integers(name: str, values: Sequence[int], *, least: int) -> list[int]:
    """The values as Python integers, checked.

    Args:
        name: The argument to name.
        values: What it was given.
        least: The least value allowed.

    Returns:
        The values.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If one is less than the least.
    """
    found = [integer_of(value) for value in values] if hasattr(values, "__len__") else [None]  # an iterator is used up
    numbers = [number for number in found if number is not None]
    if len(numbers) < len(found):
        raise TypeError(f"Chain.from_sizes: {name} must be a sequence of integers, got {values!r}.")
    wrong = [number for number in numbers if number < least]
    if wrong:
        raise ValueError(f"Chain.from_sizes: {name} must be at least {least} each, got {wrong[0]}.")
    return numbers
