"""Norms of rows so small that their mean square is subnormal, with roots that take it for 0, as those of GPUs do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from triton.runtime import interpreter

from torch_jvpvjp.triton_kernels.axis_norm import axis_norm
from torch_jvpvjp.triton_kernels.group_norm import group_norm_forward
from torch_jvpvjp.triton_kernels.norms import Norm, norm_forward


@pytest.fixture(autouse=True)
def flushing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Roots of 32 bits, like `rsqrt.approx.ftz.f32`, take what is below 2⁻¹²⁶ for 0."""
    for name in ("create_sqrt", "create_rsqrt"):
        monkeypatch.setattr(
            interpreter.InterpreterBuilder, name, _flushed(getattr(interpreter.InterpreterBuilder, name))
        )
    with np.errstate(divide="ignore", invalid="ignore"):  # of rows past the end
        yield


def _flushed(root: Any) -> Any:
    def flushed(self: Any, argument: Any) -> Any:
        data = argument.data
        if data.dtype == np.float32:
            argument = interpreter.TensorHandle(np.where(data < 2.0**-126, np.float32(0), data), argument.dtype)
        return root(self, argument)

    return flushed


def rows(scale: float) -> torch.Tensor:
    return scale * torch.tensor([[1.0, -2.0, 3.0, 1.5], [0.5, 1.0, -1.0, 2.0]])


@pytest.mark.parametrize("scale", [1.0, 2.0**-64, 2.0**-68])
@pytest.mark.parametrize("centred", [False, True])
def test_norms_of_rows(scale: float, centred: bool) -> None:
    x = rows(scale)
    y, _ = norm_forward(x[None], None, None, Norm(0.0, centred=centred))
    exact = x.double() - x.double().mean(1, keepdim=True) if centred else x.double()
    exact = exact / exact.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(y[0].double(), exact, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("scale", [1.0, 2.0**-64, 2.0**-68])
def test_norms_of_groups(scale: float) -> None:
    x = rows(scale)
    y, _, r = group_norm_forward(x[None, None], None, None, 2, False, 0.0, "identity")
    exact = x.double() - x.double().mean(1, keepdim=True)
    spread = exact.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(y[0, 0].double(), exact / spread, rtol=1e-3, atol=0.0)
    torch.testing.assert_close(r.flatten().double(), 1 / spread.flatten(), rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("scale", [1.0, 2.0**-64, 2.0**-68])
@pytest.mark.parametrize("floored", [False, True])
def test_norms_of_vectors(scale: float, floored: bool) -> None:
    x = rows(scale)
    y, _ = axis_norm(x[None, :, :, None], None, 0.0, floored, wants_y=True)
    square = x.double().square()
    exact = x.double() / (square.sum(1, keepdim=True) if floored else square.mean(1, keepdim=True)).sqrt()
    assert y is not None
    torch.testing.assert_close(y[0, :, :, 0].double(), exact, rtol=1e-3, atol=0.0)
