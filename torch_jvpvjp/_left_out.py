"""Ops that others have given PyTorch, and whose derivatives it leaves out without a word.

A `torch.library.custom_op` has no forward mode: under `torch.func.jvp` its tangent is zero. An op without a kernel for
autograd has no derivative at all, or one that autograd alone sees, through what it is written in: `torch.func` does not
look inside, and its tangents and cotangents are zero. The ops of this package have kernels for autograd, which raise
where there is no derivative.

A few ops of PyTorch's own return more than one fraction and have the derivative of the first alone: the mean and the
factor by which `native_layer_norm` normalises are constants, as autograd sees them.
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


def first_constant(op: Any) -> int | None:
    """Return the place of the first result of an op that autograd takes for a constant, though it depends on x."""
    return _FIRST_CONSTANTS.get(op._schema.name)


_FIRST_CONSTANTS = {
    "aten::native_layer_norm": 1,
    "aten::native_group_norm": 1,  # up to 2.13
    "aten::native_batch_norm": 1,
    "aten::_native_batch_norm_legit": 1,
    "aten::_batch_norm_with_update": 1,
    "aten::linalg_lstsq": 2,  # the singular values
}


NAMES_WITH_CONSTANTS = [name.removeprefix("aten::") for name in _FIRST_CONSTANTS]
"""What the ops that have such results are called."""


def name_of_result(op: Any, place: int) -> str:
    """Return what to call a result of an op in an error."""
    return f"result {place} of {op._schema.name.removeprefix('aten::')}"


def without_derivative(names: Iterable[str]) -> str:
    """Return what to say of ops, or of results, that have no derivative at all."""
    return (
        f"{', '.join(names)}, of which PyTorch has no derivative (it would be taken for zero); give it one by "
        f"torch.library.register_autograd or torch_jvpvjp.differentiable_op, or write it in ops that have one"
    )
