"""The pointwise launcher and the jets against torch.func in float64: functions, flags, sizes, groups, layouts."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    DEVICE = "cpu"
elif torch.cuda.is_available():
    DEVICE = "cuda"
else:
    pytest.skip("needs TRITON_INTERPRET=1, or a GPU", allow_module_level=True)

import triton
import triton.language as tl

from torch_jvpvjp.triton_kernels._elements import direction_chunks
from torch_jvpvjp.triton_kernels._jets import jet
from torch_jvpvjp.triton_kernels._launch import count_launches, launch
from torch_jvpvjp.triton_kernels.pointwise import pointwise_jet

# PyTorch scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

Function = tuple[str, float, float]
REFERENCES: dict[Function, Callable[[Tensor], Tensor]] = {
    ("gelu", 1.0, 20.0): lambda x: x * 0.5 * (1 + torch.erf(x * math.sqrt(0.5))),
    ("gelu_tanh", 1.0, 20.0): lambda x: x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x)),
    ("silu", 1.0, 20.0): lambda x: x * torch.sigmoid(x),
    ("sigmoid", 1.0, 20.0): torch.sigmoid,
    ("tanh", 1.0, 20.0): torch.tanh,
    ("sin", 1.0, 20.0): torch.sin,
    ("softplus", 1.0, 20.0): F.softplus,
    ("softplus", 2.5, 3.0): lambda x: F.softplus(x, 2.5, 3.0),
    ("softplus", -0.7, 20.0): lambda x: F.softplus(x, -0.7, 20.0),
    ("mish", 1.0, 20.0): lambda x: x * torch.tanh(torch.log1p(torch.exp(x))),
    ("relu", 1.0, 20.0): torch.relu,
    ("identity", 1.0, 20.0): lambda x: 1.0 * x,
}
SLOPES = {"tanh_slope": torch.tanh, "sigmoid_slope": torch.sigmoid, "relu_slope": torch.relu}
SILU = ("silu", 1.0, 20.0)


def derivatives(f: Callable[[Tensor], Tensor], x: Tensor, orders: int) -> list[Tensor]:
    """f and its derivatives, by differentiating sums."""
    found = []
    for _ in range(orders):
        found.append(f(x))
        f = torch.func.grad(lambda t, g=f: g(t).sum())
    return found


# ---- the jets --------------------------------------------------------------------------------------------------------


@triton.jit
def _jet_kernel(
    x_ptr,
    out_ptr,
    n,
    first: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    second: tl.float64,  # pyright: ignore[reportInvalidTypeForm]
    FUNCTION: tl.constexpr,
    ROUNDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.arange(0, BLOCK)
    f, f1, f2, f3 = jet(tl.load(x_ptr + at, mask=at < n, other=0.0), first, second, FUNCTION, ROUNDED)
    tl.store(out_ptr + at, f, mask=at < n)
    tl.store(out_ptr + n + at, f1, mask=at < n)
    tl.store(out_ptr + 2 * n + at, f2, mask=at < n)
    tl.store(out_ptr + 3 * n + at, f3, mask=at < n)


def jets(function: Function, x: Tensor, *, rounded: bool = False) -> Tensor:
    n = x.numel()
    out = torch.empty(4, n, dtype=x.dtype, device=x.device)
    name, first, second = function
    block = triton.next_power_of_2(n)
    launch(_jet_kernel, 1, x, x, out, n, first, second, FUNCTION=name, ROUNDED=rounded, BLOCK=block)
    return out


@pytest.mark.parametrize("function", REFERENCES, ids=str)
def test_jets_to_rounding(function: Function) -> None:
    x = torch.linspace(-9, 9, 73, dtype=torch.float64, device=DEVICE)  # 0 and both sides of every branch
    expected = torch.stack(derivatives(REFERENCES[function], x, 4))
    torch.testing.assert_close(jets(function, x), expected, rtol=1e-12, atol=5e-12)
    error = (jets(function, x.float()) - expected).abs().amax(1)
    assert (error <= 4 * torch.finfo(torch.float32).eps * expected.abs().amax(1).clamp_min(1)).all(), error


@pytest.mark.parametrize("function", REFERENCES, ids=str)
def test_jets_that_are_rounded_to_16_bits(function: Function) -> None:
    """At every float16 within ±24: f relatively, where it is no subnormal, derivatives to their largest values."""
    x = torch.arange(2**16, dtype=torch.int32, device=DEVICE).to(torch.int16).view(torch.float16)
    x = x[x.abs() <= 24][::7]
    wide = x.double()
    exact = wide * 0.5 * torch.erfc(-wide * math.sqrt(0.5)) if function[0] == "gelu" else REFERENCES[function](wide)
    expected = torch.stack([exact, *derivatives(REFERENCES[function], wide, 4)[1:]])
    found = jets(function, x.float(), rounded=True).double()
    worst = ((found - expected).abs() - 1e-9)[0] / exact.abs().clamp_min(1e-30)
    assert worst.max() <= 2.0**-16  # of the 2⁻¹² to 2⁻¹¹ that rounding to float16 costs
    error = (found - expected).abs().amax(1)
    assert (error <= 2.0**-16 * expected.abs().amax(1).clamp_min(1)).all(), error


def test_sine_beyond_its_short_reduction() -> None:
    """One element of 4096 or more sends its program to the exact one; so do NaN and ∞."""
    near = torch.tensor([0.0, -0.0, 3.140625, -355.0, 4092.0], dtype=torch.float16, device=DEVICE)
    for last in (-4096.0, 65504.0, float("nan")):
        x = torch.cat([near, torch.tensor([last], dtype=torch.float16, device=DEVICE)])
        found = jets(("sin", 1.0, 20.0), x.float(), rounded=True).double()
        exact = torch.stack([x.double().sin(), x.double().cos(), -x.double().sin(), -x.double().cos()])
        torch.testing.assert_close(found, exact, rtol=2.0**-16, atol=0, equal_nan=True)
        assert torch.equal(found[0, :2].signbit(), near[:2].signbit())
    found = jets(("sin", 1.0, 20.0), near.float(), rounded=True).double()
    torch.testing.assert_close(found[:2], torch.stack([near.double().sin(), near.double().cos()]), rtol=4e-6, atol=0)
    assert torch.equal(found[0, :2].signbit(), near[:2].signbit())


@pytest.mark.parametrize("name", SLOPES)
def test_slopes_as_functions_of_the_output(name: str) -> None:
    f = SLOPES[name]
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, device=DEVICE)
    _, f1, f2, f3 = derivatives(f, x, 4)
    _, g, g1, g2 = jets((name, 0.0, 0.0), f(x))
    torch.testing.assert_close(g, f1)
    torch.testing.assert_close(g1 * f1, f2)  # f″ = g′(y) f′
    torch.testing.assert_close(g2 * f1 * f1 + g1 * f2, f3)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("function", [f for f in REFERENCES if f[0] != "sin"], ids=str)
@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "rounded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_jets_far_out_are_finite_and_nan_stays(function: Function, dtype: torch.dtype, rounded: bool) -> None:  # noqa: FBT001
    far = torch.tensor([50.0, 1e3, 1e10, 3e38], dtype=dtype, device=DEVICE)
    x = torch.cat([far, -far])
    found = jets(function, x, rounded=rounded)
    assert found.isfinite().all()
    assert (found[2:].abs() <= 1e-6).all()  # all of them are straight lines out there
    assert jets(function, torch.full_like(x, torch.nan), rounded=rounded)[0].isnan().all()


# ---- the launcher ----------------------------------------------------------------------------------------------------


def check(
    function: Function, operands: dict[str, Tensor | None], wants: str = "y p q bend", limit: int | None = None
) -> None:
    """Every wanted result against derivatives of the reference, within twice the rounding of the dtype."""
    x = operands["x"]
    assert x is not None
    before = {name: t.clone() for name, t in operands.items() if t is not None}
    flags = {f"wants_{name}": name in wants.split() for name in ("y", "p", "q", "bend")}
    results = pointwise_jet(function, **operands, **flags, block_limit=limit)  # pyright: ignore[reportArgumentType]
    f, f1, f2 = derivatives(REFERENCES[function], x.double(), 3)
    zero = torch.zeros_like(f)
    p, q, b = (zero if operands.get(name) is None else operands[name].double() for name in ("p", "q", "b"))  # pyright: ignore[reportOptionalMemberAccess]
    expected = {"y": f, "p": f1 * p, "q": f1 * q, "bend": f2 * p * q + f1 * b}
    eps = torch.finfo(x.dtype).eps if x.dtype != torch.float64 else 1e-13
    for (name, want), got in zip(expected.items(), results, strict=True):
        assert (got is not None) == (name in wants.split()), name
        if got is not None:
            assert got.dtype == x.dtype and got.shape[1:] == x.shape[1:]
            error = (got.double() - want).abs().max() if want.numel() else torch.zeros(())
            assert error <= 4 * eps * want.abs().max().clamp_min(1) if want.numel() else True, (name, float(error))
    for name, copy in before.items():
        assert torch.equal(copy, operands[name]), f"{name} was written to"  # pyright: ignore[reportArgumentType]


def draw(n: int, dtype: torch.dtype = torch.float64, **groups: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(n)
    return {
        name: torch.randn(k, n, 1, generator=generator, dtype=torch.float64).to(DEVICE, dtype)
        for name, k in groups.items()
    }


@pytest.mark.parametrize("function", REFERENCES, ids=str)
def test_every_function(function: Function) -> None:
    check(function, draw(20, x=1, p=1, q=1, b=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("n", "limit"), [(1, None), (17, None), (1024, None), (40, 16), (33, 16)])
def test_sizes_and_dtypes(n: int, limit: int | None, dtype: torch.dtype) -> None:
    check(SILU, draw(n, dtype, x=1, p=1, q=1, b=1), limit=limit)
    check(SILU, draw(n, dtype, x=1, p=3, q=3, b=3), limit=limit)


@pytest.mark.parametrize("groups", list(itertools.product((1, 3), repeat=4)), ids=str)
def test_groups(groups: tuple[int, ...]) -> None:
    check(SILU, draw(20, **dict(zip(("x", "p", "q", "b"), groups, strict=True))), limit=16)


def test_every_subset_of_results() -> None:
    drawn = draw(20, x=1, p=2, q=2, b=2)
    for count in range(5):
        for wants in itertools.combinations(("y", "p", "q", "bend"), count):
            check(SILU, drawn, " ".join(wants))
    for absent in ({"b": None}, {"p": None, "q": None}):
        check(SILU, {**drawn, **absent}, "y bend")


def test_layouts() -> None:
    drawn = draw(40, x=3, p=3, q=3, b=3)
    strided = {name: torch.stack((t, t), 2)[:, :, 0] for name, t in drawn.items() if t is not None}
    check(SILU, strided, limit=16)  # pyright: ignore[reportArgumentType]
    flipped = {name: t.transpose(0, 1).contiguous().transpose(0, 1) for name, t in drawn.items() if t is not None}
    check(SILU, flipped, limit=16)  # pyright: ignore[reportArgumentType]
    one_value = torch.full((), 0.7, dtype=torch.float64, device=DEVICE).expand(3, 40, 1)
    check(SILU, {**drawn, "p": one_value}, limit=16)
    check(SILU, {**drawn, "x": drawn["x"][:1].expand(3, -1, -1)}, limit=16)  # pyright: ignore[reportOptionalSubscript]


def test_zero_sizes() -> None:
    with count_launches() as count:
        check(SILU, draw(0, x=1, p=1, q=2, b=1))
        check(SILU, draw(0, x=2, p=1, q=2, b=1))
    assert count.total == 0
    x = draw(5, x=1)["x"]
    assert x is not None
    with count_launches() as count:
        y, x_dot, *_ = pointwise_jet(SILU, x, x[:0], wants_y=True, wants_p=True)
    assert count.total == 1 and x_dot is not None and x_dot.shape == (0, 5, 1)
    torch.testing.assert_close(y, REFERENCES[SILU](x))


def test_directions_of_one_point_share_a_launch_and_its_value() -> None:
    drawn = draw(20, x=1, p=5)
    with count_launches() as count:
        y = pointwise_jet(SILU, drawn["x"].expand(5, -1, -1), drawn["p"], wants_y=True, wants_p=True)[0]  # pyright: ignore
    assert dict(count.by_name) == {"_pointwise_kernel": 1}
    assert y is not None and y.shape == (5, 20, 1) and y.stride(0) == 0


def test_directions_are_split_where_blocks_alone_do_not_fill_the_device() -> None:
    assert direction_chunks(1000, 1, 132) == (1000, 1)
    assert direction_chunks(4096, 2, 132) == (1024, 4)
    assert direction_chunks(7, 100_000, 132) == (1, 7)
    for directions, blocks in itertools.product(range(1, 40), (1, 3, 50)):
        chunks, per_chunk = direction_chunks(directions, blocks, 1)
        assert (chunks - 1) * per_chunk < directions <= chunks * per_chunk
