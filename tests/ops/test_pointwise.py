"""Pointwise functions: what is particular to them (every property is checked in test_every_op)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from torch_jvpvjp.ops import pointwise
from torch_jvpvjp.ops.pointwise import gelu, mish, relu, sigmoid, silu, sin, softplus, tanh

PAIRS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "gelu": (gelu, F.gelu),
    "gelu, tanh": (lambda x: gelu(x, "tanh"), lambda x: F.gelu(x, approximate="tanh")),
    "silu": (silu, F.silu),
    "tanh": (tanh, torch.tanh),
    "sin": (sin, torch.sin),
    "softplus": (softplus, F.softplus),
    "softplus, options": (lambda x: softplus(x, -2, 1.5), lambda x: F.softplus(x, -2, 1.5)),
    "mish": (mish, F.mish),
    "sigmoid": (sigmoid, torch.sigmoid),
    "relu": (relu, F.relu),
}
pairs = pytest.mark.parametrize("name", PAIRS)


# ---- values ----------------------------------------------------------------------------------------------------------


@pairs
def test_third_derivatives_along_a_line(name: str, device: str) -> None:
    ours, theirs = PAIRS[name]
    theirs = (lambda x: x * torch.sigmoid(x)) if name == "silu" else theirs
    x = torch.linspace(-3, 3, 13, dtype=torch.float64, device=device)

    def derivatives(f: Callable[[Tensor], Tensor]) -> list[Tensor]:
        found = []
        for _ in range(4):
            found.append(f(x))
            f = lambda t, g=f: torch.func.jvp(g, (t,), (torch.ones_like(t),))[1]  # noqa: E731
        return found

    torch.testing.assert_close(derivatives(ours), derivatives(theirs), rtol=1e-10, atol=1e-10)


@pairs
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter computes in NumPy
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_nan_infinity_and_large_numbers_as_in_pytorch(name: str, device: str) -> None:
    ours, theirs = PAIRS[name]
    far = [0.0, -0.0, 88.0, -88.0, 1e3, -1e3, 1e18, -1e18, float("nan")]
    if name != "sin":  # whose argument reduction differs between libraries at 1e18
        far += [float("inf"), -float("inf")]
    x = torch.tensor(far, device=device)
    x = x[x.abs() < 1e4] if name == "sin" else x
    found, expected = ours(x), theirs(x)
    # of infinity oneDNN's gelu of float32, which PyTorch calls on some processors, makes NaN; that of float64 does not
    exact = theirs(x.double()).float()
    expected = torch.where(expected.isnan() & ~exact.isnan() & ~found.isnan(), exact, expected)
    torch.testing.assert_close(found, expected, equal_nan=True)
    largest = torch.finfo(x.dtype).max
    for order in range(2, 4):
        nearly = torch.tensor([largest, -largest], device=device) if name != "sin" else x[:2]
        derivative = ours
        for _ in range(order):
            derivative = lambda t, f=derivative: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]  # noqa: E731
        assert derivative(nearly).isfinite().all()
    finite = x[x.isfinite() & (x.abs() < 1e6)]
    first = [torch.func.vjp(f, finite)[1](torch.ones_like(finite))[0] for f in (ours, theirs)]
    torch.testing.assert_close(first[0], first[1])
    bend = torch.func.grad(lambda t: torch.func.grad(lambda s: ours(s).sum())(t).sum())(x[x.isfinite()])
    assert bend.isfinite().all()


def test_subgradients_are_those_of_pytorch(device: str) -> None:
    x = torch.tensor([-1.0, 0.0, -0.0, 2.0], device=device)
    y, slope, *_ = torch.func.jvp(relu, (x,), (torch.ones_like(x),))
    assert slope.tolist() == [0, 0, 0, 1] and y.tolist() == [0, 0, 0, 2]
    assert torch.func.grad(lambda t: relu(t).sum())(x).tolist() == [0, 0, 0, 1]
    at_threshold = torch.tensor([2.0], dtype=torch.float64, device=device)  # βx = threshold counts as below
    ours, theirs = (torch.func.grad(lambda t, f=f: f(t, 2.0, 4.0).sum())(at_threshold) for f in (softplus, F.softplus))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_symmetries_hold_in_every_dtype(dtype: torch.dtype, device: str) -> None:
    x = torch.linspace(-6, 6, 37, device=device).to(dtype)
    assert torch.equal(tanh(-x), -tanh(x)) and torch.equal(sin(-x), -sin(x))
    torch.testing.assert_close(sigmoid(x) + sigmoid(-x), torch.ones_like(x))
    for f in (gelu, silu):
        torch.testing.assert_close(f(x) - f(-x), x, atol=8 * torch.finfo(dtype).eps, rtol=2 * torch.finfo(dtype).eps)
    torch.testing.assert_close(softplus(x) - softplus(-x), x, atol=8 * torch.finfo(dtype).eps, rtol=0)


def test_tiny_numbers_keep_their_relative_precision(device: str) -> None:
    x = torch.tensor([1e-12, -1e-9, 1e-6], dtype=torch.float64, device=device)
    torch.testing.assert_close(tanh(x), x, rtol=1e-11, atol=0)
    torch.testing.assert_close(softplus(-40 - x), torch.exp(-40 - x), rtol=1e-12, atol=0)


# ---- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [gelu, tanh], ids=["saves x", "saves y"])
def test_order_of_axes_in_memory_is_kept_as_pytorch_keeps_it(function: Callable[[Tensor], Tensor], device: str) -> None:
    x = torch.randn(2, 3, 4, 5, device=device)
    permuted = (x.to(memory_format=torch.channels_last), x.permute(3, 1, 0, 2), x.transpose(0, 1)[::2])
    for view in (*permuted, x[:, :, 1:2], x[:1].expand_as(x), x[:, :, :1].expand_as(x)):
        y = function(view)
        assert y.stride() == torch.tanh(view).stride()
        torch.testing.assert_close(y, function(view.contiguous()))
        gradient = torch.func.grad(lambda t: function(t).sum())(view)
        torch.testing.assert_close(gradient, torch.func.grad(lambda t: function(t).sum())(view.contiguous()))


@pytest.mark.usefixtures("interpreted")
def test_dense_layouts_are_read_where_they_lie(device: str) -> None:
    """A copy would be a second tensor of the size of x."""
    x = torch.randn(2, 3, 4, device=device).permute(2, 0, 1)
    from torch_jvpvjp.triton_kernels._launch import record_launches

    with record_launches() as launches:
        silu(x)
        silu(x[0, 0].expand(5, 3))
    assert launches[0].arguments[0].data_ptr() == x.data_ptr()


# ---- one launch ------------------------------------------------------------------------------------------------------


def launches_of(run: Callable[[], object]) -> int:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    with count_launches() as count:
        run()
    return count.total


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("f", [gelu, tanh], ids=["saves x", "saves y"])
class TestLaunches:
    """How many kernels each derivative takes."""

    def test_first_order(self, f: Callable[[Tensor], Tensor], device: str) -> None:
        x = torch.randn(3, 4, device=device)
        many = torch.randn(5, 3, 4, device=device)
        y, pull, *_ = torch.func.vjp(f, x)
        assert launches_of(lambda: f(x)) == 1
        assert launches_of(lambda: torch.func.jvp(f, (x,), (x,))) == 1
        assert launches_of(lambda: torch.func.vmap(lambda t: torch.func.jvp(f, (x,), (t,)))(many)) == 1
        assert launches_of(lambda: torch.func.vmap(f)(many)) == 1
        assert launches_of(lambda: pull(y)) == 1
        assert launches_of(lambda: torch.func.vmap(pull)(many)) == 1

    def test_second_order(self, f: Callable[[Tensor], Tensor], device: str) -> None:
        x = torch.randn(3, 4, device=device)
        gradient = torch.func.grad(lambda t: f(t).sum())
        # The dual primal, and x̄ with its tangent.
        assert launches_of(lambda: torch.func.jvp(gradient, (x,), (x,))) == 2
        # Value and tangent, and the cotangents of x and ẋ.
        assert launches_of(lambda: torch.func.grad(lambda t: torch.func.jvp(f, (t,), (t,))[1].sum())(x)) == 2

    def test_second_derivative_by_two_pushforwards(self, f: Callable[[Tensor], Tensor], device: str) -> None:
        x = torch.randn(3, 4, device=device)
        push = lambda t: torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]  # noqa: E731
        assert launches_of(lambda: torch.func.jvp(push, (x,), (x,))) == 1


# ---- bad input -------------------------------------------------------------------------------------------------------

X = torch.randn(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gelu(X, "erf"), ValueError, r"gelu: approximate must be 'none' or 'tanh', got 'erf'"),
        (lambda: gelu(X, True), TypeError, r"gelu: approximate must be 'none' or 'tanh', got bool"),  # type: ignore[arg-type]
        (lambda: silu(X.long()), TypeError, r"silu: input must be float16, .* got torch.int64; use .to\(\)"),
        (lambda: sin(X.to(torch.complex64)), TypeError, r"sin: input must be float16, .* got torch.complex64"),
        (lambda: tanh(1.0), TypeError, r"tanh: input must be a Tensor, got float"),  # type: ignore[arg-type]
        (lambda: softplus(X, 0.0), ValueError, r"softplus: beta must be finite and not 0, got 0.0"),
        (lambda: softplus(X, float("nan")), ValueError, r"softplus: beta must be finite and not 0, got nan"),
        (lambda: softplus(X, "1"), TypeError, r"softplus: beta must be a number, got str"),  # type: ignore[arg-type]
        (lambda: softplus(X, 1.0, X), TypeError, r"softplus: threshold must be a number, got Tensor"),  # type: ignore[arg-type]
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_every_function_of_the_module_is_tested_here() -> None:
    assert {name.partition(",")[0] for name in PAIRS} == set(pointwise.__all__) - {"ops"}


@pytest.mark.parametrize("name", ["silu", "mish", "relu"])
def test_inplace_is_an_argument_as_in_pytorch_and_refused(name: str) -> None:
    ours, theirs, x = getattr(pointwise, name), getattr(F, name), torch.randn(5)
    torch.testing.assert_close(ours(x, False), theirs(x, False))
    torch.testing.assert_close(ours(x, inplace=False), theirs(x))
    with pytest.raises(ValueError, match=rf"{name}: inplace must be False, got True; .* write x = {name}\(x\)"):
        ours(x, inplace=True)
    with pytest.raises(TypeError, match=rf"{name}: inplace must be False, got 0"):
        ours(x, 0)
