"""Softmax launchers against torch.func on a float64 formula: kinds, sizes, chunks, groups, layouts, masks, dtypes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

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
from torch_jvpvjp.triton_kernels.softmax import softmax_apply, softmax_pullback_vjp, softmax_second_order
from torch_jvpvjp.triton_kernels.softmax._tiles import NO_MASK, lay_out_mask, softmax_config

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

SCALE = 0.7
KINDS = ("softmax", "log_softmax", "logsumexp")
# (outer, n, inner), longest row of one pass: one column, odd sizes, chunks full and partial, inner positions
SIZES = (((3, 1, 1), None), ((3, 17, 1), None), ((2, 40, 1), 16), ((2, 5, 3), None), ((2, 19, 18), 8))


def formula(kind: str, mask: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The primal along axis 2 of (K, O, n, I), by definition."""

    def f(x: Tensor) -> Tensor:
        powers = (SCALE * x).exp()
        powers = powers if mask is None else torch.where(mask, powers, 0)
        total = powers.sum(2)
        if kind == "logsumexp":
            return total.log()
        if kind == "softmax":
            return powers / total.unsqueeze(2)
        y = SCALE * x - total.unsqueeze(2).log()
        return y if mask is None else torch.where(mask, y, -float("inf"))

    return f


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def close(got: Tensor | None, expected: Tensor, dtype: torch.dtype = torch.float64) -> None:
    assert got is not None and got.shape == expected.shape
    finite = expected[expected.isfinite()]
    largest = max(1.0, float(finite.abs().max())) if finite.numel() else 1.0
    budget = 1e-12 if dtype == torch.float64 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=budget * largest)


def check_all(kind: str, limit: int | None, operands: Iterable[Tensor], mask: Tensor | None = None) -> None:
    """Every launcher; x is (K or 1, O, n, I), v, a and b are (K, O, n, I), of which logsumexp takes one column."""
    x, v, a, b = operands
    dtype, k = x.dtype, v.shape[0]
    laid = NO_MASK if mask is None else lay_out_mask(mask.expand(x.shape[1:]), 1)
    if kind == "logsumexp":
        a, b = a[:, :, 0].contiguous(), b[:, :, 0].contiguous()
    f = formula(kind, mask)
    wide = [t.double().expand(k, *t.shape[1:]).clone() for t in (x, v, a, b)]
    y, pullback, *_ = torch.func.vjp(f, wide[0])
    push = lambda t: torch.func.jvp(f, (t,), (wide[1],))[1]  # noqa: E731
    first, (bent,) = pullback(wide[2])[0], torch.func.vjp(push, wide[0])[1](wide[2])
    second = pullback(wide[3])[0] + bent

    got_y, got_dot = softmax_apply(x, v, laid, kind=kind, scale=SCALE, block_limit=limit)
    assert got_y is not None and got_y.shape[0] == x.shape[0]
    close(got_y.expand(y.shape), y, dtype)
    close(got_dot, push(wide[0]), dtype)
    alone, nothing = softmax_apply(x, None, laid, kind=kind, scale=SCALE, block_limit=limit)
    assert nothing is None
    close(alone, y[: x.shape[0]], dtype)
    options = {"kind": kind, "scale": SCALE, "block_limit": limit}
    got = softmax_second_order(x, v, a, b, laid, wants_pushed=kind == "logsumexp", **options)  # pyright: ignore[reportArgumentType]
    close(got[0], first, dtype)
    close(got[1], second, dtype)
    if kind == "logsumexp":
        close(got[2], push(wide[0]), dtype)
        close(softmax_apply(x, a, laid, transposed=True, **options)[1], first, dtype)  # pyright: ignore[reportArgumentType]
    elif dtype == torch.float64:  # from the output, which low precision has rounded
        out, out_dot = y[: x.shape[0]].clone(), push(wide[0])
        pulled = softmax_apply(out, a, laid, from_output=True, transposed=True, **options)[1]  # pyright: ignore[reportArgumentType]
        close(pulled, first)
        got = softmax_second_order(out, out_dot, a, b, laid, from_output=True, **options)  # pyright: ignore[reportArgumentType]
        close(got[0], first)
        close(got[1], second)
        y_bar_bar, y_second = softmax_pullback_vjp(out, a, v, laid, **options)  # pyright: ignore[reportArgumentType]
        close(y_bar_bar, push(wide[0]))
        keep = torch.ones_like(wide[0], dtype=torch.bool) if mask is None else mask.expand(wide[0].shape)

        def pull(t: Tensor) -> Tensor:
            g = torch.where(keep, wide[2], 0)
            if kind == "softmax":
                return SCALE * t * (g - (t * g).sum(2, keepdim=True))
            return SCALE * (g - t.exp() * g.sum(2, keepdim=True))

        close(y_second, torch.func.vjp(pull, y)[1](torch.where(keep, wide[1], 0))[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "limit"), SIZES, ids=str)
