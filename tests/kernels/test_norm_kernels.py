"""Norm launchers against torch.func on a float64 formula: flags, sizes, groups, layouts, dtypes, launches."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1, or a GPU", allow_module_level=True)

from norm_oracle import (
    ALL_ONE,
    DEVICE,
    EPS,
    EVERYTHING,
    LAYER,
    MODULATED,
    NORMS,
    RMS,
    check_all,
    draw,
    formula,
    of,
)

from torch_jvpvjp.triton_kernels._launch import count_launches
from torch_jvpvjp.triton_kernels.norms import (
    Norm,
    Second,
    norm_forward,
    norm_jvp,
    norm_second_order,
    norm_vjp,
)

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

LOW = (torch.float16, torch.bfloat16, torch.float32)
# n, block_limit: rows in one pass, and rows cut into chunks, the last one full, partial or of one column
SIZES = ((1, None), (3, None), (64, None), (32, 16), (33, 16))


@pytest.mark.parametrize(("n", "limit"), SIZES, ids=lambda v: str(v))
def test_sizes(n: int, limit: int | None) -> None:
    check_all(LAYER, draw(n, n, rows=2, **ALL_ONE), limit)
    check_all(RMS, draw(n, n, rows=2, x=1, w=1, x_dot=1, a=1), limit)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    check_all(LAYER, draw(17, 17, dtype, rows=2, **ALL_ONE))


ABSENT = [
    (LAYER, ("b", "b_dot", "a_dot"), 16),
    (LAYER, ("w", "w_dot"), None),
    (RMS, ("w", "w_dot", "b", "b_dot", "a_dot"), None),
    (MODULATED, ("w_dot", "x_dot"), 16),
]


@pytest.mark.parametrize(("norm", "absent", "limit"), ABSENT)
def test_absent_operands(norm: Norm, absent: tuple[str, ...], limit: int | None) -> None:
    check_all(norm, draw(1, 20, rows=2, **{name: 1 for name in ALL_ONE if name not in absent}), limit)


@pytest.mark.parametrize("limit", [None, 16], ids=["one_pass", "chunks"])
def test_each_second_order_result_alone(limit: int | None) -> None:
    drawn = draw(2, 20, rows=2, **ALL_ONE)
    everything = norm_second_order(*of(drawn), LAYER, EVERYTHING, block_limit=limit)
    for position, name in enumerate(Second._fields):
        if limit is None and position < 3:
            continue
        alone = norm_second_order(*of(drawn), LAYER, Second(**{name: True}), block_limit=limit)
        torch.testing.assert_close(alone[position], everything[position], rtol=1e-13, atol=1e-13)
        assert sum(got is not None for got in alone) == 1


GROUPS: dict[str, dict[str, Any]] = {
    "all_in_groups": dict.fromkeys(ALL_ONE, 2),  # a shift and a scale of each sample
    "shared_weights": {name: 1 if name[0] in "wb" else 2 for name in ALL_ONE},
    "bias_in_groups": {name: 1 if name in ("w", "w_dot") else 2 for name in ALL_ONE},
    "many_tangents": {name: 1 if name in ("x", "w", "b") else 2 for name in ALL_ONE},
    "many_x_dot": {"x": 1, "w": 1, "x_dot": 3, "a": 3},
    "many_w_dot": {"x": 1, "w": 1, "b": 1, "w_dot": 3, "b_dot": 3, "a": 3},
    "one_x_many_weights": {"x": 1, "w": 3, "x_dot": 1, "w_dot": 1, "a": 3, "a_dot": 1},
    "one_tangent_of_many": {"x": 3, "w": 1, "x_dot": 1, "w_dot": 1, "a": 1, "a_dot": 3},
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_groups(groups: dict[str, int]) -> None:
    check_all(MODULATED, draw(3, 20, rows=1, **groups))


def test_groups_of_long_rows() -> None:
    check_all(LAYER, draw(3, 20, rows=1, **GROUPS["many_tangents"]), 16)
    check_all(LAYER, draw(3, 20, rows=1, x=2, w=2, x_dot=2, a=2), 16)


def test_weight_expanded_over_groups_gets_a_gradient_each() -> None:
    drawn = draw(4, 17, x=1, w=1, b=1, a=3, x_dot=3)
    drawn["w"] = drawn["w"].expand(3, -1)
    check_all(LAYER, drawn)


def test_rows_over_several_programs() -> None:
    check_all(LAYER, draw(5, 600, rows=5, **{name: 1 if name[0] in "wb" else 2 for name in ALL_ONE}))


def strided(t: Tensor) -> Tensor:
    return torch.stack((t, torch.full_like(t, torch.nan)), -1)[..., 0]


def offset(t: Tensor) -> Tensor:
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), torch.nan, dtype=t.dtype, device=t.device)
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def rows_first(t: Tensor) -> Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim == 3 else t


def expanded_rows(t: Tensor) -> Tensor:
    return t[:, :1].expand(t.shape) if t.ndim == 3 else t


@pytest.mark.parametrize("layout", [strided, offset, rows_first, expanded_rows], ids=lambda f: f.__name__)
def test_layouts(layout: Callable[[Tensor], Tensor]) -> None:
    drawn = draw(6, 20, rows=2, x=2, w=1, b=1, x_dot=2, w_dot=1, a=2)
    check_all(LAYER, {name: layout(t) for name, t in drawn.items()}, 16)


@pytest.mark.parametrize(("k", "m", "n"), [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
@pytest.mark.parametrize("w_groups", [1, None])
def test_zero_sizes(k: int, m: int, n: int, w_groups: int | None) -> None:
    w_groups = k if w_groups is None else w_groups
    x, w = torch.empty(k, m, n, device=DEVICE), torch.ones(w_groups, n, device=DEVICE)
    with count_launches() as count:
        assert [t.shape for t in norm_forward(x, w, w, LAYER, residual=x) if t is not None] == [x.shape] * 2
        assert [t.shape for t in norm_jvp(x, w, w, x, w, w, LAYER)[:2]] == [x.shape] * 2
        x_bar, *sums = norm_vjp(x, x, w, w, LAYER, (True, True, True))
        second = norm_second_order(x, w, w, x, w, w, x, x, LAYER, EVERYTHING)
    assert count.total == 0
    assert x_bar is not None and x_bar.shape == x.shape
    for got in (*sums, second.w_first, second.w_second, second.bias_first, second.bias_second):
        assert got is not None and torch.equal(got, torch.zeros(w_groups, n, device=DEVICE))
    assert [t.shape for t in (second.x_first, second.x_second, second.y_dot)] == [x.shape] * 3


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_rows_that_fill_their_tile(norm: Norm) -> None:
    """Nothing masks columns then; a program's last rows do not exist."""
    check_all(norm, draw(5, 64, **ALL_ONE))


