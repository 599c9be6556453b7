"""Workloads of attention: 8 heads of 64, sequences of 256. ``bench_attention.py`` has the lengths that matter."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from _op_workloads import Workload
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, LENGTH, SIZE = 8, 256, 64


def scaled_dot_product_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """PyTorch's, the one that it can differentiate forward and twice."""  # noqa: DOC201
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v)


def of_size(elements: int) -> Iterator[Workload]:
    """The workloads.

    Args:
        elements: About how many elements q has.

    Yields:
        One for each op.
    """
    length = min(LENGTH, max(8, elements // (HEADS * SIZE)))
    batch = max(1, elements // (HEADS * length * SIZE))
    heads, packed = (batch, HEADS, length, SIZE), (batch * length, HEADS, SIZE)
    attend = lambda f, q, k, v: f(q, k, v)  # noqa: E731
    yield Workload("scaled_dot_product_attention", (heads,) * 3, attend, scaled_dot_product_attention)
    yield Workload("attention_jvp", (heads,) * 6, lambda f, *tensors: f(*tensors))

    def lengths(device: torch.device) -> tuple[Tensor, ...]:
        return (torch.arange(0, batch * length + 1, length, device=device),)

    yield Workload("varlen_attention", (packed,) * 3, lambda f, q, k, v, c: f(q, k, v, c, c), constants=lengths)
