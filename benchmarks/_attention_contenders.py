"""The attentions that are compared, each a function of q, k, v alone."""

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from _attention_modes import FORWARD, JVP, JVPS, MODES, VJP, Attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_jvpvjp import ops

OURS, FUSED, MATH, COMPILED, PEER = "torch_jvpvjp", "fused SDPA", "MATH", "compiled MATH", "jvp_flash_attention"


@dataclass(frozen=True)
class Hiding:
    """What hides keys.

    Attributes:
        name: "none", "causal" or "mask".
        mask: The mask, bool, (1, 1, N, N), or None.
    """

    name: str
    mask: Tensor | None = None

    @staticmethod
    def of(name: str, length: int, device: torch.device) -> "Hiding":
        """Three of ten keys, at random, if it is a mask."""  # noqa: DOC201
        if name != "mask":
            return Hiding(name)
        generator = torch.Generator(device).manual_seed(1)
        return Hiding(name, torch.rand(1, 1, length, length, generator=generator, device=device) > 0.3)

    def options(self) -> dict[str, Any]:
        """Arguments of ``F.scaled_dot_product_attention``."""  # noqa: DOC201
        return {"is_causal": True} if self.name == "causal" else {"attn_mask": self.mask}

    def rows(self, a: int, b: int, length: int, device: torch.device) -> Tensor | None:
        """Which keys rows a to b see; None for all."""  # noqa: DOC201
        if self.name == "causal":
            return torch.arange(length, device=device) <= torch.arange(a, b, device=device)[:, None]
        return None if self.mask is None else self.mask[..., a:b, :]

    @property
    def share(self) -> float:
        """Of the scores, how many a kernel must form."""  # noqa: DOC201
        return 0.5 if self.name == "causal" else 1.0


@dataclass(frozen=True)
class Contender:
    """Somebody's attention.

    Attributes:
        name: How tables call it.
        make: From what hides keys to the attention.
        modes: What it is timed in.
        compiled: Whether ``torch.compile`` takes the whole operation.
        is_quadratic: Whether it holds matrices of queries by keys.
    """

    name: str
    make: Callable[[Hiding], Attention]
    modes: tuple[str, ...]
    compiled: bool = False
    is_quadratic: bool = False


def ours(hiding: Hiding) -> Attention:
    """The op that is judged."""  # noqa: DOC201
    options = hiding.options()
    return lambda q, k, v: ops.scaled_dot_product_attention(q, k, v, **options)


def fused(hiding: Hiding) -> Attention:
    """PyTorch's flash attention, or on a GPU with a mask, which flash does not take, its memory-efficient one."""  # noqa: DOC201
    options = hiding.options()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        efficient = hiding.mask is not None and q.is_cuda
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION if efficient else SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v, **options)

    return attend


def math(hiding: Hiding) -> Attention:
    """PyTorch's composite attention, the one that it can differentiate forward and twice."""  # noqa: DOC201
    options = hiding.options()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, **options)

    return attend


def peer(hiding: Hiding) -> Attention:
    """The attention of the package of that name: its tangent has no graph, so second order is left out."""  # noqa: DOC201
    attention = _package()
    mask = hiding.mask
    return lambda q, k, v: attention.fwd_dual(
        q, k, v, attn_mask=None if mask is None else mask.expand(*q.shape[:-1], -1), causal=hiding.name == "causal"
    )


@functools.cache
def _package() -> Any:
    try:
        return importlib.import_module("jvp_flash_attention.jvp_attention").JVPAttn
    except ImportError:
        return None


def contenders(device: torch.device, *, compiles: bool) -> list[Contender]:
    """Who takes part.

    Args:
        device: Where.
        compiles: Whether compiled ones do.

    Returns:
        The contenders, ours first.
    """
    derivatives = tuple(name for name in MODES if name != JVPS)
    found = [
        Contender(OURS, ours, tuple(MODES)),
        Contender(FUSED, fused, (FORWARD, VJP)),
        Contender(MATH, math, tuple(MODES), is_quadratic=True),
    ]
    if compiles:
        found.append(Contender(COMPILED, math, derivatives, compiled=True, is_quadratic=True))
    if device.type == "cuda" and _package() is not None:
        found.append(Contender(PEER, peer, (FORWARD, JVP, VJP)))
    return found


def missing(device: torch.device) -> list[str]:
    """What a reader must know of contenders that are not there."""  # noqa: DOC201
    return [f"{PEER}: not installed"] if device.type == "cuda" and _package() is None else []
