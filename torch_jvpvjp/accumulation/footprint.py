"""What a call holds at most, in bytes: the executor does the plan on tensors without data, and each is counted."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._onednn import onednn_products
from ._torch import FakeTensorMode
from .tracing.results import Known, Results

_aten = torch.ops.aten
# On a CPU these bring operands and results into layouts of their own, of channels by 16, a copy of each while they run.
_COPYING = frozenset({_aten.convolution.default, _aten.convolution_backward.default, _aten._convolution.default})


class Footprint(TorchDispatchMode):
    """Counts the bytes of all tensors that are made under it, from when they are made to when nothing holds them.

    Views share what they look at. What an op needs for itself while it runs is counted for convolutions only.

    Args:
        fake: The mode in which tensors have no data; None if they have.
        given: Tensors that are there anyway.
        known: What ops return, remembered from one count to the next.

    Attributes:
        held: Bytes held now.
        peak: The most bytes that were held at one time.
    """

    def __init__(self, fake: FakeTensorMode | None, given: Iterable[Tensor] = (), known: Known | None = None) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._results = None if fake is None else Results(fake, known)
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._given = [tensor.untyped_storage() for tensor in given]
        self._known = {storage._cdata for storage in self._given}

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = self._result(func, args, kwargs or {})
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in made:
            self._seen(tensor)
        if func in _COPYING:
            copied = [*made, *(leaf for leaf in args if isinstance(leaf, Tensor))]
            self.peak = max(self.peak, self.held + sum(map(_by_channels, copied)))
        return out

    def _result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._results is None:
            return func(*args, **kwargs)
        products = onednn_products()
        if products is not None and func is products[1]:  # PyTorch cannot tell what that gives without data
            return torch.empty_like(args[1])
        return self._results(func, args, kwargs)

    def _seen(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self._alive or place in self._known:
            return

        def gone(_: Any) -> None:
            del self._alive[place]
            self.held -= size

        self._alive[place] = weakref.ref(storage, gone)
        self.held += size
        self.peak = max(self.peak, self.held)


def _by_channels(tensor: Tensor) -> int:
    """Return the bytes of a tensor (batch, channels, …) with its channels filled up to a multiple of 16."""
    if tensor.dim() < 3 or not tensor.numel():
        return tensor.nbytes
    channels = tensor.shape[1]
    return tensor.nbytes // channels * (-(-channels // 16) * 16)
