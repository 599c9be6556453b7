"""Group norm launchers against torch.func on a float64 formula: sizes, tiles, layouts, batches, absent operands."""

from __future__ import annotations

import os
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
from torch_jvpvjp.triton_kernels.group_norm import (
    Second,
    group_norm_forward,
    group_norm_jvp,
    group_norm_second_order,
    group_norm_vjp,
)

EPS = 0.1 / 3  # not a float32


def formula(x: Tensor, w: Tensor, b: Tensor, groups: int, last: bool, silu: bool) -> Tensor:
    """One k: x (N, C, S) or (N, S, C)."""
    rows = x.movedim(-1, 1) if last else x
    grouped = rows.reshape(rows.shape[0], groups, -1)
    centred = grouped - grouped.mean(-1, keepdim=True)
    unit = (centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()).reshape(rows.shape)
    z = unit * w[:, None] + b[:, None]
    y = z * z.sigmoid() if silu else z
    return y.movedim(1, -1) if last else y


def check(
    shape: tuple[int, int, int],
    groups: int,
    *,
    last: bool = False,
    silu: bool = True,
    limit: int | None = None,
    absent: tuple[str, ...] = (),
    batch: dict[str, int] | None = None,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Compare primal, JVP, VJP and the second order with the formula, one k after the other."""
    n, c, s = shape
    batch = batch or {}
    generator = torch.Generator().manual_seed(n + c + s)
    drawn: dict[str, Any] = {}
    for name in ("x", "w", "b", "x_dot", "w_dot", "b_dot", "y_bar", "y_dot_bar"):
        own = (n, *((s, c) if last else (c, s))) if name[0] in "xy" else (c,)
        value = torch.randn((batch.get(name, 1), *own), generator=generator, dtype=torch.float64).to(DEVICE, dtype)
        drawn[name] = None if name in absent else value
    x, w, b = drawn["x"], drawn["w"], drawn["b"]
    activation = "silu" if silu else "identity"
    options: Any = (groups, last, EPS, activation)
    k = max([1, *batch.values()])
    drawn["y_bar"], drawn["y_dot_bar"] = (drawn[name].expand(k, -1, -1, -1) for name in ("y_bar", "y_dot_bar"))

    def at(name: str, i: int, default: float) -> Tensor:
        value = drawn[name]
        like = drawn["x"] if name[0] in "xy" else torch.empty(1, c, device=DEVICE)
        value = torch.full(like.shape, default, dtype=dtype, device=DEVICE) if value is None else value
        return value[i % value.shape[0]].double()

    ys, y_dots, bars, firsts, seconds = [], [], [], [], []
    for i in range(k):
        primals = (at("x", i, 0.0), at("w", i, 1.0), at("b", i, 0.0))
        f = lambda x, w, b: formula(x, w, b, groups, last, silu)  # noqa: E731
        dots = (at("x_dot", i, 0.0), at("w_dot", i, 0.0), at("b_dot", i, 0.0))
        y, y_dot = torch.func.jvp(f, primals, dots)
        ys.append(y)
        y_dots.append(y_dot)
        bars.append(torch.func.vjp(f, *primals)[1](at("y_bar", i, 0.0)))
        firsts.append(torch.func.vjp(f, *primals)[1](at("y_dot_bar", i, 0.0)))
        both = lambda *primals, f=f, dots=dots: torch.func.jvp(f, primals, dots)  # noqa: E731
        seconds.append(torch.func.vjp(both, *primals)[1]((at("y_bar", i, 0.0), at("y_dot_bar", i, 0.0))))

    def close(got: Tensor, expected: Tensor) -> None:
        tolerance = 1e-10 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps * float(expected.abs().max())
        assert got.dtype == dtype and got.shape == expected.shape
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=tolerance)

    y, mean, rstd = group_norm_forward(x, w, b, *options, block_limit=limit)
    close(y, torch.stack(ys[: y.shape[0]]))
    assert mean.shape == rstd.shape == (x.shape[0], n, groups)
    with count_launches() as count:
        y, mean, rstd, y_dot = group_norm_jvp(
            x, w, b, drawn["x_dot"], drawn["w_dot"], drawn["b_dot"], *options, block_limit=limit
        )
    assert count.total == 1
    close(y, torch.stack(ys[: y.shape[0]]))
    close(y_dot, torch.stack(y_dots[: y_dot.shape[0]]))
    needs = (True, True, True)
    got = group_norm_vjp(drawn["y_bar"], x, w, b, mean, rstd, groups, last, activation, needs, block_limit=limit)

    def all_close(got: Any, expected: list[tuple[Tensor, ...]]) -> None:
        for name, one, *all_k in zip(("x", "w", "b"), got, *expected, strict=True):
            if name in absent:
                assert one is None
            else:
                shared = name != "x" and drawn[name].shape[0] == 1
                close(one, torch.stack(all_k).sum(0, keepdim=True) if shared else torch.stack(all_k))

    all_close(got, bars)
    operands = [drawn[name] for name in ("x", "w", "b", "x_dot", "w_dot", "b_dot", "y_dot_bar", "y_bar")]
    rest: Any = (mean, rstd, groups, last, activation)
    second = group_norm_second_order(*operands, *rest, Second(*[True] * 7), block_limit=limit)
    all_close(second[:3], firsts)
    all_close(second[3:6], seconds)
    close(second.y_dot, torch.stack(y_dots))


@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "groups", "limit"),
    [((2, 4, 3), 2, None), ((1, 6, 1), 2, None), ((1, 5, 9), 1, 8), ((2, 6, 7), 2, 4), ((1, 2, 33), 2, 16)],
    ids=str,
)
def test_sizes_and_tiles(shape: tuple[int, int, int], groups: int, limit: int | None, last: bool) -> None:
    check(shape, groups, last=last, limit=limit)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    check((1, 4, 6), 2, dtype=dtype)


@pytest.mark.parametrize(
    "absent",
    [("w", "b", "w_dot", "b_dot"), ("x_dot", "w_dot"), ("x_dot", "b_dot"), ("w", "w_dot", "x_dot"), ("b", "b_dot")],
    ids="-".join,
)
@pytest.mark.parametrize("silu", [False, True], ids=["identity", "silu"])
def test_absent_operands(absent: tuple[str, ...], silu: bool) -> None:
    check((1, 4, 3), 2, silu=silu, absent=absent)


BATCHES = {
    "all": dict.fromkeys(("x", "w", "b", "x_dot", "w_dot", "b_dot", "y_bar"), 2),
    "tangents_of_one_primal": {"x_dot": 3, "w_dot": 3, "b_dot": 3},
    "tangents_of_the_weight": {"w_dot": 3},
    "one_weight": {"x": 2, "x_dot": 2},
    "many_weights": {"w": 2, "b": 2},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_batches(batch: dict[str, int]) -> None:
    check((1, 4, 3), 2, batch=batch, last="x" in batch, limit=4 if "w_dot" in batch else None)


def test_samples_that_are_not_dense_are_copied_and_rows_of_a_larger_batch_are_not() -> None:
    wide = torch.randn(1, 4, 4, 6, dtype=torch.float64, device=DEVICE)
    for x in (wide[:, ::2], wide[:, :2, :, ::2], wide.mT):
        y = group_norm_forward(x, None, None, 2, False, EPS, "identity")[0]
        assert torch.equal(y, group_norm_forward(x.contiguous(), None, None, 2, False, EPS, "identity")[0])


def test_mean_far_from_zero_loses_no_digits() -> None:
    x = 1e4 + torch.randn(1, 1, 2, 64, device=DEVICE)
    y, _, _ = group_norm_forward(x, None, None, 1, False, 1e-5, "identity", block_limit=16)
    exact = formula(
        x[0].double(), *(torch.tensor([v, v], dtype=torch.float64, device=DEVICE) for v in (1.0, 0.0)), 1, False, False
    )
    exact *= ((x.double().var(correction=0) + EPS) / (x.double().var(correction=0) + 1e-5)).sqrt()
    torch.testing.assert_close(y[0].double(), exact, rtol=0, atol=2e-3)


def test_zero_sizes() -> None:
    for shape in ((2, 0, 4, 3), (2, 2, 4, 0), (0, 2, 4, 3)):
        x, w = torch.empty(shape, device=DEVICE), torch.ones(1, 4, device=DEVICE)
        with count_launches() as count:
            y, mean, rstd = group_norm_forward(x, w, w, 2, False, EPS, "silu")
            assert y.shape == x.shape and mean.shape == (*shape[:2], 2)
            assert group_norm_jvp(x, w, w, x, w, w, 2, False, EPS, "silu")[3].shape == x.shape
            x_bar, w_bar, b_bar = group_norm_vjp(x, x, w, w, mean, rstd, 2, False, "silu", (True, True, True))
            second = group_norm_second_order(x, w, w, x, w, w, x, x, mean, rstd, 2, False, "silu", Second(*[True] * 7))
        assert count.total == 0
        assert second.x_first.shape == x.shape and not second.w_second.any()
        assert x_bar is not None and x_bar.shape == x.shape
        assert w_bar is not None and b_bar is not None and not w_bar.any() and not b_bar.any()


def test_second_order_of_a_part_is_that_of_all() -> None:
    """Any one result alone, with what may be absent absent: one launch, and one for a sum over samples."""
    x, w = torch.randn(4, 1, 3, 4, 2, device=DEVICE), torch.randn(1, 4, device=DEVICE)
    _, mean, rstd = group_norm_forward(x[0], w, w, 2, False, EPS, "silu")
    rest: Any = (mean, rstd, 2, False, "silu")
    everything = group_norm_second_order(x[0], w, w, x[1], w, w, x[2], x[3], *rest, Second(*[True] * 7))
    for name in Second._fields:
        with count_launches() as count:
            alone = group_norm_second_order(x[0], w, w, x[1], w, w, x[2], x[3], *rest, Second(**{name: True}))
        assert count.total == (2 if name[0] in "wb" else 1)
        assert [t is None for t in alone] == [n != name for n in Second._fields]
        assert torch.equal(getattr(alone, name), getattr(everything, name))
    unmoved = group_norm_second_order(x[0], w, w, None, None, None, x[2], x[3], *rest, Second(*[True] * 7))
    pulled = group_norm_vjp(x[3], x[0], w, w, *rest, (True, True, True))
    torch.testing.assert_close(unmoved[3:6], pulled)
    assert not unmoved.y_dot.any()


def test_weight_gradients_are_bitwise_repeatable() -> None:
    x, w = torch.randn(1, 5, 4, 6, device=DEVICE), torch.randn(1, 4, device=DEVICE)
    _, mean, rstd = group_norm_forward(x, w, w, 2, False, EPS, "silu")
    first, again = (
        group_norm_vjp(x.clone(), x, w, w, mean, rstd, 2, False, "silu", (False, True, True)) for _ in range(2)
    )
    assert first[0] is None
    for one, other in zip(first[1:], again[1:], strict=True):
        assert one is not None and other is not None and torch.equal(one, other)
