"""The RMS norms that benchmarks compare, each as a function of x, shape (m, n), and w, shape (n,)."""

import importlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from _derivatives import RowOp
from torch import Tensor

from torch_jvpvjp import ops

EPS = 1e-6
OURS = "torch_jvpvjp"


def ours(x: Tensor, w: Tensor) -> Tensor:
    """The op that is judged."""  # noqa: DOC201
    return ops.rms_norm(x, (x.shape[-1],), w, EPS)


def torch_rms_norm(x: Tensor, w: Tensor) -> Tensor:
    """PyTorch's op."""  # noqa: DOC201
    return F.rms_norm(x, (x.shape[-1],), w, EPS)


def formula(x: Tensor, w: Tensor) -> Tensor:
    """The formula as models write it: computed in float32 at least, returned in the dtype of x."""  # noqa: DOC201
    wide = x if x.dtype == torch.float64 else x.float()
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return (unit * w.to(wide.dtype)).to(x.dtype)


@dataclass(frozen=True)
class Contender:
    """Somebody's RMS norm.

    Attributes:
        name: How tables call it.
        f: The op; None where its package is not installed.
        compiled: Whether ``torch.compile`` takes the whole operation.
        forward_mode: Whether it has a JVP at all.
    """

    name: str
    f: RowOp | None
    compiled: bool = False
    forward_mode: bool = True


def contenders() -> list[Contender]:
    """Everybody who takes part, those not installed included.

    Returns:
        Ours first.
    """
    return [
        Contender(OURS, ours),
        Contender("F.rms_norm", torch_rms_norm),
        Contender("formula", formula),
        Contender("compile(F.rms_norm)", torch_rms_norm, compiled=True),
        Contender("compile(formula)", formula, compiled=True),
        Contender("liger", _liger(), forward_mode=False),
        Contender("quack", _quack(), forward_mode=False),
    ]


def _liger() -> RowOp | None:
    function = _attribute("liger_kernel.ops.rms_norm", "LigerRMSNormFunction")
    if function is None:
        return None
    # offset 0, the rounding of Llama, and a backward that does not write into its cotangent.
    return lambda x, w: function.apply(x, w, EPS, 0.0, "llama", False)


def _quack() -> RowOp | None:
    function = _attribute("quack", "rmsnorm")
    return None if function is None else lambda x, w: function(x, w, eps=EPS)


def _attribute(module: str, name: str) -> Any:
    """A name of a package that may be absent, or broken on this machine."""
    try:
        return getattr(importlib.import_module(module), name)
    except Exception:
        return None
