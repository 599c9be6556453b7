"""Whether a result of attention is right, before anybody times it: against float64, by rows of a few heads."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _attention_contenders import Hiding
from _attention_modes import Mode, Point
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS = 2  # heads are independent of one another; the first and the last are looked at
ROWS = 512  # of queries that are worked on in float64 at a time


@dataclass(frozen=True)
class Verdict:
    """How far a contender is off.

    Attributes:
        over_budget: The worst error of any result over 2 (MATH's error in that dtype + eps · max|y₆₄|).
        over_math: The worst error of any result over MATH's own error, or over one eps where MATH is luckier.
    """

    over_budget: float
    over_math: float


class AttentionJudge:
    """Errors of results against float64.

    The reference is PyTorch's MATH in float64 with PyTorch's own derivatives, for blocks of rows of queries: rows are
    independent given the keys, cotangents of keys and values are summed over the blocks.

    Args:
        mode: The derivative.
        at: The point, in the dtype that is judged.
        hiding: What hides keys.
    """

    def __init__(self, mode: Mode, at: Point, hiding: Hiding) -> None:
        self._mode, self._hiding = mode, hiding
        batch, heads = at.o_bar.shape[:2]
        self._places = sorted({(0, 0), (batch - 1, heads - 1)})[:HEADS]
        few = at.of(self._pick)
        self.exact = self._by_blocks(few.of(Tensor.double))
        low = self._by_blocks(few, rows=at.o_bar.shape[-2])  # MATH as it is called: all rows at once
        eps = torch.finfo(at.o_bar.dtype).eps
        scales = [float(t.abs().max()) for t in self.exact]
        self._own = [max(_distance(a, b), eps * s) for a, b, s in zip(low, self.exact, scales, strict=True)]
        self._budgets = [2 * (_distance(a, b) + eps * s) for a, b, s in zip(low, self.exact, scales, strict=True)]

    def __call__(self, results: Sequence[Tensor]) -> Verdict:
        """Judge what a contender returned, for all heads.

        Args:
            results: One tensor for each result of the mode.

        Returns:
            The verdict; infinite errors where there is NaN.
        """
        errors = [_distance(self._pick(t), exact) for t, exact in zip(results, self.exact, strict=True)]
        return Verdict(
            max(e / b for e, b in zip(errors, self._budgets, strict=True)),
            max(e / o for e, o in zip(errors, self._own, strict=True)),
        )

    def _pick(self, x: Tensor) -> Tensor:
        """The heads that are looked at, as a batch of one head: (…, HEADS, 1, N, d)."""
        return torch.stack([x[..., b, h, :, :] for b, h in self._places], -3).unsqueeze(-3)

    def _by_blocks(self, at: Point, rows: int = ROWS) -> list[Tensor]:
        length = at.o_bar.shape[-2]
        found: list[list[Tensor]] = []
        for a in range(0, length, rows):
            b = min(length, a + rows)
            cut = lambda t, a=a, b=b: t[..., a:b, :]  # noqa: E731
            primals, tangents, directions = ((cut(q), k, v) for q, k, v in at[:3])
            block = Point(primals, tangents, directions, cut(at.o_bar), cut(at.o_dot_bar))
            seen = self._hiding.rows(a, b, length, at.o_bar.device)

            def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = seen) -> Tensor:
                with sdpa_kernel(SDPBackend.MATH):
                    return torch.nn.functional.scaled_dot_product_attention(q, k, v, seen)

            results = self._mode.prepare(attend, block, lambda f: f)()
            found.append([t.detach() for t in results])
        return [
            torch.cat(blocks, -2) if by_row else torch.stack(blocks).sum(0)
            for blocks, by_row in zip(zip(*found, strict=True), self._mode.by_row, strict=True)
        ]


def _distance(actual: Tensor, exact: Tensor) -> float:
    if actual.shape != exact.shape:
        return float("inf")
    return float((actual.detach().double() - exact).abs().nan_to_num(nan=float("inf"), posinf=float("inf")).max())
