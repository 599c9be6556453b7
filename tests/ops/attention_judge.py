"""What judges attention in its tests: the whole matrix of scores in plain PyTorch, with the derivatives of PyTorch."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.testing import Sample
from torch_jvpvjp.testing.budget import assert_equal
from torch_jvpvjp.testing.case import Case
from torch_jvpvjp.testing.compositions import EAGER

# Value, and every rule of the tower: JVP, VJP, tangent of the pullback, pullback of the JVP, pullback of the pullback.
RULES = ("primal", "func.jvp", "vjp", "jvp∘grad", "grad∘jvp", "grad∘grad")

# The kernels are judged in tests/kernels, and here on a GPU; the interpreter would take minutes.
not_interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="tests/kernels judges the kernels in the interpreter"
)


def heads(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64) -> Tensor:
    """Normally distributed, one after another from the seed of the test."""
    return torch.randn(shape, dtype=torch.float64).to(device, dtype)


def qkv(*, b: int = 2, h: int = 2, lq: int = 3, lk: int = 4, d: int = 2, device: str = "cpu") -> tuple[Tensor, ...]:
    """Query, key and value."""
    return heads(b, h, lq, d, device=device), heads(b, h, lk, d, device=device), heads(b, h, lk, d, device=device)


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    added: Tensor | None = None,
    *,
    visible: Tensor | None = None,
    survives: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """o and ℓ; a row that sees nothing has zeros and −∞. ``survives`` is dropout's mask over 1 − p."""
    if query.dim() > 2:  # grouped queries; one head broadcasts
        grouped = [t.dim() > 2 and 1 < t.shape[-3] < query.shape[-3] for t in (key, value)]
        repeats = [query.shape[-3] // t.shape[-3] if g else 1 for t, g in zip((key, value), grouped, strict=True)]
        key, value = (t if n == 1 else t.repeat_interleave(n, -3) for t, n in zip((key, value), repeats, strict=True))
    s = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    s = s if added is None else s + added
    s = s if visible is None else s.masked_fill(~visible, -torch.inf)
    top = s.detach().amax(-1, keepdim=True).nan_to_num(neginf=0.0) if s.shape[-1] else s.new_zeros((*s.shape[:-1], 1))
    e = torch.exp(s - top)
    mass = e.sum(-1, keepdim=True)
    empty = mass == 0
    mass = mass.masked_fill(empty, 1.0)
    p = e / mass if survives is None else e / mass * survives
    return p @ value, (mass.log() + top).masked_fill(empty, -torch.inf).squeeze(-1)


def output(**options: Any) -> Callable[..., Tensor]:
    """The dense o as a function of its tensors alone."""
    return lambda *tensors: dense(*tensors, **options)[0]


def positions(lq: int, lk: int, *, bottom_right: bool = False, device: str = "cpu") -> Tensor:
    """How far a key lies ahead of a row's position, (lq, lk)."""
    first = lk - lq if bottom_right else 0
    return torch.arange(lk, device=device) - (torch.arange(lq, device=device)[:, None] + first)


def assert_alike(
    ours: Callable[..., Any], theirs: Callable[..., Any], tensors: Sequence[Tensor], rules: Sequence[str] = RULES
) -> None:
    """Two functions of these tensors have one value and the same derivatives, by each of these compositions."""
    case = Case(ours, theirs, Sample(tuple(tensors)), str(tensors[0].device))
    for name in rules:
        composed = EAGER[name]
        results = [composed(case.function(f), case.point) for f in (ours, theirs)]
        assert_equal(*results, f"{name}: ")


def assert_blind_rows_have_no_derivative(inputs: Sequence[Tensor], softcap: float | None = None) -> None:
    """A row that sees nothing has ℓ = −∞ whatever the arguments, so that no cotangent of it counts, not even NaN.

    Merging two such rows by their ℓ, as attention over several devices does, gives them that cotangent.

    Args:
        inputs: Query, key and value, more queries than keys.
        softcap: As of `scaled_dot_product_attention`.
    """
    options = {"is_causal": True, "causal_alignment": "bottom_right", "softcap": softcap, "return_lse": True}
    f = partial(ops.scaled_dot_product_attention, **options)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    (o, lse), (o_dot, lse_dot) = torch.func.jvp(f, leaves, tuple(inputs))
    single, zero = f(*leaves)[1], torch.zeros_like(o)
    blind = lse.isneginf()
    assert blind.any() and not blind.all()
    for number in (torch.nan, torch.inf, -torch.inf):
        bar = torch.zeros_like(lse).masked_fill(blind, number)
        for outputs, bars in (((single,), (bar,)), ((o, lse, o_dot, lse_dot), (zero, bar, zero, bar))):
            for t_bar in torch.autograd.grad(outputs, leaves, bars, retain_graph=True):
                assert t_bar.eq(0).all(), (number, t_bar)