def test_sizes(kind: str, size: tuple[int, int, int], limit: int | None) -> None:
    check_all(kind, limit, (draw(i, 1, *size) for i in range(4)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    check_all(kind, None, (draw(i, 1, 3, 9, 1, dtype=dtype) for i in range(4)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [None, 8])
@pytest.mark.parametrize("inner", [1, 3])
def test_many_tangents_of_one_row_under_a_mask(kind: str, limit: int | None, inner: int) -> None:
    mask = draw(9, 2, 11, 1) > -0.5
    mask[:, 0] = True
    operands = [draw(0, 1, 2, 11, inner), *(draw(i, 3, 2, 11, inner) for i in range(1, 4))]
    check_all(kind, limit, operands, mask)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_are_read_as_they_are_or_copied(kind: str) -> None:
    def every_second(t: Tensor) -> Tensor:
        return torch.stack((t, torch.full_like(t, torch.nan)), -1)[..., 0]

    def inner_first(t: Tensor) -> Tensor:
        return t.transpose(2, 3).contiguous().transpose(2, 3)

    def offset(t: Tensor) -> Tensor:
        return torch.cat((t, torch.full_like(t, torch.nan)), 1)[:, : t.shape[1]]

    for relay in (every_second, inner_first, offset):
        check_all(kind, None, [relay(draw(i, 2, 2, 7, 2)) for i in range(4)])


def test_the_mask_is_not_copied_where_three_strides_do() -> None:
    mask = torch.ones(2, 1, 4, 5, dtype=torch.bool)
    for lead, view in (
        (3, mask.expand(2, 3, 4, 5).unsqueeze(-1)),
        (3, mask[:1, :, :1].expand(2, 3, 4, 5).unsqueeze(-1)),
    ):
        laid = lay_out_mask(view, lead)
        assert laid.mask is view and laid.numbers[-2:] == (view.stride(-1), 1)
    twice = torch.ones(2, 1, 3, 1, 5, dtype=torch.bool).expand(2, 4, 3, 4, 5).unsqueeze(-1)
    assert lay_out_mask(twice, 4).mask is not twice  # four strides


def test_zero_sizes_launch_nothing() -> None:
    with count_launches() as count:
        for shape in ((0, 2, 3, 1), (2, 0, 3, 1), (2, 2, 0, 1)):
            x = torch.empty(shape, device=DEVICE)
            y, y_dot = softmax_apply(x, x, kind="softmax", scale=1.0)
            assert y is not None and y_dot is not None and y.shape == y_dot.shape == x.shape
            first, second, _ = softmax_second_order(x, x, x, x, kind="log_softmax", scale=1.0)
            assert first is not None and second is not None and first.shape == second.shape == x.shape
        lse, _ = softmax_apply(torch.empty(1, 2, 0, 1, device=DEVICE), None, kind="logsumexp", scale=1.0)
        assert lse is not None and torch.equal(lse, torch.full((1, 2, 1), -float("inf"), device=DEVICE))
    assert count.total == 0


def test_configurations_depend_on_powers_of_two_only() -> None:
    assert softmax_config(1000, 1, 2, 3) == softmax_config(513, 1, 2, 3)
    assert softmax_config(60, 500, 4, 3) == softmax_config(33, 300, 4, 3)
    for n, inner in ((1, 2), (64, 64), (100_000, 7), (3, 1 << 20)):
        config = softmax_config(n, inner, 8, 6)
        assert config.block_m * config.block_n <= 4096 and config.one_pass == (config.block_n >= n)
