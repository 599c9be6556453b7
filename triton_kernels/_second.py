"""The seven results of second-order launches of norms, and room for them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Second(NamedTuple):
    """What a second-order launch is asked for (booleans) or gives (tensors or None); a and b are cotangents of ẏ and y.

    Attributes:
        x_first: (Jᵀa)_x.
        w_first: (Jᵀa)_w.
        bias_first: (Jᵀa)_b.
        x_second: (Jᵀb)_x + S_x.
        w_second: (Jᵀb)_w + S_w.
        bias_second: (Jᵀb)_b.
        y_dot: J(ẋ, ẇ, ḃ).
    """

    x_first: Any = None
    w_first: Any = None
    bias_first: Any = None
    x_second: Any = None
    w_second: Any = None
    bias_second: Any = None
    y_dot: Any = None


def second_results(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, wants: Second, shape: tuple[int, ...]
) -> Second:
    """Room for the wanted results.

    Args:
        x: What rows have the dtype of.
        weight: What w_first and w_second are like; without it there are none.
        bias: Likewise.
        wants: Which results.
        shape: Of x_first, x_second and y_dot.

    Returns:
        Fresh tensors, or None.
    """
    likes = (None, weight, bias, None, weight, bias, None)
    results = []
    for position, (wanted, like) in enumerate(zip(wants, likes, strict=True)):
        if not wanted or (like is None and position in (1, 2, 4, 5)):
            results.append(None)
        elif like is None:
            results.append(torch.empty(shape, dtype=x.dtype, device=x.device))
        else:
            results.append(torch.empty(like.shape, dtype=like.dtype, device=x.device))
    return Second(*results)
