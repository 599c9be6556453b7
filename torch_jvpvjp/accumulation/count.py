"""Counting the arithmetic of a run, op by op."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, log2, prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .._zero_tangents import without_scaled_zeros

_aten = torch.ops.aten

# Matrix-vector and vector-vector products, which PyTorch's table of flops leaves out: one fma an entry of the largest.
_VECTOR_PRODUCTS = frozenset({_aten.mv, _aten.addmv, _aten.dot, _aten.vdot})

FOURIER = frozenset({_aten._fft_c2c, _aten._fft_r2c, _aten._fft_c2r})

# Ops that move or make entries and compute nothing.
_MOVES = frozenset({
    _aten.clone, _aten.copy_, _aten._to_copy, _aten.cat, _aten.stack, _aten.gather, _aten.index, _aten.index_select,
    _aten.embedding, _aten.constant_pad_nd, _aten.slice_backward, _aten.select_backward, _aten.fill_, _aten.zero_,
    _aten.zeros_like, _aten.ones_like, _aten.empty_like, _aten.full_like, _aten.new_zeros, _aten.new_empty,
    _aten.new_full, _aten.repeat, _aten.roll, _aten.flip, _aten.slice_scatter, _aten.select_scatter,
    _aten._efficientzerotensor, _aten.resolve_conj, _aten.resolve_neg, _aten.squeeze_, _aten.unsqueeze_, _aten.t_,
    _aten.transpose_, _aten.detach_, _aten._unsafe_view, _aten._reshape_alias, _aten._new_zeros_with_same_feature_meta,
})  # fmt: skip


class FmaCounter(TorchDispatchMode):
    """Counts fused multiply-adds of everything that runs under it, the entries that were written, and the ops.

    A matrix product, convolution or attention counts half its flops, as PyTorch counts them; an op that only moves
    entries, a view of course included, counts nothing; Fourier transforms of N entries half of 5 N log₂ N flops; any
    other op that makes a floating tensor counts one fma for each entry of its largest one, input or output, a complex
    entry being two.
    """

    def __init__(self) -> None:
        super().__init__()
        from torch.utils.flop_counter import flop_registry  # imports Triton where there is one, which is slow

        self._flops = flop_registry
        self.fma = 0
        self.written = 0
        self.launched = 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        func, args, kwargs = without_scaled_zeros(func, args, kwargs or {})
        out = func(*args, **kwargs)
        if func.is_view:
            return out
        self.launched += 1
        outputs, inputs = _sizes(out), _sizes((args, kwargs))
        self.written += sum(outputs)
        packet = func.overloadpacket
        if packet in self._flops:
            self.fma += self._flops[packet](*args, **kwargs, out_val=out) // 2
        elif packet in FOURIER:
            self.fma += fma_of_fourier(args[0].shape, args[1])
        elif packet in _VECTOR_PRODUCTS:
            self.fma += max(inputs, default=0)
        elif packet not in _MOVES and inputs and outputs:  # a comparison or a query makes no floating tensor
            self.fma += max(*inputs, *outputs)
        return out


def _sizes(tree: Any) -> list[int]:
    """Return the numbers of real entries of the floating and complex tensors in a tree."""
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))
    return [t.numel() * (1 + t.is_complex()) for t in tensors if t.is_floating_point() or t.is_complex()]


def fma_of_fourier(shape: torch.Size, dims: Sequence[int]) -> int:
    """Return the fma of the Fourier transforms of a tensor along some axes, each of N entries of half its numbers."""
    length = prod(shape[dim] for dim in dims)
    return ceil(2.5 * shape.numel() * log2(max(length, 2)))
