"""Ops that others have given PyTorch, and whose derivatives it leaves out without a word.

A `torch.library.custom_op` has no forward mode: under `torch.func.jvp` its tangent is zero. An op without a kernel for
autograd has no derivative at all, or one that autograd alone sees, through what it is written in: `torch.func` does not
look inside, and its tangents and cotangents are zero. The ops of this package have kernels for autograd, which raise
where there is no derivative.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS

_PYTORCHS = frozenset({"aten", "prims", "prim", "quantized", "profiler"})
_AUTOGRAD = ("Autograd", "AutogradCPU", "AutogradCUDA", "AutogradOther", "CompositeImplicitAutograd")


def is_left_out(op: Any) -> bool:
    """Return whether `torch.func` has no tangents for an op, and takes them for zero."""
    if getattr(op, "namespace", "aten") in _PYTORCHS:
        return False
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return op._schema.name in OPDEFS or not any(has_kernel(op.name(), key) for key in _AUTOGRAD)


def without_derivative(names: Iterable[str]) -> str:
    """Return what to say of such ops that have no derivative at all."""
    return (
        f"{', '.join(names)}, of which PyTorch has no derivative (it would be taken for zero); give it one by "
        f"torch.library.register_autograd, or declare it by torch_jvpvjp.differentiable_op"
    )
