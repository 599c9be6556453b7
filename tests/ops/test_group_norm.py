"""Group norm: the facts particular to it (every property is checked in test_every_op)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from torch_jvpvjp import ops

SHAPES = [((2, 6), 3), ((2, 6, 5), 2), ((2, 4, 3, 5), 4), ((1, 4, 2, 3, 2), 1)]


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d)


# ---- facts particular to the op --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_it_is_pytorch_s(shape: tuple[int, ...], groups: int, activation: str | None, device: str) -> None:
    x, w, b = (torch.randn(s, dtype=torch.float64, device=device) for s in (shape, shape[1], shape[1]))
    expected = F.group_norm(x, groups, w, b, 1e-3)
    y = ops.group_norm(x, groups, w, b, 1e-3, activation=activation)
    torch.testing.assert_close(y, F.silu(expected) if activation else expected)


def test_groups_have_mean_0_and_variance_1_whatever_their_scale_and_shift(device: str) -> None:
    x = torch.randn(2, 6, 50, dtype=torch.float64, device=device)
    y = ops.group_norm(x, 3, eps=1e-12)
    torch.testing.assert_close(y.reshape(2, 3, -1).mean(-1), torch.zeros(2, 3, dtype=y.dtype, device=device))
    torch.testing.assert_close(
        y.reshape(2, 3, -1).var(-1, correction=0), torch.ones(2, 3, dtype=y.dtype, device=device)
    )
    torch.testing.assert_close(ops.group_norm(7 * x + 3, 3, eps=1e-12), y)


@pytest.mark.parametrize(("shape", "groups"), SHAPES[2:], ids=str)
def test_channels_last_stays_channels_last_in_every_derivative(
    shape: tuple[int, ...], groups: int, device: str
) -> None:
    x, x_dot, y_bar = (torch.randn(shape, device=device) for _ in range(3))
    w = torch.randn(shape[1], device=device)

    def derivatives(*tensors: Tensor) -> tuple[Tensor, ...]:
        x, x_dot, y_bar = tensors
        f = lambda t: ops.group_norm(t, groups, w, activation="silu")  # noqa: E731
        return *torch.func.jvp(f, (x,), (x_dot,)), *torch.func.vjp(f, x)[1](y_bar)

    results = derivatives(*map(channels_last, (x, x_dot, y_bar)))
    for ours, expected in zip(results, derivatives(x, x_dot, y_bar), strict=True):
        assert ours.movedim(1, -1).is_contiguous()
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("strides", [(48, 1, 12, 4), (48, 12, 4, 1)], ids=["channels-last", "contiguous"])
@pytest.mark.parametrize("sites", [(4, 3), (1, 1)], ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_weight_and_bias_alone_may_require_grad(
    strides: tuple[int, ...], sites: tuple[int, ...], activation: str | None, device: str
) -> None:
    # PyTorch's pullback writes the cotangent of channels-last input into no memory if it is not wanted: a crash.
    x = torch.empty_strided((2, 4, *sites), strides, device=device).normal_()
    parameters = [torch.randn(4, device=device).requires_grad_() for _ in range(2)]
    y_bar = torch.randn(x.shape, device=device)
    y = ops.group_norm(x, 2, *parameters, activation=activation)
    bars = torch.autograd.grad(y, parameters, y_bar)
    plain = F.group_norm(x.clone(memory_format=torch.contiguous_format), 2, *parameters)
    expected = torch.autograd.grad(F.silu(plain) if activation else plain, parameters, y_bar)
    torch.testing.assert_close(bars, expected)


def test_affine_is_right_under_compile_of_jvp() -> None:
    torch.compiler.reset()
    x, w, b = torch.randn(2, 4, 3), torch.randn(4), torch.randn(4)

    def push(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(lambda *p: ops.group_norm(p[0], 2, *p[1:]), (x, w, b), (x + 1, w + 1, b + 1))

    compiled: Any = torch.compile(push, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, w, b), push(x, w, b))
    torch.compiler.reset()


def test_a_bias_without_a_weight_has_a_gradient() -> None:
    x, b = torch.randn(2, 4, 3), torch.randn(4, requires_grad=True)
    ops.group_norm(x, 2, None, b).sum().backward()
    torch.testing.assert_close(b.grad, torch.full((4,), 6.0))


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("w_dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_weight_of_another_dtype(x_dtype: torch.dtype, w_dtype: torch.dtype, device: str) -> None:
    x = torch.randn(2, 4, 8, device=device).to(x_dtype).requires_grad_()
    w = torch.randn(4, device=device).to(w_dtype).requires_grad_()
    y = ops.group_norm(x, 2, w, w, 1e-3)
    y.sum().backward()
    assert y.dtype == x_dtype and x.grad is not None and x.grad.dtype == x_dtype
    assert w.grad is not None and w.grad.dtype == w_dtype
    exact = F.group_norm(x.detach().double(), 2, w.detach().double(), w.detach().double(), 1e-3)
    torch.testing.assert_close(y.detach().double(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # the interpreter computes in NumPy
def test_nan_and_infinity_stay_in_their_group(device: str) -> None:
    x = torch.randn(2, 4, 3, device=device)
    x[0, 1, 2], x[1, 3, 0] = float("nan"), float("inf")
    y = ops.group_norm(x, 2)
    bad = y.isnan().all(-1)
    assert bad.tolist() == [[True, True, False, False], [False, False, True, True]]
    assert y[~bad].isfinite().all()


# ---- one launch ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted")
class TestLaunches:
    """How many kernels each derivative takes."""

    def count(self, run: Callable[[], object]) -> int:
        from torch_jvpvjp.triton_kernels._launch import count_launches

        with count_launches() as count:
            run()
        return count.total

    def test_each(self, device: str) -> None:
        x, w, b = torch.randn(2, 4, 3, device=device), torch.randn(4, device=device), torch.randn(4, device=device)
        f = lambda x, w, b: ops.group_norm(x, 2, w, b, activation="silu")  # noqa: E731
        primals = (x, w, b)
        assert self.count(lambda: f(*primals)) == 1
        assert self.count(lambda: torch.func.jvp(f, primals, primals)) == 1
        tangents = torch.randn(3, 2, 4, 3, device=device)
        push = torch.func.vmap(lambda t: torch.func.jvp(lambda x: f(x, w, b), (x,), (t,)))
        assert self.count(lambda: push(tangents)) == 1
        pull = torch.func.vjp(lambda x: f(x, w, b), x)[1]
        assert self.count(lambda: pull(x)) == 1
        assert self.count(lambda: torch.func.vmap(pull)(tangents)) == 1
        pull = torch.func.vjp(f, *primals)[1]
        assert self.count(lambda: pull(x)) == 3  # and the sums of w̄ and b̄ over samples


# ---- bad input -------------------------------------------------------------------------------------------------------

X, W = torch.randn(2, 4, 3), torch.randn(4)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (([1.0], 1), {}, TypeError, r"input must be a Tensor, got list"),
        ((X.long(), 2), {}, TypeError, r"input must be float16, .* got torch.int64"),
        ((W, 2), {}, ValueError, r"input must have shape \(N, C, \*spatial\), got \(4,\)"),
        ((X, 2.0), {}, TypeError, r"num_groups must be an int, got float"),
        ((X, 3), {}, ValueError, r"divide the 4 channels of input's shape \(2, 4, 3\), got 3"),
        ((X, 0), {}, ValueError, r"num_groups must be positive .* got 0"),
        ((torch.randn(1, 2, 1), 2), {}, ValueError, r"more than one value .* got shape \(1, 2, 1\) with 2 groups"),
        ((X, 2, torch.randn(3)), {}, ValueError, r"weight must have shape \(4,\) to match .* \(2, 4, 3\), got \(3,\)"),
        ((X, 2, W, torch.randn(1, 4)), {}, ValueError, r"bias must have shape \(4,\) .* got \(1, 4\)"),
        ((X, 2, 1.0), {}, TypeError, r"weight must be a Tensor or None, got float"),
        ((X, 2, W.long()), {}, TypeError, r"weight must be float16, .* got torch.int64"),
        ((X, 2, W, W.to("meta")), {}, ValueError, r"bias must be on input's device cpu, got meta"),
        ((X, 2, W, W, "1"), {}, TypeError, r"eps must be a number, got str"),
        ((X, 2, W, W, float("nan")), {}, ValueError, r"eps must be finite, got nan"),
        ((X, 2), {"activation": "gelu"}, ValueError, r'activation must be None or "silu", got \'gelu\''),
    ],
)
def test_bad_input(args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=rf"group_norm: .*{message}"):
        ops.group_norm(*args, **options)
