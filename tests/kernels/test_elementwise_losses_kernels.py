"""The launchers of the elementwise losses against torch.func in float64: losses, sizes, groups, layouts, dtypes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    DEVICE = "cpu"
elif torch.cuda.is_available():
    DEVICE = "cuda"
else:
    pytest.skip("needs TRITON_INTERPRET=1, or a GPU", allow_module_level=True)

from torch_jvpvjp.triton_kernels._launch import count_launches
from torch_jvpvjp.triton_kernels.elementwise_losses import elementwise_loss, elementwise_loss_vjp

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

DELTA, SCALE = 0.3, 0.1


def _huber(x: Tensor, t: Tensor) -> Tensor:
    size = (x - t).abs()
    return torch.where(size <= DELTA, 0.5 * size.square(), DELTA * (size - 0.5 * DELTA))


def _js(x: Tensor, t: Tensor) -> Tensor:
    middle = (0.5 * (x.exp() + t)).log()
    return 0.5 * (x.exp() * (x - middle) + t * (t.log() - middle))


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": lambda x, t: (x - t).square(),
    "huber": _huber,
    "kl": lambda x, t: t * (t.log() - x),
    "kl_log": lambda x, t: t.exp() * (t - x),
    "js": _js,
    "js_log": lambda x, t: _js(x, t.exp()),
}


def draw(m: int, n: int, dtype: torch.dtype = torch.float64, groups: tuple[int, ...] = (1, 1, 1, 1)) -> list[Tensor]:
    """x, t > 0, ẋ, ṫ."""
    generator = torch.Generator().manual_seed(m + 10 * n)
    drawn = [torch.randn(k, m, n, generator=generator, dtype=torch.float64) for k in groups]
    drawn[1] = drawn[1].exp() / 4
    return [t.to(DEVICE, dtype) for t in drawn]


def check(loss: str, operands: list[Tensor], reduce: bool = True, limit: int | None = None) -> None:
    x, t, x_dot, t_dot = operands
    k = max(o.shape[0] for o in operands)
    before = [o.clone() for o in operands]
    setting: dict[str, Any] = {"scale": SCALE, "delta": DELTA, "reduce": reduce, "block_limit": limit}
    y, y_dot = elementwise_loss(loss, x, t, x_dot, t_dot, wants_y_dot=True, **setting)

    def f(x: Tensor, t: Tensor) -> Tensor:
        terms = SCALE * FORMULAS[loss](x, t)
        return terms.sum(-1, keepdim=True) if reduce else terms

    full = [o.double().expand(k, *x.shape[1:]).clone() for o in operands]
    expected, expected_dot, *_ = torch.func.jvp(f, (full[0], full[1]), (full[2], full[3]))
    y_bar = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y_bar = y_bar.to(DEVICE, x.dtype)
    x_bar, t_bar = elementwise_loss_vjp(loss, y_bar, x, t, **setting)
    pull: Any = torch.func.vjp(f, full[0], full[1])[1]
    pairs = [(y, expected), (y_dot, expected_dot), *zip((x_bar, t_bar), pull(y_bar.double()), strict=True)]
    eps = 1e-13 if x.dtype == torch.float64 else 8 * torch.finfo(x.dtype).eps
    for number, (got, want) in enumerate(pairs):
        assert got is not None and got.shape == want.shape and got.dtype == x.dtype
        error = float((got.double() - want).abs().max())
        assert error <= eps * float(want.abs().max().clamp_min(1)), (number, error)
    for copy, operand in zip(before, operands, strict=True):
        assert torch.equal(copy, operand)


@pytest.mark.parametrize("loss", FORMULAS)
@pytest.mark.parametrize("reduce", [True, False], ids=["sum", "map"])
def test_every_loss(loss: str, reduce: bool) -> None:
    check(loss, draw(2, 20), reduce)
    check(loss, draw(1, 37), reduce, limit=16)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("m", "n", "limit"), [(1, 1, None), (3, 1030, None), (2, 100, 16)])
def test_sizes_and_dtypes(m: int, n: int, limit: int | None, dtype: torch.dtype) -> None:
    check("kl_log", draw(m, n, dtype), limit=limit)
    check("js", draw(m, n, dtype), reduce=False, limit=limit)


@pytest.mark.parametrize("groups", [(3, 1, 1, 3), (1, 1, 3, 3), (1, 3, 1, 1), (3, 3, 3, 3)], ids=str)
def test_groups_and_layouts(groups: tuple[int, ...]) -> None:
    operands = draw(2, 21, groups=groups)
    check("kl", operands, limit=8)
    check("mse", [o.mT.contiguous().mT for o in operands], limit=8)
    check("mse", [torch.stack((o, o), -1)[..., 0] for o in operands], reduce=False)
    check("mse", [o[:1].expand(3, -1, -1) for o in operands])


def test_parts_are_added_by_one_more_launch() -> None:
    x, t, *_ = draw(1, 1000)
    with count_launches() as count:
        elementwise_loss("mse", x, t, block_limit=16)
    assert dict(count.by_name) == {"_loss_kernel": 1, "_sum_partials_kernel": 1}
    first = elementwise_loss("mse", x, t, block_limit=16)[0]
    assert torch.equal(first, elementwise_loss("mse", x.clone(), t.clone(), block_limit=16)[0])


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_targets_of_zero_add_nothing() -> None:
    x, t, *_ = draw(1, 5)
    t[..., 2] = 0
    rest = [0, 1, 3, 4]
    for loss, alone in (
        ("kl", 0.0),
        ("js", 0.5 * float(x[0, 0, 2].exp()) * float(torch.log(torch.tensor(2.0)).double())),
    ):
        y = elementwise_loss(loss, x, t)[0]
        assert float(y) == pytest.approx(float(FORMULAS[loss](x, t)[..., rest].sum()) + alone)


def test_zero_sizes() -> None:
    with count_launches() as count:
        for m, n in ((0, 3), (2, 0)):
            x, t, *_ = draw(m, n)
            y, y_dot = elementwise_loss("mse", x, t, x, wants_y_dot=True)
            assert y.shape == (1, m, 1) and y_dot is not None and not y.any() and not y_dot.any()
            assert elementwise_loss("mse", x, t, reduce=False)[0].shape == (1, m, n)
            x_bar, t_bar = elementwise_loss_vjp("mse", y, x, t, needs_t=False)
            assert x_bar is not None and x_bar.shape == x.shape and t_bar is None
    assert count.total == 0
