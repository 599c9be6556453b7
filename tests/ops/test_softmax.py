"""Softmax, log_softmax and logsumexp: the facts particular to them (every property is checked in test_every_op)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 -- PyTorch's documentation spells it so
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from torch_jvpvjp import ops
from torch_jvpvjp.ops.softmax import op

INF = float("inf")
PAIRS = {
    "softmax": (ops.softmax, torch.softmax),
    "log_softmax": (ops.log_softmax, torch.log_softmax),
    "logsumexp": (ops.logsumexp, torch.logsumexp),
}
each = pytest.mark.parametrize("name", PAIRS)


# ---- facts particular to the ops -------------------------------------------------------------------------------------


def test_rows_sum_to_one_and_forget_a_shift(device: str) -> None:
    x = 5 * torch.randn(4, 9, dtype=torch.float64, device=device)
    y = ops.softmax(x, -1)
    torch.testing.assert_close(y.sum(-1), torch.ones(4, dtype=torch.float64, device=device))
    torch.testing.assert_close(ops.softmax(x + 1000, -1), y)


def test_the_jacobian_of_softmax_is_symmetric_and_kills_constants(device: str) -> None:
    x = torch.randn(6, dtype=torch.float64, device=device)
    jacobian = torch.func.jacfwd(lambda t: ops.softmax(t, 0, scale=0.3))(x)
    torch.testing.assert_close(jacobian, jacobian.mT)
    torch.testing.assert_close(jacobian.sum(1), torch.zeros_like(x), atol=1e-12, rtol=0)


def test_the_gradient_of_logsumexp_is_softmax(device: str) -> None:
    x = torch.randn(3, 5, dtype=torch.float64, device=device)
    gradient = torch.func.grad(lambda t: ops.logsumexp(t, (0, 1)))(x)
    torch.testing.assert_close(gradient.flatten(), ops.softmax(x.flatten(), 0))


@each
@pytest.mark.parametrize("dim", [0, 1, 2, -1])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_every_axis_as_in_pytorch(name: str, dim: int, dtype: torch.dtype, device: str) -> None:
    ours, theirs = PAIRS[name]
    x = torch.randn(2, 3, 4, device=device).to(dtype)
    torch.testing.assert_close(ours(x, dim), theirs(x, dim))


@pytest.mark.parametrize("dim", [(0,), (0, 2), [1, -1], (0, 1, 2), (2, 0)])
@pytest.mark.parametrize("keepdim", [False, True])
def test_logsumexp_over_several_axes(dim: Any, keepdim: bool, device: str) -> None:
    x = torch.randn(2, 3, 4, device=device)
    mask = torch.rand(2, 1, 4, device=device) > 0.3
    torch.testing.assert_close(ops.logsumexp(x, dim, keepdim), torch.logsumexp(x, dim, keepdim))
    filled = torch.where(mask, 0.5 * x, -INF)
    torch.testing.assert_close(
        ops.logsumexp(x, dim, keepdim, scale=0.5, mask=mask), torch.logsumexp(filled, dim, keepdim)
    )


@each
def test_scalars_and_empty_rows_as_in_pytorch(name: str, device: str) -> None:
    ours, theirs = PAIRS[name]
    for x in (torch.tensor(2.0, device=device), torch.empty(3, 0, device=device), torch.empty(0, 3, device=device)):
        torch.testing.assert_close(ours(x, -1), theirs(x, -1))


@each
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes in NumPy
@pytest.mark.parametrize("row", [[-INF, 1.0], [-INF, -INF], [INF, 1.0], [INF, INF], [float("nan"), 1.0]], ids=str)
def test_nan_and_infinity_propagate_as_in_pytorch(name: str, row: list[float], device: str) -> None:
    ours, theirs = PAIRS[name]
    x, v = torch.tensor(row, device=device), torch.tensor([1.0, 2.0], device=device)
    for got, expected in zip(
        *(torch.func.jvp(lambda t, f=f: f(t, -1), (x,), (v,)) for f in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(got, expected, equal_nan=True)
    leaf = x.clone().requires_grad_()
    pulled = [torch.autograd.grad(f(leaf, -1).sum(), leaf)[0] for f in (ours, theirs)]
    torch.testing.assert_close(*pulled, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtype_says_what_the_result_is_of(dtype: torch.dtype, device: str) -> None:
    x = torch.arange(6, device=device).reshape(2, 3)
    assert ops.softmax(x, 1, dtype=dtype).dtype == dtype
    y = torch.randn(2, 3, device=device).half().requires_grad_()
    (gradient,) = torch.autograd.grad(ops.log_softmax(y, 1, dtype=dtype).sum(), y)
    assert gradient.dtype == torch.float16


def test_autocast_on_a_cpu_leaves_it_alone() -> None:
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.softmax(x, -1).dtype == F.softmax(x, -1).dtype == torch.float32
        assert ops.softmax(x.bfloat16(), -1).dtype == F.softmax(x.bfloat16(), -1).dtype == torch.bfloat16


# ---- masks -----------------------------------------------------------------------------------------------------------


def derivatives(f: Callable[[Tensor], Tensor], x: Tensor, v: Tensor) -> list[Tensor]:
    gradient = torch.func.grad(lambda t: f(t).nan_to_num(neginf=0.0).square().sum())
    return [gradient(x), *torch.func.jvp(gradient, (x,), (v,)), torch.func.jvp(f, (x,), (v,))[1]]


@each
def test_a_row_without_anything_kept_is_a_constant(name: str, device: str) -> None:
    x, v = (torch.randn(2, 3, dtype=torch.float64, device=device) for _ in range(2))
    mask = torch.tensor([[True], [False]], device=device)
    f = lambda t: PAIRS[name][0](t, -1, mask=mask)  # noqa: E731
    assert torch.equal(f(x)[1], torch.full_like(f(x)[1], 0.0 if name == "softmax" else -INF))
    torch.testing.assert_close(f(x)[0], PAIRS[name][1](x, -1)[0])
    for derivative in derivatives(f, x, v):
        assert torch.equal(derivative[1], torch.zeros_like(derivative[1]))
        assert derivative[0].any()


@each
@pytest.mark.parametrize("shape", [(2, 1, 1, 5), (1, 3, 4, 1), (4, 5), (2, 3, 4, 5), (2, 1, 4, 5), (5,)], ids=str)
def test_a_mask_broadcasts(name: str, shape: tuple[int, ...], device: str) -> None:
    x, v = (torch.randn(2, 3, 4, 5, dtype=torch.float64, device=device) for _ in range(2))
    mask = torch.rand(shape, device=device) > 0.4
    full = mask.expand(x.shape).clone()
    for dim in (-1, 1):
        broadcast = derivatives(lambda t: PAIRS[name][0](t, dim, mask=mask), x, v)  # noqa: B023
        for one, other in zip(broadcast, derivatives(lambda t: PAIRS[name][0](t, dim, mask=full), x, v), strict=True):  # noqa: B023
            torch.testing.assert_close(one, other)


def test_what_is_masked_may_be_nan(device: str) -> None:
    x = torch.tensor([1.0, float("nan"), 2.0], device=device, requires_grad=True)
    mask = torch.tensor([True, False, True], device=device)
    y = ops.softmax(x, 0, mask=mask)
    torch.testing.assert_close(y[[0, 2]], torch.softmax(torch.tensor([1.0, 2.0], device=device), 0))
    (gradient,) = torch.autograd.grad(y[0], x)
    assert y[1] == 0 and gradient[1] == 0 and gradient.isfinite().all()


# ---- where PyTorch raises --------------------------------------------------------------------------------------------


@each
def test_a_loss_of_value_and_tangent_of_a_dual_can_be_differentiated(name: str) -> None:
    ours, theirs = PAIRS[name]
    x, v = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 3, dtype=torch.float64)

    def loss(f: Callable[..., Tensor], t: Tensor) -> Tensor:
        with fwAD.dual_level():
            y, y_dot = fwAD.unpack_dual(f(fwAD.make_dual(t, v), -1))
            assert y_dot is not None
            return y.square().sum() + y_dot.square().sum()

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss(theirs, x), x)
    h = 1e-5
    (gradient,) = torch.autograd.grad(loss(ours, x), x)
    difference = (loss(ours, x + h * v) - loss(ours, x - h * v)) / (2 * h)
    torch.testing.assert_close((gradient * v).sum(), difference.detach(), rtol=1e-7, atol=1e-8)


# ---- what is kept for backward, and launches -------------------------------------------------------------------------


def test_backward_keeps_the_output_alone() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    y = ops.softmax(x, -1, mask=torch.ones(4, dtype=torch.bool))
    node: Any = y.grad_fn
    kept = [t for t in node.saved_tensors if t is not None]
    assert len(kept) == 1 and kept[0].data_ptr() == y.data_ptr()


def launches(run: Callable[[], object]) -> int:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    with count_launches() as count:
        run()
    return count.total


@pytest.mark.usefixtures("interpreted")
@each
def test_launches(name: str, device: str) -> None:
    x, tangents = torch.randn(2, 3, device=device), torch.randn(4, 2, 3, device=device)
    f = lambda t: PAIRS[name][0](t, -1, mask=torch.ones(3, dtype=torch.bool, device=device))  # noqa: E731
    assert launches(lambda: torch.func.jvp(f, (x,), (x,))) == 1
    assert launches(lambda: torch.func.vmap(lambda t: torch.func.jvp(f, (x,), (t,)))(tangents)) == 1
    y, pull, *_ = torch.func.vjp(f, x)
    assert launches(lambda: pull(y)) == 1
    assert launches(lambda: torch.func.vmap(pull)(y.expand(4, *y.shape))) == 1
    gradient = torch.func.grad(lambda t: f(t).square().sum())
    assert launches(lambda: torch.func.jvp(gradient, (x,), (x,))) == 2  # the dual primal, the dual pullback
    leaf, x_dot = x.clone().requires_grad_(), x.clone().requires_grad_()

    def both() -> None:
        value, tangent, *_ = torch.func.jvp(f, (leaf,), (x_dot,))
        torch.autograd.grad((value.square() + tangent.square()).sum(), (leaf, x_dot))

    assert launches(both) == 2  # the JVP, and its VJP


# ---- bad input -------------------------------------------------------------------------------------------------------

X = torch.randn(2, 3)


@pytest.mark.parametrize(
    ("args", "options", "error", "message"),
    [
        (([1.0], 0), {}, TypeError, r"input must be a Tensor, got list"),
        ((X.long(), 0), {}, TypeError, r"input must be float16, .*, got torch.int64; use (dtype= or )?.to"),
        ((X, 2), {}, ValueError, r"dim must be from -2 to 1 for 2 axes, got 2"),
        ((X, -3), {}, ValueError, r"dim must be from -2 to 1 for 2 axes, got -3"),
        ((X, None), {}, TypeError, r"dim must be an int, got None"),
        ((X, 1.0), {}, TypeError, r"dim must be an int, got 1.0"),
        ((X, X), {}, TypeError, r"dim must be an int"),
        ((X, 1), {"scale": "2"}, TypeError, r"scale must be a number, got str"),
        ((X, 1), {"scale": X}, TypeError, r"scale must be a number, got Tensor"),
        ((X, 1), {"scale": INF}, ValueError, r"scale must be finite, got inf"),
        ((X, 1), {"mask": X}, TypeError, r"mask must be a bool Tensor, .*, got torch.float32"),
        ((X, 1), {"mask": True}, TypeError, r"mask must be a bool Tensor, .*, got bool"),
        ((X, 1), {"mask": X > 0, "scale": float("nan")}, ValueError, r"scale must be finite, got nan"),
        ((X, 1), {"mask": torch.ones(2, dtype=torch.bool)}, ValueError, r"input's shape \(2, 3\), got \(2,\)"),
        ((X, 1), {"mask": torch.ones(1, 2, 3, dtype=torch.bool)}, ValueError, r"\(2, 3\), got \(1, 2, 3\)"),
        ((X, 1), {"mask": (X > 0).to("meta")}, ValueError, r"mask must be on input's device cpu, got meta"),
    ],
)
@each
def test_bad_input(
    name: str, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=rf"^{name}: .*{message}"):
        PAIRS[name][0](*args, **options)


def test_bad_dtype_and_axes() -> None:
    with pytest.raises(TypeError, match=r"logsumexp: input must be float16, .*, got torch.int64; use .to\(\)\."):
        ops.logsumexp(X.long(), 0)
    with pytest.raises(TypeError, match=r"softmax: dtype must be float16, .*, got torch.int32"):
        ops.softmax(X, 0, dtype=torch.int32)
    for dim in ((), (0, 0), (1, -1)):
        with pytest.raises(ValueError, match=r"logsumexp: dim must name at least one axis, each once, got"):
            ops.logsumexp(X, dim)


def test_tangents_of_another_shape() -> None:
    for tangent in (torch.randn(3), torch.randn(2, 4), torch.randn(3, 3)):
        with pytest.raises(ValueError, match=r"softmax: the tangent of input must have shape \(2, 3\), .* got \("):
            op.jvp.op(X, None, -1, 1.0, tangent)
