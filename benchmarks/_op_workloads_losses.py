"""Workloads of softmax and the losses: 4096 classes or entries in a row."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from _op_workloads import Workload
from torch import Tensor

N = 4096


def _distributions(x: Tensor, target: Tensor) -> Sequence[Tensor]:
    return x.log_softmax(-1), target.softmax(-1)


def of_size(elements: int) -> Iterator[Workload]:
    """The workloads.

    Args:
        elements: About how many elements x has.

    Yields:
        One for each op.
    """
    rows = max(1, elements // N)
    x = (rows, N)
    yield Workload("softmax", (x,), lambda f, x: f(x, -1), F.softmax)
    yield Workload("log_softmax", (x,), lambda f, x: f(x, -1), F.log_softmax)
    yield Workload("logsumexp", (x,), lambda f, x: f(x, -1), torch.logsumexp)

    def classes(device: torch.device) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(1)
        return (torch.randint(N, (rows,), generator=generator, device=device),)

    yield Workload("cross_entropy", (x,), lambda f, x, t: f(x, t), F.cross_entropy, constants=classes)
    kl_div = lambda f, x, t: f(x, t, reduction="batchmean")  # noqa: E731
    yield Workload("kl_div", (x, x), kl_div, F.kl_div, change=_distributions)
    yield Workload("js_div", (x, x), lambda f, x, t: f(x, t), change=_distributions)
    yield Workload("mse_loss", (x, x), lambda f, x, t: f(x, t), F.mse_loss)
    yield Workload("huber_loss", (x, x), lambda f, x, t: f(x, t), F.huber_loss)
