"""What a tree of steps holds over time, as hills and valleys, and the order of its steps that holds least.

While a block is formed, held entries climb to a hill and fall to a valley again and again. The first hill that matters
is the highest, the first valley the lowest after it, the next hill the highest after that, and so on: hills fall and
valleys rise to what the block leaves held. Work on another block is best put in at the valleys. Two blocks are formed
together with the least peak by taking the pieces of both, each from valley to valley, by falling hill − valley.

Source: Liu (1987), An application of generalized tree pebbling to sparse matrix factorization, SIAM J. Algebraic
Discrete Methods 8.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import merge
from typing import NamedTuple

from .bracket import Bracket


class Piece(NamedTuple):
    """What is done from one valley to the next: held entries at most, and at its end, with the steps if kept."""

    hill: int
    valley: int
    steps: tuple[Bracket, ...] = ()


Profile = tuple[Piece, ...]


def formed(operands: Sequence[Profile], held: int, steps: tuple[Bracket, ...] = ()) -> Profile:
    """The profile of forming a block.

    Args:
        operands: Profiles of the one or two blocks that it is made of, or none.
        held: Entries that it leaves held.
        steps: The step that makes it of them, to be kept in the profile; none if only the numbers matter.

    Returns:
        The profile, which no other order of the same steps betters.
    """
    now = [0] * len(operands)
    pieces: list[Piece] = []
    labelled = [[(piece.valley - piece.hill, place, piece) for piece in p] for place, p in enumerate(operands)]
    for _, place, piece in merge(*labelled, key=lambda item: item[0]):
        beside = sum(now) - now[place]
        pieces.append(Piece(beside + piece.hill, beside + piece.valley, piece.steps))
        now[place] = piece.valley
    pieces.append(Piece(sum(now) + held, held, steps))
    return _canonical(pieces)


def _canonical(pieces: list[Piece]) -> Profile:
    """Return the pieces joined so that hills fall and valleys rise."""
    found: list[Piece] = []
    for piece in pieces:
        # A valley that a later one undercuts, or whose next hill is as high as its own, is no place to wait at.
        while found and (found[-1].valley >= piece.valley or found[-1].hill <= piece.hill):
            before = found.pop()
            piece = Piece(max(before.hill, piece.hill), piece.valley, before.steps + piece.steps)
        found.append(piece)
    return tuple(found)


def betters(profile: Profile, other: Profile) -> bool:
    """Whether a block can be formed by one profile wherever it can be by another, and leaves as much held.

    While the other climbs a hill there is room for hills as high; where it waits in a valley, one must wait as low.

    Args:
        profile: One.
        other: The other.

    Returns:
        Whether the first is nowhere worse.
    """
    place = 0
    for piece in other:
        target = place
        while target < len(profile) and profile[target].valley <= piece.valley:
            target += 1
        if target > place and profile[place].hill > piece.hill:
            return False
        place = target
    return place == len(profile)


def least_peak_order(brackets: Iterable[Bracket], held: Mapping[tuple[int, int], int]) -> tuple[int, list[Bracket]]:
    """The order of the steps of one plan that holds least.

    Args:
        brackets: The steps, operands before results.
        held: Entries that each block leaves held.

    Returns:
        The peak, and the steps in that order.
    """
    profiles: dict[tuple[int, int], Profile] = {}
    for bracket in brackets:
        operands = [profiles.pop(span) for span in bracket.operands]
        profiles[bracket.span] = formed(operands, held[bracket.span], (bracket,))
    (whole,) = profiles.values()
    return whole[0].hill, [step for piece in whole for step in piece.steps]
