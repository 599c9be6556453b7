"""How a gated op takes gate and up, as two tensors or as the halves of one, and how rules get at them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._arithmetic import cotangents_like, wide

Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Halves:
    """The form of the arguments.

    Attributes:
        packed: None for two tensors (gate, up, ...); for one tensor (x, ...), its last axis holding both, "gate first"
            or "gate last".
    """

    packed: str | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensor arguments."""
        return ("gate", "up") if self.packed is None else ("x",)

    def pair(self, values: Any, suffix: str = "") -> Pair:
        """Gate and up among what a rule receives.

        Args:
            values: Inputs, primals, tangents or cotangents.
            suffix: Behind the names: "" for primals, "_dot" for tangents, "_bar" for cotangents.

        Returns:
            The two tensors, views if they are packed, or None where absent.
        """
        if self.packed is None:
            return getattr(values, f"gate{suffix}"), getattr(values, f"up{suffix}")
        return self.split(getattr(values, f"x{suffix}"))

    def split(self, x: Tensor | None) -> Pair:
        """Gate and up of a packed tensor.

        Args:
            x: The tensor, or None.

        Returns:
            Two views, or two None.
        """
        if x is None:
            return None, None
        half = x.shape[-1] // 2
        first, last = x[..., :half], x[..., half:]
        return (first, last) if self.packed == "gate first" else (last, first)

    def wide_pair(self, values: Any, like: Tensor, suffix: str = "") -> Pair:
        """`pair` in the dtype that the op computes in.

        Args:
            values: Inputs, primals, tangents or cotangents.
            like: The argument that decides.
            suffix: Behind the names.

        Returns:
            The two tensors, or None where absent.
        """
        gate, up = self.pair(values, suffix)
        return wide(gate, like), wide(up, like)

    def cotangents(self, pair: Pair, values: Any, suffix: str = "") -> tuple[Tensor | None, ...]:
        """Cotangents of gate and up as cotangents of the arguments.

        Args:
            pair: Both, not yet summed over what was broadcast; None is zero.
            values: Where the arguments are found.
            suffix: Behind their names.

        Returns:
            One for each tensor argument, of its shape and dtype; None for an absent one.
        """
        arguments = self.pair(values, suffix)
        if self.packed is None:
            return cotangents_like(pair, arguments)
        gate, up = arguments
        if gate is None or all(t is None for t in pair):
            return (None,)
        found = cotangents_like(pair, arguments)
        parts = [torch.zeros_like(a) if t is None else t for t, a in zip(found, (gate, up), strict=True)]
        return (torch.cat(parts if self.packed == "gate first" else parts[::-1], -1),)

    def needs(self, needs: tuple[bool, ...]) -> tuple[bool, bool]:
        """Which parts are wanted, from which arguments' cotangents are.

        Args:
            needs: One for each tensor argument.

        Returns:
            One for gate and one for up.
        """
        return (needs[0], needs[1]) if self.packed is None else (needs[0], needs[0])
