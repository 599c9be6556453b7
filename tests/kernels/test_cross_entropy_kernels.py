"""Cross-entropy launchers against torch.func on a float64 formula: targets, options, sizes, chunks, groups, dtypes."""

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
from torch_jvpvjp.triton_kernels.cross_entropy import (
    cross_entropy_forward,
    cross_entropy_second_order,
    cross_entropy_vjp,
)
from torch_jvpvjp.triton_kernels.cross_entropy._targets import Options

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

IGNORED = 2
SIZES = (((3, 1, 1), None), ((3, 17, 1), None), ((2, 40, 1), 16), ((2, 5, 3), None), ((2, 19, 18), 8))


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE, dtype)


def options_for(n: int, every: bool) -> Options:
    return Options(draw(7, n).abs() + 0.1, IGNORED, 0.2, 2.0) if every else Options(None, IGNORED, 0.0, None)


def formula(options: Options, classes: Tensor | None) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """ℓ and L along axis 2 of (K, O, n, I), by definition; the second argument is read if there are no classes."""

    def f(x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        n, kappa = x.shape[2], options.softcap
        z = x if kappa is None else kappa * torch.tanh(x / kappa)
        lse = z.exp().sum(2, keepdim=True).log()
        counts: Any = 1.0
        if classes is not None:
            counts = (classes != IGNORED).double().unsqueeze(2)
            q = (torch.arange(n, device=x.device)[:, None] == classes.unsqueeze(2)).double()
        w = 1.0 if options.weight is None else options.weight.double()[:, None]
        tau = w * ((1 - options.label_smoothing) * q + options.label_smoothing / n) * counts
        return (tau * (lse - z)).sum(2), (counts * lse).expand(*lse.shape).squeeze(2)

    return f


def close(got: Tensor | None, expected: Tensor, dtype: torch.dtype) -> None:
    assert got is not None and got.shape == expected.shape
    budget = 1e-12 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=budget * largest)


