"""RMS norm launchers against torch.func on a float64 formula: flags, sizes, groups, layouts, dtypes, launches."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
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
from torch_jvpvjp.triton_kernels.rms_norm import (
    rms_norm_forward,
    rms_norm_jvp,
    rms_norm_second_order,
    rms_norm_vjp,
)

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

EPS = 0.1 / 3  # not a float32
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RESULTS = ("x_first", "w_first", "x_second", "w_second", "y_dot")
# n, block_limit: rows in one pass, and rows cut into chunks, the last one full, partial or of one column
SIZES = ((1, None), (3, None), (17, None), (64, None), (1000, None), (32, 16), (40, 16), (33, 16))
Operands = dict[str, Any]


@pytest.fixture(autouse=True)
def poisoned_buffers() -> Iterator[None]:
    """Fresh memory is NaN, so that an element nobody writes shows."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = before


# --- The oracle: derivatives of the formula by torch.func ------------------------------------------------------------


def formula(x: Tensor, w: Tensor | None) -> Tensor:
    y = x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return y if w is None else y * w[:, None, :]


def oracle(
    dtype: torch.dtype,
    x: Tensor,
    w: Tensor | None = None,
    x_dot: Tensor | None = None,
    w_dot: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> dict[str, Tensor | None]:
    """y, y_dot and every result of the second-order launcher, computed in `dtype`, group by group."""
    groups = max(t.shape[0] for t in (x, w, x_dot, w_dot, a, b) if t is not None)
    n = x.shape[-1]

    def rows(t: Tensor | None) -> Tensor:
        return (
            torch.zeros_like(x, dtype=dtype).expand(groups, -1, -1) if t is None else t.to(dtype).expand(groups, -1, -1)
        )

    def columns(t: Tensor | None, absent: float) -> Tensor:
        full = torch.full((groups, n), absent, dtype=dtype, device=x.device)
        return full if t is None else t.to(dtype).expand(groups, -1).clone()

    primals = (rows(x).clone(), columns(w, 1.0))
    tangents = (rows(x_dot).clone(), columns(w_dot, 0.0))
    y, pullback = torch.func.vjp(formula, *primals)
    y_dot, pullback_dot = torch.func.vjp(lambda x, w: torch.func.jvp(formula, (x, w), tangents)[1], *primals)
    x_first, w_first = pullback(rows(a))
    x_second, w_second = (p + q for p, q in zip(pullback(rows(b)), pullback_dot(rows(a)), strict=True))
    if w is not None and w.shape[0] == 1:
        w_first, w_second = w_first.sum(0, keepdim=True), w_second.sum(0, keepdim=True)
    results = {
        "y": y,
        "y_dot": y_dot,
        "x_first": x_first,
        "w_first": w_first,
        "x_second": x_second,
        "w_second": w_second,
    }
    return {name: None if name[0] == "w" and w is None else result for name, result in results.items()}


def check(name: str, got: Tensor | None, expected: Tensor | None, reference: Tensor | None, dtype: torch.dtype) -> None:
    """err(kernel) ≤ 2·(err(reference) + eps·max|y64|), where the reference computes as kernels do and rounds once."""
    assert got is not None and expected is not None and reference is not None, name
    assert got.shape == expected.shape, f"{name}: shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    assert got.dtype == dtype, f"{name}: {got.dtype}, expected {dtype}"
    if got.numel() == 0:
        return
    largest = expected.abs().max().item()
    error = (got.double() - expected).abs().max().item()
    reference_error = (reference.to(dtype).double() - expected).abs().max().item()
    budget = 2 * (reference_error + torch.finfo(dtype).eps * largest)
    if dtype is torch.float64:
        budget = 1e-12 * max(1.0, largest)
    assert error <= budget, f"{name}: error {error:.3g} over budget {budget:.3g} (largest {largest:.3g})"


def check_all(operands: Operands, limit: int | None = None, wanted: tuple[bool, ...] = (True,) * 5) -> None:
    """Every launcher on one set of operands, each left as it was."""
    x, w, x_dot, w_dot, a, b = (operands.get(name) for name in ("x", "w", "x_dot", "w_dot", "a", "b"))
    before = {name: t.clone() for name, t in operands.items() if t is not None}
    exact = oracle(torch.float64, **operands)
    reference = oracle(torch.float64 if x.dtype is torch.float64 else torch.float32, **operands)
    w_dtype = x.dtype if w is None else w.dtype

    def compare(name: str, got: Tensor | None, oracle_name: str) -> None:
        dtype = w_dtype if name.startswith("w_") else x.dtype
        check(name, got, exact[oracle_name], reference[oracle_name], dtype)

    if w is None or w.shape[0] == 1:
        wide = x.double() if x.dtype is torch.float64 else x.float()
        check(
            "forward",
            rms_norm_forward(x, w, EPS, block_limit=limit),
            formula(x.double(), None if w is None else w.double()),
            formula(wide, None if w is None else w.to(wide.dtype)),
            x.dtype,
        )

    y, y_dot = rms_norm_jvp(x, w, x_dot, w_dot, EPS, block_limit=limit)
    groups = max(t.shape[0] for t in (x, w, x_dot, w_dot) if t is not None)
    compare("y", y.expand(exact["y"].shape), "y")  # pyright: ignore[reportOptionalMemberAccess]
    assert y.shape[0] in (max(x.shape[0], 1 if w is None else w.shape[0]), groups)
    compare("y_dot", y_dot.expand(exact["y"].shape), "y_dot")  # pyright: ignore[reportOptionalMemberAccess]

    if a is not None and a.shape[0] == exact["y"].shape[0]:  # pyright: ignore[reportOptionalMemberAccess]
        for needs_x, needs_weight in ((True, True), (True, False), (False, True), (False, False)):
            x_bar, w_bar = rms_norm_vjp(a, x, w, EPS, needs_x, needs_weight, block_limit=limit)
            assert (x_bar is not None) == needs_x and (w_bar is not None) == (needs_weight and w is not None)
            if x_bar is not None:
                compare("x_bar", x_bar, "x_first")
            if w_bar is not None:
                compare("w_bar", w_bar, "w_first")

    if a is not None:
        second = second_order(operands, limit, wanted)
        for name, want, got in zip(RESULTS, wanted, second, strict=True):
            if want and not (name.startswith("w_") and w is None):
                compare(name, got, name)
            else:
                assert got is None, name

    for name, saved in before.items():
        assert torch.equal(saved, operands[name]), f"{name} was written to"


def second_order(operands: Operands, limit: int | None, wanted: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
    x, w, x_dot, w_dot, a, b = (operands.get(name) for name in ("x", "w", "x_dot", "w_dot", "a", "b"))
    flags = {f"wants_{name}": want for name, want in zip(RESULTS, wanted, strict=True)}
    return rms_norm_second_order(x, w, x_dot, w_dot, a, b, EPS, **flags, block_limit=limit)  # pyright: ignore[reportArgumentType]


def draw(seed: int, n: int, dtype: torch.dtype = torch.float64, rows: int = 5, **groups: int) -> Operands:
    """Normal operands; groups names those that exist and says how many groups they have."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device=DEVICE, dtype=dtype)

    return {name: normal(k, n) if name in ("w", "w_dot") else normal(k, rows, n) for name, k in groups.items()}


ALL_ONE = {"x": 1, "w": 1, "x_dot": 1, "w_dot": 1, "a": 1, "b": 1}


# --- Tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "limit"), SIZES, ids=lambda v: str(v))
def test_sizes_and_dtypes(n: int, limit: int | None, dtype: torch.dtype) -> None:
    check_all(draw(n, n, dtype, rows=3, **ALL_ONE), limit)


@pytest.mark.parametrize("limit", [None, 16], ids=["one_pass", "chunks"])
@pytest.mark.parametrize(
    "absent", [c for k in range(5) for c in itertools.combinations(("w", "x_dot", "w_dot", "b"), k)], ids="-".join
)
def test_absent_operands(absent: tuple[str, ...], limit: int | None) -> None:
    check_all(draw(1, 20, rows=3, **{name: 1 for name in ALL_ONE if name not in absent}), limit)


@pytest.mark.parametrize("limit", [None, 16], ids=["one_pass", "chunks"])
@pytest.mark.parametrize("operands", [ALL_ONE, {"x": 1, "w": 1, "w_dot": 1, "a": 1}], ids=["all", "few"])
def test_every_subset_of_second_order_results(operands: dict[str, int], limit: int | None) -> None:
    drawn = draw(2, 20, rows=2, **operands)
    everything = dict(zip(RESULTS, second_order(drawn, limit, (True,) * 5), strict=True))
    check_all(drawn, limit)
    for wanted in itertools.product((True, False), repeat=5):
        for (name, expected), want, got in zip(
            everything.items(), wanted, second_order(drawn, limit, wanted), strict=True
        ):
            assert (got is not None) == want, name
            if want:
                torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


GROUPS = {
    "all_in_groups": {"x": 3, "w": 3, "x_dot": 3, "w_dot": 3, "a": 3, "b": 3},
    "shared_weight": {"x": 3, "w": 1, "x_dot": 3, "w_dot": 1, "a": 3, "b": 3},
    "many_tangents": {"x": 1, "w": 1, "x_dot": 3, "w_dot": 3, "a": 3, "b": 3},
    "many_x_dot": {"x": 1, "w": 1, "x_dot": 3, "a": 3},
    "many_w_dot": {"x": 1, "w": 1, "w_dot": 3, "a": 3},
    "many_tangents_of_one_x_dot": {"x": 1, "w": 1, "x_dot": 1, "w_dot": 3, "a": 3},
    "one_x_many_weights": {"x": 1, "w": 3, "x_dot": 1, "w_dot": 1, "a": 3, "b": 1},
    "one_tangent_of_many": {"x": 3, "w": 1, "x_dot": 1, "w_dot": 1, "a": 1, "b": 3},
    "no_weight": {"x": 3, "x_dot": 3, "a": 3, "b": 1},
    "no_weight_many": {"x": 1, "x_dot": 3, "a": 3, "b": 3},
}


@pytest.mark.parametrize("limit", [None, 16], ids=["one_pass", "chunks"])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_groups(groups: dict[str, int], limit: int | None) -> None:
    check_all(draw(3, 20, rows=2, **groups), limit)


def test_weight_expanded_over_groups_gets_a_gradient_each() -> None:
    drawn = draw(4, 17, x=1, w=1, a=3, x_dot=3)
    drawn["w"] = drawn["w"].expand(3, -1)
    check_all(drawn)
    check_all({**drawn, "x": drawn["x"].expand(3, -1, -1)})


@pytest.mark.parametrize("rows", [1, 2, 200])
def test_rows_over_several_programs(rows: int) -> None:
    check_all(draw(5, 64, rows=rows, x=2, w=1, x_dot=2, w_dot=1, a=2, b=2))
    check_all(draw(5, 1000, rows=min(rows, 30), **ALL_ONE))


def strided(t: Tensor) -> Tensor:
    return torch.stack((t, torch.full_like(t, torch.nan)), -1)[..., 0]


def offset(t: Tensor) -> Tensor:
    wide = torch.full((*t.shape[:-1], t.shape[-1] + 3), torch.nan, dtype=t.dtype, device=t.device)
    wide[..., 1:-2] = t
    return wide[..., 1:-2]


def transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1)


def rows_first(t: Tensor) -> Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1) if t.ndim == 3 else t


def expanded_rows(t: Tensor) -> Tensor:
    return t[:, :1].expand(t.shape) if t.ndim == 3 else t


@pytest.mark.parametrize("layout", [strided, offset, transposed, rows_first, expanded_rows], ids=lambda f: f.__name__)
def test_layouts(layout: Callable[[Tensor], Tensor]) -> None:
    groups = {"x": 2, "w": 2, "x_dot": 2, "w_dot": 2, "a": 2, "b": 2}
    check_all({name: layout(t) for name, t in draw(6, 40, **groups).items()})
    check_all({name: layout(t) for name, t in draw(6, 40, **{**groups, "w": 1, "w_dot": 1}).items()}, 16)


@pytest.mark.parametrize(("k", "m", "n"), [(0, 2, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("w_groups", [1, None])
def test_zero_sizes(k: int, m: int, n: int, w_groups: int | None) -> None:
    w_groups = k if w_groups is None else w_groups
    x, w = torch.empty(k, m, n, device=DEVICE), torch.ones(w_groups, n, device=DEVICE)
    with count_launches() as count:
        assert rms_norm_forward(x, w, EPS).shape == x.shape
        assert [t.shape for t in rms_norm_jvp(x, w, x, w, EPS)] == [x.shape, x.shape]
        x_bar, w_bar = rms_norm_vjp(x, x, w, EPS, True, True)
        second = second_order({"x": x, "w": w, "x_dot": x, "w_dot": w, "a": x, "b": x}, None, (True,) * 5)
    assert count.total == 0
    assert x_bar is not None and x_bar.shape == x.shape
    for got in (w_bar, second[1], second[3]):
        assert got is not None and torch.equal(got, torch.zeros(w_groups, n, device=DEVICE))
    assert [t.shape for t in (second[0], second[2], second[4]) if t is not None] == [x.shape] * 3


def test_no_tangents_leave_the_primal() -> None:
    drawn = draw(7, 17, x=1, w=1)
    x, w = drawn["x"], drawn["w"]
    y, y_dot = rms_norm_jvp(x, w, x.new_empty(0, 5, 17), None, EPS)
    assert torch.equal(y, rms_norm_forward(x, w, EPS)) and y_dot.shape == (0, 5, 17)
    y, y_dot = rms_norm_jvp(x, w, None, None, EPS)
    assert torch.equal(y, rms_norm_forward(x, w, EPS)) and torch.equal(y_dot, torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("limit", [None, 16], ids=["one_pass", "chunks"])
def test_weight_of_another_dtype(dtype: torch.dtype, limit: int | None) -> None:
    drawn = draw(8, 40, dtype, **ALL_ONE)
    drawn.update({name: drawn[name].to(torch.float32) for name in ("w", "w_dot")})
    check_all(drawn, limit)


def test_eps_is_exact_in_float64() -> None:
    x = torch.zeros(1, 1, 3, dtype=torch.float64, device=DEVICE)
    _, y_dot = rms_norm_jvp(x, None, torch.ones_like(x), None, EPS)  # at x = 0, ẏ = eps^(-1/2)
    torch.testing.assert_close(y_dot, torch.full_like(x, EPS**-0.5), rtol=4e-16, atol=0)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("rows", [3, 70])
def test_rows_of_zeros_with_eps_zero_harm_no_other_row(rows: int) -> None:
    x = draw(9, 24, rows=rows, x=1, w=1, a=1)
    _, w_bar = rms_norm_vjp(x["a"], x["x"], x["w"], 0.0, True, True)
    x_hat = x["x"] * x["x"].square().mean(-1, keepdim=True).rsqrt()
    torch.testing.assert_close(w_bar, (x_hat * x["a"]).sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("limit", [None, 16], ids=["one_pass", "chunks"])
def test_nan_and_infinity_propagate_as_in_the_formula(value: float, limit: int | None) -> None:
    drawn = draw(10, 40, x=1, w=1, x_dot=1)
    drawn["x"][0, 1, 3] = value
    x, w, x_dot = drawn["x"], drawn["w"], drawn["x_dot"]
    y, y_dot = rms_norm_jvp(x, w, x_dot, None, EPS, block_limit=limit)
    expected, expected_dot = torch.func.jvp(lambda x: formula(x, w), (x,), (x_dot,))
    torch.testing.assert_close(y, expected, equal_nan=True, rtol=1e-12, atol=1e-12)
    assert torch.equal(y_dot.isfinite()[0, [0, 2, 3, 4]], expected_dot.isfinite()[0, [0, 2, 3, 4]])
    assert y_dot[0, 1].isnan().any()


def test_launch_counts() -> None:
    drawn = draw(11, 17, x=1, w=1, x_dot=4, a=4)
    x, w, x_dot, a = drawn["x"], drawn["w"], drawn["x_dot"], drawn["a"]
    with count_launches() as count:
        rms_norm_forward(x, w, EPS)
        rms_norm_jvp(x, w, x_dot[:1], w, EPS)
    assert dict(count.by_name) == {"_forward_kernel": 1, "_jvp_kernel": 1}
    with count_launches() as count:
        rms_norm_jvp(x, w, x_dot, None, EPS)  # four tangents of one primal
    assert count.total == 1
    with count_launches() as count:
        y, _ = rms_norm_jvp(x.expand(4, -1, -1), w, x_dot, None, EPS)
    assert count.total == 1 and y.shape[0] == 4 and y.stride(0) == 0
    with count_launches() as count:
        rms_norm_vjp(a, x, w, EPS, True, False)
    assert count.total == 1
    with count_launches() as count:
        rms_norm_vjp(
            draw(11, 1000, rows=40, a=1)["a"],
            draw(12, 1000, rows=40, x=1)["x"],
            draw(13, 1000, w=1)["w"],
            EPS,
            True,
            True,
        )  # noqa: E501
    assert dict(count.by_name) == {"_vjp_kernel": 1, "_sum_partials_kernel": 1}


def test_weight_gradient_is_bitwise_repeatable() -> None:
    drawn = draw(12, 1000, torch.float32, rows=40, **ALL_ONE)
    x, w, a = drawn["x"], drawn["w"], drawn["a"]
    first = rms_norm_vjp(a, x, w, EPS, False, True)[1]
    again = rms_norm_vjp(a.clone(), x.clone(), w.clone(), EPS, True, True)[1]
    assert first is not None and again is not None and torch.equal(first, again)


@pytest.mark.parametrize("limit", [None, 16], ids=["one_pass", "chunks"])
def test_derivatives_of_the_kernel_itself_by_central_differences(limit: int | None) -> None:
    drawn = draw(13, 20, rows=2, x=1, w=1, x_dot=1, w_dot=1, a=1)
    x, w, x_dot, w_dot, a = (drawn[name] for name in ("x", "w", "x_dot", "w_dot", "a"))
    h = 1e-5

    def along(f: Callable[[Tensor, Tensor], Tensor], dx: Tensor, dw: Tensor) -> Tensor:
        return (f(x + h * dx, w + h * dw) - f(x - h * dx, w - h * dw)) / (2 * h)

    y_dot = along(lambda x, w: rms_norm_forward(x, w, EPS, block_limit=limit), x_dot, w_dot)
    torch.testing.assert_close(rms_norm_jvp(x, w, x_dot, w_dot, EPS, block_limit=limit)[1], y_dot, rtol=1e-8, atol=1e-8)
    x_bar, w_bar = rms_norm_vjp(a, x, w, EPS, True, True, block_limit=limit)
    assert x_bar is not None and w_bar is not None
    torch.testing.assert_close((x_bar * x_dot).sum() + (w_bar * w_dot).sum(), (a * y_dot).sum(), rtol=1e-8, atol=1e-8)
    _, _, x_second, w_second, _ = second_order(drawn, limit, (False, False, True, True, False))
    x_bar_dot = along(lambda x, w: rms_norm_vjp(a, x, w, EPS, True, False, block_limit=limit)[0], x_dot, w_dot)  # pyright: ignore[reportArgumentType]
    w_bar_dot = along(lambda x, w: rms_norm_vjp(a, x, w, EPS, False, True, block_limit=limit)[1], x_dot, w_dot)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(x_second, x_bar_dot, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(w_second, w_bar_dot, rtol=1e-7, atol=1e-7)
