"""Launchers of gated residual, axis norms, dynamic tanh and sinusoids against torch.func on float64 formulas.

Tiles are limited so that tiny tensors take several programs and several tiles each; operands lie strided in memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
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

from torch_jvpvjp.triton_kernels._columns import column_config
from torch_jvpvjp.triton_kernels._launch import count_launches
from torch_jvpvjp.triton_kernels.axis_norm import axis_norm
from torch_jvpvjp.triton_kernels.axis_norm_second_order import Bent, axis_norm_second_order
from torch_jvpvjp.triton_kernels.dyt import dyt_push, dyt_vjp
from torch_jvpvjp.triton_kernels.gated_residual import gated_residual_push, gated_residual_vjp
from torch_jvpvjp.triton_kernels.sinusoids import Layout, sinusoids_pull, sinusoids_push


def draw(*shape: int) -> Tensor:
    """Normal numbers, every second element of a larger buffer that is NaN elsewhere."""
    buffer = torch.full((*shape[:-1], 2 * shape[-1]), float("nan"), dtype=torch.float64, device=DEVICE)
    view = buffer[..., ::2]
    return view.copy_(torch.randn(shape, dtype=torch.float64))


def pushed(f: Callable[..., Tensor], primals: Sequence[Tensor], dots: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """y and ẏ of a formula that broadcasts."""
    return torch.func.jvp(f, tuple(t.contiguous() for t in primals), tuple(t.contiguous() for t in dots))


def pulled(f: Callable[..., Tensor], primals: Sequence[Tensor], y_bar: Tensor) -> tuple[Tensor, ...]:
    return torch.func.vjp(f, *(t.contiguous() for t in primals))[1](y_bar)


def close(got: Any, expected: Tensor) -> None:
    assert isinstance(got, Tensor)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


# ---- gated residual --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("gate_shape", [(1, 2, 1, 5), (1, 1, 1, 5), (1, 2, 1, 1)], ids=str)
def test_gated_residual(gate_shape: tuple[int, ...], limit: int | None) -> None:
    f = lambda x, gate, h: x + gate * h  # noqa: E731
    primals, dots = ([draw(1, 2, 3, 5), draw(*gate_shape), draw(1, 2, 3, 5)] for _ in range(2))
    y, y_dot = gated_residual_push(*primals, tuple(dots), block_limit=limit)  # pyright: ignore[reportArgumentType]
    expected, expected_dot = pushed(f, primals, dots)
    close(y, expected)
    close(y_dot, expected_dot)
    y_bar = draw(1, 2, 3, 5)
    x_bar, gate_bar, h_bar = gated_residual_vjp(
        y_bar, torch.float64, primals[1], primals[2], (True, True, True), block_limit=limit
    )
    expected = pulled(f, primals, y_bar)
    close(x_bar, expected[0])
    close(h_bar, expected[2])
    assert gate_bar is not None and gate_bar.shape == (1, 2, 1, 5)  # per sample and channel, before any other sum
    axes = [i for i, n in enumerate(gate_shape) if n == 1 and gate_bar.shape[i] != 1]
    close(gate_bar.sum(axes, keepdim=True) if axes else gate_bar, expected[1])


def test_gated_residual_sums_long_columns_in_parts_and_repeats_to_the_bit() -> None:
    y_bar, h, gate = torch.randn(1, 2, 300, 3), torch.randn(1, 2, 300, 3), torch.randn(1, 2, 1, 3)
    args: Any = (y_bar.to(DEVICE), torch.float32, gate.to(DEVICE), h.to(DEVICE), (False, True, False))
    first, again = (gated_residual_vjp(*args, block_limit=16)[1] for _ in range(2))
    assert first is not None and again is not None and torch.equal(first, again)
    torch.testing.assert_close(
        first.double().cpu(), (y_bar.double() * h.double()).sum(2, keepdim=True), rtol=0, atol=1e-4
    )


# ---- vectors along an axis -------------------------------------------------------------------------------------------


def divided(floored: bool, eps: float) -> Callable[[Tensor], Tensor]:
    def f(x: Tensor) -> Tensor:
        if floored:
            return x / x.square().sum(2, keepdim=True).sqrt().clamp_min(eps)
        return x / (x.square().mean(2, keepdim=True) + eps).sqrt()

    return f


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("shape", [(1, 3, 7, 1), (1, 2, 7, 5), (1, 1, 1, 3)], ids=str)
@pytest.mark.parametrize(("floored", "eps"), [(True, 1e-12), (True, 2.5), (False, 0.1 / 3)])
def test_axis_norm(shape: tuple[int, ...], floored: bool, eps: float, limit: int | None) -> None:
    x, x_dot = draw(*shape), draw(3, *shape[1:])
    f = divided(floored, eps)
    with count_launches() as count:
        y, y_dot = axis_norm(x, x_dot, eps, floored, wants_y=True, tile_limit=limit)
    assert count.total == 1
    close(y, f(x))
    close(y_dot, torch.cat([pushed(f, [x], [x_dot[i : i + 1]])[1] for i in range(3)]))
    nothing, x_bar = axis_norm(x, x_dot[:1], eps, floored, wants_y=False, tile_limit=limit)
    assert nothing is None
    close(x_bar, pulled(f, [x], x_dot[:1].contiguous())[0])


@pytest.mark.parametrize("limit", [None, 4])
@pytest.mark.parametrize("shape", [(1, 3, 7, 1), (2, 2, 7, 5)], ids=str)
@pytest.mark.parametrize(("floored", "eps"), [(True, 1e-12), (True, 2.5), (False, 0.1 / 3)])
def test_second_order_of_axis_norm(shape: tuple[int, ...], floored: bool, eps: float, limit: int | None) -> None:
    """Of x alone or K of them, with K others; any result alone, and operands that are absent."""
    x, *others = draw(*shape), *(draw(2, *shape[1:]) for _ in range(3))
    f = divided(floored, eps)
    x_dot, u, w = others

    def expected(x_dot: Tensor, u: Tensor, w: Tensor) -> list[Tensor]:
        wide = x.expand(u.shape).contiguous()
        both = lambda x: pushed(f, [x], [x_dot])  # noqa: E731
        second = torch.func.vjp(both, wide)[1]((w.contiguous(), u.contiguous()))[0]
        return [pulled(f, [wide], u.contiguous())[0], second, both(wide)[1]]

    wanted = expected(*others)
    for wants in (Bent(True, True, True), Bent(first=True), Bent(second=True), Bent(y_dot=True)):
        with count_launches() as count:
            got = axis_norm_second_order(x, x_dot, u, w, eps, floored, wants, tile_limit=limit)
        assert count.total == 1
        assert [t is not None for t in got] == [bool(want) for want in wants]
        for one, other in zip(got, wanted, strict=True):
            if one is not None:
                close(one, other)
    zero = torch.zeros_like(u)
    for present in ((x_dot, u, None), (None, u, w), (x_dot, None, w), (None, None, w)):
        got = axis_norm_second_order(x, *present, eps, floored, Bent(second=True), tile_limit=limit)
        close(got.second, expected(*(zero if t is None else t for t in present))[1])


# ---- dynamic tanh ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("affine", [False, True], ids=["alone", "affine"])
def test_dyt(affine: bool, limit: int | None) -> None:
    def f(x: Tensor, alpha: Tensor, *wb: Tensor) -> Tensor:
        y = torch.tanh(alpha[:, None, None] * x)
        return y * wb[0][:, None] + wb[1][:, None] if wb else y

    shapes = [(1, 5, 3), (1,), (1, 3), (1, 3)][: 4 if affine else 2]
    primals, dots = ([draw(*shape) for shape in shapes] for _ in range(2))
    padded, padded_dots = ([*ts, None, None][:4] for ts in (primals, dots))
    y, y_dot = dyt_push(*padded, tuple(padded_dots), block_limit=limit)  # pyright: ignore[reportArgumentType]
    expected, expected_dot = pushed(f, primals, dots)
    close(y, expected)
    close(y_dot, expected_dot)
    y_bar = draw(1, 5, 3)
    bars = dyt_vjp(y_bar, *padded, (True,) * 4, block_limit=limit)  # pyright: ignore[reportArgumentType]
    for got, wanted in zip(bars, pulled(f, primals, y_bar), strict=False):
        close(got, wanted)
    assert affine or bars[2:] == (None, None)


def test_dyt_sums_long_columns_in_parts_and_repeats_to_the_bit() -> None:
    x, y_bar, alpha, w = (torch.randn(s).to(DEVICE) for s in ((1, 300, 3), (1, 300, 3), (1,), (1, 3)))
    first, again = (dyt_vjp(y_bar, x, alpha, w, w, (False, True, True, True), block_limit=16) for _ in range(2))
    for one, other in zip(first[1:], again[1:], strict=True):
        assert one is not None and other is not None and torch.equal(one, other)
    t = torch.tanh(alpha.double() * x.double())
    w_bar = first[2]
    assert w_bar is not None
    torch.testing.assert_close(w_bar.double(), (t * y_bar.double()).sum(1), rtol=0, atol=1e-4)


# ---- sinusoids -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 2])
def test_features(limit: int | None) -> None:
    def f(x: Tensor, frequencies: Tensor) -> Tensor:
        phase = 2 * math.pi * (x @ frequencies.mT)
        return torch.cat([phase.cos(), phase.sin()], -1)

    primals, dots = ([draw(1, 5, 2), draw(1, 3, 2)] for _ in range(2))
    y, y_dot = sinusoids_push(*primals, 3, Layout(6, 0, 3), tuple(dots), block_limit=limit)  # pyright: ignore[reportArgumentType]
    expected, expected_dot = pushed(f, primals, dots)
    close(y, expected)
    close(y_dot, expected_dot)
    y_bar = draw(1, 5, 6)
    phase_bar = sinusoids_pull(y_bar, *primals, 3, Layout(6, 0, 3), block_limit=limit)
    close(2 * math.pi * (phase_bar @ primals[1]), pulled(f, primals, y_bar)[0])


@pytest.mark.parametrize("limit", [None, 2])
def test_ladder(limit: int | None) -> None:
    def f(t: Tensor) -> Tensor:
        phase = t * torch.exp(-0.7 * torch.arange(3, dtype=t.dtype, device=t.device)) * 1.5
        return torch.cat([phase.sin(), phase.cos(), torch.zeros_like(t)], -1)

    t, t_dot, layout = draw(1, 5, 1), draw(1, 5, 1), Layout(7, 3, 0, -0.7, 1.5)
    y, y_dot = sinusoids_push(t, None, 3, layout, (t_dot, None), block_limit=limit)
    expected, expected_dot = pushed(f, [t], [t_dot])
    close(y, expected)
    close(y_dot, expected_dot)
    y_bar = draw(1, 5, 7)
    close(sinusoids_pull(y_bar, t, None, 3, layout, block_limit=limit), pulled(f, [t], y_bar)[0])


# ---- nothing to do ---------------------------------------------------------------------------------------------------


def test_zero_sizes_launch_nothing() -> None:
    empty = lambda *shape: torch.empty(shape, device=DEVICE)  # noqa: E731
    with count_launches() as count:
        x, gate = empty(1, 2, 0, 3), empty(1, 2, 1, 3)
        y, y_dot = gated_residual_push(x, gate, x, (x, gate, x))
        assert y.shape == x.shape and y_dot is not None and y_dot.shape == x.shape
        x_bar, gate_bar, _ = gated_residual_vjp(x, torch.float32, gate, x, (True, True, True))
        assert x_bar is not None and x_bar.shape == x.shape and gate_bar is not None and not gate_bar.any()
        for shape in ((1, 0, 3, 1), (1, 2, 0, 1)):
            bent = axis_norm_second_order(*(empty(*shape) for _ in range(4)), 1e-8, True, Bent(True, True, True))
            assert all(t.shape == shape for t in bent)
            y, x_bar = axis_norm(empty(*shape), empty(*shape), 1e-8, True, wants_y=True)
            assert y is not None and x_bar is not None and y.shape == x_bar.shape == shape
        x, alpha, w = empty(1, 0, 3), torch.ones(1, device=DEVICE), torch.ones(1, 3, device=DEVICE)
        assert dyt_push(x, alpha, w, w, (x, alpha, w, w))[0].shape == x.shape
        bars = dyt_vjp(x, x, alpha, w, w, (True, True, True, True))
        assert bars[0] is not None and not any(b is None or b.any() for b in bars[1:])
        assert sinusoids_push(empty(1, 0, 2), empty(1, 3, 2), 3, Layout(6, 0, 3))[0].shape == (1, 0, 6)
    assert count.total == 0


def test_more_columns_than_32_bits_count_are_refused() -> None:
    assert column_config(1, 1, 2**31 - 1, 2).column_blocks == 2**22
    with pytest.raises(ValueError, match="at most 2147483647 columns, got 2147483648; split"):
        column_config(1, 1, 2**31, 2)