def check_all(
    size: tuple[int, int, int],
    limit: int | None = None,
    *,
    probabilities: bool = False,
    every: bool = False,
    groups: tuple[int, int] = (1, 1),
    dtype: torch.dtype = torch.float64,
    relay: Callable[[Tensor], Tensor] = lambda t: t,
) -> None:
    """Every launcher, with as many groups of primals and of tangents as `groups` says."""
    outer, n, inner = size
    k, tangents = groups
    x, x_dot = relay(2 * draw(0, k, *size, dtype=dtype)), relay(draw(1, tangents, *size, dtype=dtype))
    q, q_dot = relay(draw(2, k, *size, dtype=dtype).abs()), relay(draw(3, tangents, *size, dtype=dtype))
    classes = torch.randint(0, n, (k, outer, inner), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    options = options_for(n, every)
    numbers = tuple(draw(4 + i, tangents, outer, inner) for i in range(4))
    a, d, c, e = numbers
    target, target_dot = (q, q_dot) if probabilities else (classes, None)

    full = (tangents, *size)
    f = formula(options, None if probabilities else classes.expand(tangents, outer, inner))
    primals = (x.double().expand(full).clone(), q.double().expand(full).clone())
    along = (x_dot.double(), q_dot.double() if probabilities else torch.zeros_like(q_dot).double())
    (loss, lse), pullback, *_ = torch.func.vjp(f, *primals)
    moved, bend, *_ = torch.func.vjp(lambda *ts: torch.func.jvp(f, ts, along)[1], *primals)
    first = pullback((a, d))
    second = [s + t for s, t in zip(pullback((c, e)), bend((a, d)), strict=True)]
    low = torch.float64 if dtype == torch.float64 else torch.float32

    got = cross_entropy_forward(x, target, x_dot, target_dot, options, block_limit=limit)
    for number, expected in zip(got, (loss, lse, torch.zeros_like(lse), *moved), strict=True):
        close(number if number is None else number.expand(expected.shape), expected, low)
    plain = cross_entropy_forward(x, target, None, None, options, block_limit=limit)
    close(plain[0], loss[:k], low)
    assert plain[3] is None and plain[4] is None
    for saved in (plain[1:3], None):
        x_bar, q_bar = cross_entropy_vjp(a, d, x, target, saved, options, needs_target=probabilities, block_limit=limit)
        close(x_bar, first[0], dtype)
        if probabilities:
            close(q_bar, first[1], dtype)
    wants = (True, probabilities, True, probabilities, True)
    found = cross_entropy_second_order(
        x, target, x_dot, target_dot, (a, d, c, e), options, wants=wants, block_limit=limit
    )
    close(found[0], first[0], dtype)
    close(found[2], second[0], dtype)
    if probabilities:
        close(found[1], first[1], dtype)
        close(found[3], second[1], dtype)
    for number, expected in zip(found[4:], moved, strict=True):
        close(number, expected, low)


@pytest.mark.parametrize(("size", "limit"), SIZES, ids=str)
@pytest.mark.parametrize("probabilities", [False, True], ids=["classes", "probabilities"])
def test_sizes(size: tuple[int, int, int], limit: int | None, probabilities: bool) -> None:
    check_all(size, limit, probabilities=probabilities)


@pytest.mark.parametrize("limit", [None, 8])
@pytest.mark.parametrize("probabilities", [False, True], ids=["classes", "probabilities"])
def test_every_option_and_many_tangents_of_one_row(limit: int | None, probabilities: bool) -> None:
    check_all((2, 11, 1), limit, probabilities=probabilities, every=True, groups=(1, 3))
    check_all((2, 11, 2), limit, probabilities=probabilities, every=True, groups=(2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    check_all((3, 9, 1), dtype=dtype, every=True)


@pytest.mark.parametrize("limit", [None, 8])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_parts_of_the_classes_add_up(limit: int | None, smoothing: float) -> None:
    """ℓ = Σ_c ℓ_c + σ_c (L − L_c), and the cotangents of the parts are those of the whole, side by side."""
    n, cuts = 23, (0, 9, 10, 23)
    x, c, e = 2 * draw(0, 1, 3, n, 1), draw(1, 1, 3, 1), draw(2, 1, 3, 1)
    target = torch.tensor([[[4], [IGNORED], [22]]], device=DEVICE)
    whole = Options(None, IGNORED, smoothing, 2.0)
    loss, lse, rest, _, _ = cross_entropy_forward(x, target, None, None, whole)
    x_bar, _ = cross_entropy_vjp(c, e, x, target, (lse, rest), whole)
    total, lses, bars = torch.zeros_like(loss), [], []
    for first, stop in zip(cuts, cuts[1:], strict=False):
        part, options = x[:, :, first:stop], whole._replace(first=first, classes=n)
        part_loss, part_lse, _, _, _ = cross_entropy_forward(part, target, None, None, options, block_limit=limit)
        here = ((target >= first) & (target < stop)).double()
        sigma = ((1 - smoothing) * here + smoothing * (stop - first) / n) * (target != IGNORED)
        total += part_loss + sigma * (lse - part_lse)
        lses.append(part_lse)
        bars.append(cross_entropy_vjp(c, e, part, target, (lse, rest), options, block_limit=limit)[0])
    close(total, loss, torch.float64)
    together = torch.logsumexp(torch.stack(lses), 0)
    close(torch.where(target == IGNORED, 0, together), lse, torch.float64)
    assert x_bar is not None
    close(torch.cat(bars, 2), x_bar, torch.float64)  # pyright: ignore[reportArgumentType]


def test_layouts_are_read_as_they_are_or_copied() -> None:
    def every_second(t: Tensor) -> Tensor:
        return torch.stack((t, torch.full_like(t, torch.nan)), -1)[..., 0]

    def offset(t: Tensor) -> Tensor:
        return torch.cat((t, torch.full_like(t, torch.nan)), 1)[:, : t.shape[1]]

    for relay in (every_second, offset):
        check_all((2, 7, 2), relay=relay)
        check_all((2, 7, 1), relay=relay, probabilities=True)


def test_zero_sizes_launch_nothing() -> None:
    options = options_for(3, False)
    with count_launches() as count:
        for k, outer in ((0, 2), (2, 0)):
            x, target = torch.empty(k, outer, 3, 1, device=DEVICE), torch.empty(k, outer, 1, device=DEVICE).long()
            loss, lse, rest, loss_dot, _ = cross_entropy_forward(x, target, x, None, options)
            assert loss_dot is not None and loss.shape == lse.shape == loss_dot.shape == (k, outer, 1)
            x_bar, q_bar = cross_entropy_vjp(lse, None, x, target, (lse, rest), options)
            assert x_bar is not None and x_bar.shape == x.shape and q_bar is None
    assert count.total == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes in NumPy
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("limit", [None, 2])
def test_an_ignored_row_is_zero_whatever_stands_in_it(limit: int | None, cap: float | None) -> None:
    x = torch.tensor([[float("nan"), 1.0, 2.0], [float("inf"), 1.0, 2.0]], device=DEVICE).reshape(1, 2, 3, 1)
    target = torch.full((1, 2, 1), IGNORED, device=DEVICE)
    number, options = torch.full((1, 2, 1), float("inf"), device=DEVICE), Options(None, IGNORED, 0.0, cap)
    loss, lse, rest, loss_dot, lse_dot = cross_entropy_forward(x, target, x, None, options, block_limit=limit)
    bars = [cross_entropy_vjp(number, number, x, target, s, options, block_limit=limit)[0] for s in (None, (lse, rest))]
    wants, numbers = (True, False, True, False, True), (number,) * 4
    second = cross_entropy_second_order(x, target, x, None, numbers, options, wants=wants, block_limit=limit)
    for got in (loss, lse, rest, loss_dot, lse_dot, *bars, second[0], second[2], *second[4:]):
        assert got is not None and torch.equal(got, torch.zeros_like(got))


@pytest.mark.parametrize("limit", [None, 8])
def test_what_log_sum_exp_lacks_as_rounded(limit: int | None) -> None:
    x = 1000 + 3 * draw(0, 1, 5, 21, 1, dtype=torch.float32)
    target = torch.randint(3, 21, (1, 5, 1), device=DEVICE)
    _, lse, rest, _, _ = cross_entropy_forward(x, target, None, None, options_for(21, False), block_limit=limit)
    exact = torch.logsumexp(x.double(), 2)
    assert (lse - exact).abs().max() > 1e-6  # or there would be nothing to keep
    torch.testing.assert_close(lse.double() + rest.double(), exact, rtol=0, atol=1e-6)
