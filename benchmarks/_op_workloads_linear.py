"""Workloads of linear maps: rotary embeddings of heads of 128, layers of 1024 features."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from _op_workloads import Workload
from torch import Tensor

FEATURES, HEADS, HEAD = 1024, 8, 128


def linear_cross_entropy(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """As models write it."""  # noqa: DOC201
    return F.cross_entropy(F.linear(x, weight), target)


def of_size(elements: int) -> Iterator[Workload]:
    """The workloads.

    Args:
        elements: About how many elements x has.

    Yields:
        One for each op.
    """
    tokens = max(1, elements // (HEADS * HEAD))
    q = (1, HEADS, tokens, HEAD)

    def table(device: torch.device) -> tuple[Tensor, ...]:
        rates = 10000.0 ** -(torch.arange(HEAD // 2, device=device) / (HEAD // 2))
        angles = torch.arange(tokens, device=device)[:, None] * rates
        return angles.cos(), angles.sin()

    yield Workload("rope", (q, q), lambda f, q, k, cos, sin: f(q, k, cos, sin), constants=table)
    rows = max(1, elements // FEATURES)
    layer = ((rows, FEATURES), (FEATURES, FEATURES), (FEATURES,))
    yield Workload("linear", layer, lambda f, x, w, b: f(x, w, b), F.linear)

    def classes(device: torch.device) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(1)
        return (torch.randint(FEATURES, (rows,), generator=generator, device=device),)

    yield Workload(
        "linear_cross_entropy",
        layer[:2],
        lambda f, x, w, t: f(x, w, t),
        linear_cross_entropy,
        constants=classes,
        change=lambda x, w: (x, w / FEATURES**0.5),
    )
