"""Cutting a tape: every value through which all of the derivative passes ends one region and begins the next.

Those values are the dominators of y in the graph of active values. In the order of the tape they are seen in one pass:
v is
one exactly if, once v is made, no other active value is used later on. For if u, made before, is used later by w, then
w
does not depend on v only through what comes after, and x → u → w → y is a path around v; and the other way round every
path around v has such an edge.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..structure import Identity
from .parts import Part
from .region import Region
from .tape import Tape, TapeOp


def regions(
    tape: Tape, part_of: Callable[[Tape, TapeOp, tuple[int, ...]], Part], limits: Mapping[str, int]
) -> list[Region]:
    """Return the regions of a tape, in order; none if y does not depend on x.

    Args:
        tape: The tape.
        part_of: Makes the part of an active op and its active outputs.
        limits: See `Region`.

    Returns:
        The regions. A view that only renames entries is no region of its own: it belongs to the one before.
    """
    ops = list(tape.active_ops())
    last_use = {index: place for place, op in enumerate(ops) for index in op.active}
    last_use[tape.result] = len(ops)
    found: list[Region] = []
    parts: list[Part] = []
    source, pending = tape.source, 0  # `pending`: the last place where a value made so far is used
    for place, op in enumerate(ops):
        outputs = tuple(index for index in op.outputs if index in last_use)
        parts.append(part_of(tape, op, outputs))
        latest = max(last_use[index] for index in outputs)
        others = max(pending, last_use[source])
        if len(outputs) == 1 and others <= place:
            found.append(Region(parts, source, outputs[0], **limits))
            parts, source, pending = [], outputs[0], 0
        else:
            pending = max(pending, latest)
    return _joined(found, limits)


def _joined(found: Sequence[Region], limits: Mapping[str, int]) -> list[Region]:
    """Return the regions with those that are the identity made part of a neighbour."""
    joined: list[Region] = []
    for region in found:
        black = region.opaque or (joined and joined[-1].opaque)  # called as it stands, with nothing before or after
        if joined and not black and (_renames(region) or _renames(joined[-1])):
            before = joined.pop()
            joined.append(Region([*before.parts, *region.parts], before.source, region.target, **limits))
        else:
            joined.append(region)
    return joined


def _renames(region: Region) -> bool:
    return all(
        part.arcs is not None and all(isinstance(arc.local.structure, Identity) for arc in part.arcs)
        for part in region.parts
    )
