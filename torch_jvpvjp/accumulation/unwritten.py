"""What a function writes into when it is tried, such as running statistics, put back as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_MOST_KEPT = 1 << 16  # entries of a tensor; running statistics and counts have few


class Unwritten:
    """A context at whose end tensors that were written into hold again what they held when they were kept."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, functions: Sequence[Callable[..., Any]], tensors: Iterable[Tensor]) -> None:
        """Keep the values of buffers of modules, and of other tensors that are no parameters."""
        modules = [function for function in functions if isinstance(function, nn.Module)]
        buffers = [buffer for module in modules for buffer in module.buffers()]
        for tensor in (*buffers, *tensors):
            small = tensor.numel() <= _MOST_KEPT and tensor.layout is torch.strided
            if small and not isinstance(tensor, nn.Parameter) and not tensor.is_inference():
                self._kept.setdefault(id(tensor), (tensor, tensor.detach().clone()))

    def __enter__(self) -> Unwritten:
        return self

    def __exit__(self, *error: object) -> None:
        with torch.no_grad():
            for tensor, before in self._kept.values():  # versions do not tell: batch normalisation leaves them be
                if not torch.equal(tensor, before):
                    tensor.copy_(before)
