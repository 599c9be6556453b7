"""Which tensors of a recording look at one memory: one that nobody else looks at may be written into unseen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .._torch import memory_of
from .tape import place_of


class Sharing:
    """How many tensors look at each memory, and at each piece of one that was split into pieces."""

    def __init__(self) -> None:
        self._tensors: Counter[int] = Counter()
        self._pieces: dict[int, Counter[Any]] = {}

    def add(self, tensor: Tensor) -> None:
        """Take note of a tensor that was not there before."""
        memory = memory_of(tensor)
        self._tensors[memory] += 1
        counts = self._pieces.get(memory)
        if counts is not None:
            counts[place_of(tensor) if place_of(tensor) in counts else None] += 1

    def split(self, pieces: Iterable[Tensor | None]) -> None:
        """Take note of pieces that share no entry, made of what is not used again, as `unsafe_split` makes them."""
        for piece in pieces:
            if piece is not None:
                counts = self._pieces.setdefault(piece.untyped_storage()._cdata, Counter())
                counts[place_of(piece)] += 1

    def is_alone(self, tensor: Tensor) -> bool:
        """Return whether no other tensor looks at the entries of one."""
        memory = memory_of(tensor)
        counts = self._pieces.get(memory)
        if counts is None:
            return self._tensors[memory] == 1
        return counts[place_of(tensor)] == 1 and not counts[None]


_aten = torch.ops.aten
APART = {
    _aten.unsafe_split.Tensor: _aten.split.Tensor,
    _aten.unsafe_split_with_sizes.default: _aten.split_with_sizes.default,
}
"""Ops whose results may be written into as if they were no views, with what they compute."""
