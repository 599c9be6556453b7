"""Workloads of the normalisations: rows of 4096, heads of 128, images of 64 channels."""

from collections.abc import Iterator

import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from _op_workloads import Workload

N, HEAD, CHANNELS, SIDE, EPS = 4096, 128, 64, 32, 1e-6


def of_size(elements: int) -> Iterator[Workload]:
    """The workloads.

    Args:
        elements: About how many elements x has.

    Yields:
        One for each op.
    """
    rows, heads = max(1, elements // N), max(1, elements // HEAD)
    x, w = (rows, N), (N,)
    last = (N,)
    yield Workload("rms_norm", (x, w), lambda f, x, w: f(x, last, w, EPS), F.rms_norm)
    yield Workload("layer_norm", (x, w, w), lambda f, x, w, b: f(x, last, w, b, EPS), F.layer_norm)
    yield Workload("add_rms_norm", (x, x, w), lambda f, x, r, w: f(x, r, last, w, EPS))
    yield Workload("qk_rms_norm", ((heads, HEAD), (heads, HEAD), (HEAD,), (HEAD,)), lambda f, *a: f(*a, EPS))
    tokens = max(1, elements // (4 * 1024))
    modulated = ((4, tokens, 1024), (4, 1024), (4, 1024))
    yield Workload("modulated_layer_norm", modulated, lambda f, x, a, b: f(x, a, b))
    yield Workload("modulated_rms_norm", modulated, lambda f, x, a, b: f(x, a, b))
    images = max(1, elements // (CHANNELS * SIDE * SIDE))
    image = (images, CHANNELS, SIDE, SIDE)
    yield Workload("group_norm", (image, (CHANNELS,), (CHANNELS,)), lambda f, x, w, b: f(x, 8, w, b, EPS), F.group_norm)
    yield Workload("l2_norm", ((heads, HEAD),), lambda f, x: f(x))
    yield Workload("pixel_norm", (image,), lambda f, x: f(x))