def test_no_tangents_leave_the_primal() -> None:
    x, w, *_ = of(draw(7, 17, x=1, w=1))
    y, y_dot, *_ = norm_jvp(x, w, None, None, None, None, RMS)
    assert torch.equal(y, norm_forward(x, w, None, RMS)[0]) and torch.equal(y_dot, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_weights_of_another_dtype(dtype: torch.dtype) -> None:
    drawn = draw(8, 20, dtype, **ALL_ONE)
    drawn.update({name: drawn[name].to(torch.float32) for name in ("w", "w_dot", "b", "b_dot")})
    check_all(LAYER, drawn)


def test_eps_is_exact_in_float64() -> None:
    x = torch.zeros(1, 1, 3, dtype=torch.float64, device=DEVICE)
    y_dot = norm_jvp(x, None, None, torch.ones_like(x), None, None, RMS)[1]  # at x = 0, ẏ = eps^(-1/2)
    torch.testing.assert_close(y_dot, torch.full_like(x, EPS**-0.5), rtol=4e-16, atol=0)


@pytest.mark.parametrize("limit", [None, 512], ids=["one_pass", "chunks"])
def test_rows_far_from_zero_lose_nothing(limit: int | None) -> None:
    """PyTorch's float32 layer norm is off by 6e-5 here: the mean, 1000, is rounded to a float32."""
    x = torch.randn(1, 2, 2048, device=DEVICE) + 1e3
    exact = formula(x.double(), None, None, LAYER)
    y, y_dot, *_ = norm_jvp(x, None, None, x, None, None, LAYER, block_limit=limit)
    assert (y.double() - exact).abs().max() < 2e-6
    exact_dot = torch.func.jvp(lambda x: formula(x, None, None, LAYER), (x.double(),), (x.double(),))[1]
    assert (y_dot.double() - exact_dot).abs().max() < 2e-6
    x_bar = norm_vjp(x, x, None, None, LAYER, (True, False, False), block_limit=limit)[0]
    assert (
        x_bar is not None and (x_bar.double() - exact_dot).abs().max() < 1e-3
    )  # here ȳ, far from 0, is what is rounded


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("rows", [3, 70])
def test_rows_of_zeros_with_eps_zero_harm_no_other_row(rows: int) -> None:
    drawn = draw(9, 24, rows=rows, x=1, w=1, a=1)
    w_bar = norm_vjp(drawn["a"], drawn["x"], drawn["w"], None, Norm(0.0), (True, True, False))[1]
    x_hat = drawn["x"] * drawn["x"].square().mean(-1, keepdim=True).rsqrt()
    torch.testing.assert_close(w_bar, (x_hat * drawn["a"]).sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_nan_and_infinity_stay_in_their_row(value: float, norm: Norm) -> None:
    x, w, _, x_dot, *_ = of(draw(10, 20, x=1, w=1, x_dot=1))
    x[0, 1, 3] = value
    y, y_dot, *_ = norm_jvp(x, w, None, x_dot, None, None, norm, block_limit=16)
    expected, expected_dot = torch.func.jvp(lambda x: formula(x, w, None, norm), (x,), (x_dot,))
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(y_dot[:, [0, 2]], expected_dot[:, [0, 2]], rtol=1e-12, atol=1e-12)
    assert y_dot[0, 1].isnan().any()


# --- Launches, repeatability, central differences --------------------------------------------------------------------


def test_launch_counts() -> None:
    x, w, _, x_dot, _, _, a, _ = of(draw(19, 17, x=1, w=1, x_dot=4, a=4))
    with count_launches() as count:
        norm_forward(x, w, w, LAYER)
        norm_jvp(x, w, w, x_dot[:1], w, w, LAYER)
    assert dict(count.by_name) == {"_forward_kernel": 1, "_jvp_kernel": 1}
    with count_launches() as count:
        y, *_ = norm_jvp(x.expand(4, -1, -1), w, w, x_dot, None, None, LAYER)  # four tangents of one primal
    assert count.total == 1 and y.shape[0] == 4 and y.stride(0) == 0
    with count_launches() as count:
        norm_vjp(a, x, w, w, LAYER, (True, False, False))
    assert count.total == 1
    tall = draw(20, 1000, rows=9, **ALL_ONE)
    with count_launches() as count:
        norm_vjp(tall["a"], tall["x"], tall["w"], tall["b"], LAYER, (True, True, True))
    assert dict(count.by_name) == {"_vjp_kernel": 1, "_sum_partials_kernel": 2}


def test_weight_gradients_are_bitwise_repeatable() -> None:
    drawn = draw(21, 1000, torch.float32, rows=9, x=1, w=1, b=1, a=1)
    x, w, b, a = (drawn[name] for name in ("x", "w", "b", "a"))
    first = norm_vjp(a, x, w, b, LAYER, (False, True, True))
    again = norm_vjp(a.clone(), x.clone(), w.clone(), b, LAYER, (True, True, True))
    assert torch.equal(first[1], again[1]) and torch.equal(first[2], again[2])  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("limit", [None, 16], ids=["one_pass", "chunks"])
def test_derivatives_of_the_kernel_itself_by_central_differences(limit: int | None) -> None:
    drawn = draw(22, 20, rows=1, x=1, w=1, x_dot=1, w_dot=1, a=1)
    x, w, _, x_dot, w_dot, _, a, _ = of(drawn)
    h = 1e-5

    def along(f: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return (f(x + h * x_dot, w + h * w_dot) - f(x - h * x_dot, w - h * w_dot)) / (2 * h)

    y_dot = along(lambda x, w: norm_forward(x, w, None, LAYER, block_limit=limit)[0])
    got = norm_jvp(x, w, None, x_dot, w_dot, None, LAYER, block_limit=limit)[1]
    torch.testing.assert_close(got, y_dot, rtol=1e-8, atol=1e-8)
    x_bar, w_bar, _ = norm_vjp(a, x, w, None, LAYER, (True, True, False), block_limit=limit)
    assert x_bar is not None and w_bar is not None
    torch.testing.assert_close((x_bar * x_dot).sum() + (w_bar * w_dot).sum(), (a * y_dot).sum(), rtol=1e-8, atol=1e-8)
    second = norm_second_order(*of(drawn), LAYER, Second(x_second=True, w_second=True), block_limit=limit)
    for position, got in ((0, second.x_second), (1, second.w_second)):
        bar_dot = along(
            lambda x, w, i=position: norm_vjp(a, x, w, None, LAYER, (True, True, False), block_limit=limit)[i]  # pyright: ignore[reportArgumentType]
        )
        torch.testing.assert_close(got, bar_dot, rtol=1e-7, atol=1e-7)
