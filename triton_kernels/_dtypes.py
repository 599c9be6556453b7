"""The dtype that kernels compute in: float64 for float64 operands, else float32."""

from __future__ import annotations

import torch
import triton.language as tl


def accumulator(dtype: torch.dtype) -> tl.dtype:
    """Return Triton's name of the dtype that a kernel over operands of `dtype` computes in."""
    return tl.float64 if dtype is torch.float64 else tl.float32


def partial_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return PyTorch's name of the same: the dtype of partial sums."""
    return torch.float64 if dtype is torch.float64 else torch.float32
