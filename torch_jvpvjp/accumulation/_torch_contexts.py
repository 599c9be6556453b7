"""Contexts in which PyTorch does what the accumulator needs, by private names of PyTorch where there are no others."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from .._process_state import Exchanged


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
def outside_inference() -> Iterator[None]:
    """Leave inference mode, in which `torch.func` gives zeros up to 2.11; gradients stay on or off."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    grad = torch.is_grad_enabled()
    with torch.inference_mode(mode=False), torch.set_grad_enabled(grad):
        yield


def usable(tensor: Tensor) -> Tensor:
    """Return a tensor that autograd takes outside of inference mode: a copy of one of inference."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Let composite functions be the plain ops that each derivative is known of: no fused attention, no oneDNN LSTM."""
    with _WITHOUT_ONEDNN, _PLAIN_ATTENTION:
        yield


def plain_attention() -> AbstractContextManager[None]:
    """Return a context in which `scaled_dot_product_attention` is its formula: fused, it has but first derivatives.

    Another thread that calls it meanwhile gets the formula as well.
    """
    return _PLAIN_ATTENTION


def quietly() -> AbstractContextManager[None]:
    """Keep PyTorch from logging each op that does not run without data: whoever tries it goes another way then."""
    return _QUIET


def bases_without_writing() -> AbstractContextManager[None]:
    """Return a context in which `jacfwd`, `jacrev` and `hessian` make bases without writing, which is not recorded.

    Another thread that uses them meanwhile gets the same bases.
    """
    return _BASES_WITHOUT_WRITING


def checks_without_branches() -> AbstractContextManager[None]:
    """Return a context in which `torch.distributions` checks that matrices are positive and looks at no value for it.

    It looks first whether they are symmetric. Another thread that uses them meanwhile gets the same truth.
    """
    return _CHECKS_WITHOUT_BRANCHES


# ---- what is changed in the process, and put back -------------------------------------------------------------------


def _turn_onednn_off() -> Callable[[], object]:
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    return lambda: torch._C._set_mkldnn_enabled(enabled)


def _choose_math() -> Callable[[], object]:
    # What `sdpa_kernel(SDPBackend.MATH)` does, in a tenth of its time; what is as it shall be is left.
    changed = [(enable, not chosen) for enabled, enable, chosen in _ATTENTIONS if enabled() is not chosen]
    for enable, before in changed:
        enable(not before)

    def put_back() -> None:
        for enable, before in changed:
            enable(before)

    return put_back


_ATTENTIONS: tuple[tuple[Callable[[], bool], Callable[[bool], None], bool], ...] = (
    (torch._C._get_math_sdp_enabled, torch._C._set_sdp_use_math, True),
    (torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash, False),
    (torch._C._get_mem_efficient_sdp_enabled, torch._C._set_sdp_use_mem_efficient, False),
    (torch._C._get_cudnn_sdp_enabled, torch._C._set_sdp_use_cudnn, False),
)[: None if torch.backends.cuda.is_built() else 2]  # a build without CUDA has the first two


def _silence() -> Callable[[], object]:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was, log.disabled = log.disabled, True
    return lambda: setattr(log, "disabled", was)


def _exchange_bases() -> Callable[[], object]:
    module, name = importlib.import_module("torch._functorch.eager_transforms"), "_chunked_standard_basis_for_"
    own = getattr(module, name, None)
    if own is None:
        return lambda: None
    setattr(module, name, _bases)
    return lambda: setattr(module, name, own)


def _exchange_checks() -> Callable[[], object]:
    kinds: tuple[Any, ...] = (_Definite, _Semidefinite)
    own = [vars(kind).get("check") for kind in kinds]
    if None in own:
        return lambda: None
    _Definite.check, _Semidefinite.check = _is_definite, _is_semidefinite

    def put_back() -> None:
        for kind, check in zip(kinds, own, strict=True):
            kind.check = check

    return put_back


_Definite: Any = type(constraints.positive_definite)
_Semidefinite: Any = type(constraints.positive_semidefinite)


def _is_definite(_: Any, value: Tensor) -> Tensor:
    return constraints.symmetric.check(value) & torch.linalg.cholesky_ex(value).info.eq(0)


def _is_semidefinite(_: Any, value: Tensor) -> Tensor:
    return constraints.symmetric.check(value) & torch.linalg.eigvalsh(value).ge(0).all(-1)


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


_WITHOUT_ONEDNN = Exchanged(_turn_onednn_off)
_PLAIN_ATTENTION = Exchanged(_choose_math)
_QUIET = Exchanged(_silence)
_BASES_WITHOUT_WRITING = Exchanged(_exchange_bases)
_CHECKS_WITHOUT_BRANCHES = Exchanged(_exchange_checks)
