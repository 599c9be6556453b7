"""Contexts in which PyTorch does what the accumulator needs, by private names of PyTorch where there are no others."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def with_lists_of_weights(module: nn.Module) -> Iterator[None]:
    """Put back the lists that recurrent networks keep of their weights, once they were called with others."""
    networks = [one for one in module.modules() if isinstance(one, nn.RNNBase)]
    kept = [(one, name, vars(one)[name]) for one in networks for name in LISTS_OF_WEIGHTS]
    try:
        yield
    finally:
        for one, name, weights in kept:
            vars(one)[name] = weights


LISTS_OF_WEIGHTS = frozenset({"_flat_weights", "_flat_weight_refs"})
"""What a recurrent network makes anew in a call that finds other weights, as `torch.func.functional_call` gives it."""


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Let composite functions be the plain ops that each derivative is known of: no fused attention, no oneDNN LSTM."""
    with _WITHOUT_ONEDNN, plain_attention():
        yield


class _WithoutOneDNN:
    """Turns oneDNN off for the process, and on again, if it was, when the last of its threads has left."""

    def __init__(self) -> None:
        self._lock, self._inside, self._enabled = Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._enabled = torch._C._get_mkldnn_enabled()
                torch._C._set_mkldnn_enabled(False)
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch._C._set_mkldnn_enabled(self._enabled)


_WITHOUT_ONEDNN = _WithoutOneDNN()


@contextmanager
def quietly() -> Iterator[None]:
    """Keep PyTorch from logging each op that does not run without data: whoever tries it goes another way then."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was


def plain_attention() -> Any:
    """Return a context in which `scaled_dot_product_attention` is its formula: fused, it has but first derivatives."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def bases_without_writing() -> Iterator[None]:
    """A context in which `jacfwd`, `jacrev` and `hessian` make their bases without writing, which is not recorded.

    Another thread that uses them meanwhile gets the same bases.
    """
    module = importlib.import_module("torch._functorch.eager_transforms")
    if not hasattr(module, _BASES):
        yield
        return
    setattr(module, _BASES, _bases)
    try:
        yield
    finally:
        setattr(module, _BASES, _OWN_BASES)


@contextmanager
def checks_without_branches() -> Iterator[None]:
    """A context in which the checks of `torch.distributions` that a matrix is positive look at no value on their way.

    They look first whether it is symmetric. Another thread that uses them meanwhile gets the same truth.
    """
    own = [(one, vars(one).get("check")) for one in (_Definite, _Semidefinite)]
    if any(check is None for _, check in own):
        yield
        return
    try:
        _Definite.check = _is_definite
        _Semidefinite.check = _is_semidefinite
        yield
    finally:
        for one, check in own:
            one.check = check


_Definite: Any = type(constraints.positive_definite)
_Semidefinite: Any = type(constraints.positive_semidefinite)


def _is_definite(_: Any, value: Tensor) -> Tensor:
    return constraints.symmetric.check(value) & torch.linalg.cholesky_ex(value).info.eq(0)


def _is_semidefinite(_: Any, value: Tensor) -> Tensor:
    return constraints.symmetric.check(value) & torch.linalg.eigvalsh(value).ge(0).all(-1)


_BASES = "_chunked_standard_basis_for_"
_OWN_BASES = getattr(importlib.import_module("torch._functorch.eager_transforms"), _BASES, None)


def _bases(
    tensors: Sequence[Tensor], sizes: Sequence[int], chunk_size: int | None = None
) -> Iterator[tuple[Tensor, ...]]:
    """Yield the rows of the identity, a chunk at a time, split into pieces in the shapes of some tensors."""
    total = sum(sizes)
    starts = list(accumulate(sizes, initial=0))
    size = total if chunk_size is None else chunk_size
    for first in range(0, max(total, 1), max(size, 1)):
        last = min(first + size, total)
        yield tuple(
            (
                torch.arange(first, last, device=tensor.device)[:, None]
                == torch.arange(start, start + tensor.numel(), device=tensor.device)
            )
            .to(tensor.dtype)
            .view(last - first, *tensor.shape)
            for tensor, start in zip(tensors, starts, strict=False)
        )
