"""Attention with large scores: as near float64 as PyTorch's unfused attention in float32, not as its fused.

PyTorch's fused backward makes P of exp(S − ℓ), with ℓ rounded to float32: at scores of 100 that loses a hundred eps. On
a CPU P is found anew; kernels know what ℓ lacks.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attention_judge import dense, not_interpreted
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.ops.attention import fused
from torch_jvpvjp.testing.budget import NEIGHBOURS, assert_in_budget

Function = Callable[..., Any]
ROWS, SIZE = 48, 16


@pytest.fixture(autouse=True)
def products_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter float32 is multiplied as on a GPU: terms are added one after another, each without a rounding.

    NumPy adds those of q·k and k·q in different orders; at scores of 100 P of the pullback is then another than that of
    the value.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from triton.runtime import interpreter

    def create_dot(_builder: Any, a: Any, b: Any, d: Any, *_options: Any) -> Any:
        x, y, found = a.data.astype(np.float64), b.data.astype(np.float64), d.data
        assert a.data.dtype == b.data.dtype == found.dtype == np.float32
        for k in range(x.shape[1]):
            found = (x[:, k, None] * y[None, k] + found).astype(np.float32)
        return interpreter.TensorHandle(found, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def spread(size: float) -> list[Tensor]:
    """Scores that differ by so much from one another."""
    q, k, v = (torch.randn(1, 2, ROWS, SIZE) for _ in range(3))
    return [size * q, k, v]


def alike(size: float) -> list[Tensor]:
    """Scores of about this size, all of them without rounding."""
    q, k = (torch.randint(-2, 3, (1, 2, ROWS, SIZE)).float() for _ in range(2))
    q[..., 0], k[..., 0] = 1.0, 4 * size * SIZE**0.5
    return [q, k / 4, torch.randn(1, 2, ROWS, SIZE)]


def everything(f: Function, xs: list[Tensor], dots: list[Tensor], w: Tensor) -> list[Tensor]:
    """Value, JVP, gradients and their tangents."""
    pull = torch.func.grad(lambda *xs: (f(*xs) * w).sum(), argnums=(0, 1, 2))
    along = (tuple(xs), tuple(dots))
    return [*torch.func.jvp(f, *along), *pull(*xs), *torch.func.jvp(pull, *along)[1]]


@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")  # of a score that a row does not see
@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 300.0])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("draw", [spread, alike])
def test_errors_are_those_of_unfused_attention(draw: Function, causal: bool, size: float) -> None:
    xs = draw(size)
    dots, w = [torch.randn_like(t) for t in xs], torch.randn_like(xs[0])
    visible = torch.ones(ROWS, ROWS, dtype=torch.bool).tril() if causal else None
    reference = lambda *xs: dense(*xs, visible=visible)[0]  # noqa: E731
    ours = lambda *xs: ops.scaled_dot_product_attention(*xs, is_causal=causal)  # noqa: E731
    low, high = [], []
    for factor in NEIGHBOURS:
        # Another query, or another value where that would round the scores.
        there = ([factor * xs[0], *xs[1:]] if draw is spread else [*xs[:2], factor * xs[2]], dots, w)
        low.append(everything(reference, *there))
        high.append(everything(reference, *([t.double() for t in ts] for ts in there[:2]), w.double()))
    assert_in_budget(everything(ours, xs, dots, w), low, high, torch.float32)


@not_interpreted
def test_the_fused_backward_is_called_where_it_is_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = fused.plain_backward
    monkeypatch.setattr(fused, "plain_backward", lambda *args: calls.append(0) or original(*args))
    for size, number in ((1.0, 1), (100.0, 0)):
        calls.clear()
        xs = [t.requires_grad_() for t in alike(size)]
        torch.autograd.grad(ops.scaled_dot_product_attention(*xs).sum(), xs)
        assert len(calls) == number
