"""Gated linear units: what is particular to them (every property is checked in test_every_op)."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor

from torch_jvpvjp.ops.gated import geglu, glu, swiglu


def derivatives(f: Callable[..., Tensor], *xs: Tensor) -> list[Any]:
    """Value, tangent, cotangents, and the tangent of the cotangents."""
    y, y_dot, *_ = torch.func.jvp(f, xs, xs)
    gradient = torch.func.grad(lambda *t: f(*t).square().sum(), argnums=tuple(range(len(xs))))
    return [y, y_dot, *torch.func.jvp(gradient, xs, xs)]


@pytest.mark.parametrize("function", [swiglu, geglu], ids=lambda f: f.__name__)
def test_packed_is_the_same_as_two_tensors(function: Callable[..., Tensor], device: str) -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64, device=device)
    halves = lambda t: function(*t.chunk(2, -1))  # noqa: E731 -- views that are not contiguous
    torch.testing.assert_close(derivatives(function, x), derivatives(halves, x))


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_glu_along_any_axis(dim: int, device: str) -> None:
    x = torch.randn(2, 4, 6, dtype=torch.float64, device=device)
    reference = lambda t: t.chunk(2, dim)[0] * torch.sigmoid(t.chunk(2, dim)[1])  # noqa: E731
    for view in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
        torch.testing.assert_close(derivatives(lambda t: glu(t, dim), view), derivatives(reference, view))
    torch.testing.assert_close(glu(x, dim), F.glu(x, dim))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "permuted": lambda t: t.permute(3, 1, 0, 2),
    "transposed, every second": lambda t: t.transpose(0, 1)[::2],
    "expanded": lambda t: t[:1].expand_as(t),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_order_of_axes_in_memory_is_kept_as_pytorch_keeps_it(layout: str, device: str) -> None:
    x = LAYOUTS[layout](torch.randn(2, 4, 6, 8, dtype=torch.float64, device=device))
    for function, native, inputs in (
        (lambda t: glu(t, 1), lambda t: F.glu(t, 1), (x,)),
        (lambda t: glu(t, -1), lambda t: F.glu(t, -1), (x,)),
        (swiglu, lambda g, u: F.silu(g) * u, (x, x)),
        (geglu, lambda g, u: F.gelu(g) * u, (x, x)),
    ):
        stride = native(*inputs).stride()
        recorded = function(*(t.clone(memory_format=torch.preserve_format).requires_grad_() for t in inputs))
        y, y_dot = torch.func.jvp(function, inputs, inputs)
        nested = torch.func.grad(lambda *t, f=function: f(*t).sum())(*inputs)
        assert function(*inputs).stride() == recorded.stride() == y.stride() == y_dot.stride() == stride
        packed = [t.contiguous() for t in inputs]
        torch.testing.assert_close((y, y_dot), torch.func.jvp(function, tuple(packed), tuple(packed)))
        torch.testing.assert_close(nested, torch.func.grad(lambda *t, f=function: f(*t).sum())(*packed))


def test_linear_in_up(device: str) -> None:
    gate, up, v = torch.randn(3, 2, 5, dtype=torch.float64, device=device)
    torch.testing.assert_close(swiglu(gate, up + 2 * v), swiglu(gate, up) + 2 * swiglu(gate, v))
    y_dot = torch.func.jvp(lambda u: swiglu(gate, u), (up,), (v,))[1]
    torch.testing.assert_close(y_dot, swiglu(gate, v))


def test_the_hessian_has_no_block_of_up_and_up(device: str) -> None:
    gate, up = torch.randn(2, 3, dtype=torch.float64, device=device)
    hessian = torch.func.hessian(lambda *t: geglu(*t).sum(), argnums=(0, 1))(gate, up)
    assert not hessian[1][1].any() and torch.equal(hessian[0][1], hessian[1][0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_no_rounding_between_the_factors(dtype: torch.dtype, device: str) -> None:
    """f(g) is not rounded before it is multiplied where a kernel computes; never worse than two roundings elsewhere."""
    gate, up = (4 * torch.randn(2, 64, device=device)).to(dtype)
    exact = F.silu(gate.double()) * up.double()
    error = (swiglu(gate, up).double() - exact).abs()
    assert (error <= 2 * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_glu_has_tangents_in_half_precision(dtype: torch.dtype, device: str) -> None:
    """PyTorch's glu has none there on the CPU."""
    x, x_dot = torch.randn(2, 3, 8, device=device).to(dtype)
    y_dot = torch.func.jvp(glu, (x,), (x_dot,))[1]
    exact = torch.func.jvp(F.glu, (x.double(),), (x_dot.double(),))[1]
    torch.testing.assert_close(y_dot.double(), exact, atol=4 * torch.finfo(dtype).eps, rtol=4 * torch.finfo(dtype).eps)


# ---- one launch ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("packed", [False, True], ids=["two tensors", "packed"])
def test_launches(packed: bool, device: str) -> None:
    from torch_jvpvjp.triton_kernels._launch import count_launches

    x = torch.randn(3, 8, device=device)
    xs = (x,) if packed else (x, x + 1)
    many = tuple(torch.randn(5, *t.shape, device=device) for t in xs)

    def count(run: Callable[[], object]) -> int:
        with count_launches() as counted:
            run()
        return counted.total

    push: Callable[..., Any] = lambda *t: torch.func.jvp(swiglu, xs, t)  # noqa: E731
    found: Any = torch.func.vjp(swiglu, *xs)
    y, pull = found
    gradient = torch.func.grad(lambda *t: swiglu(*t).sum(), argnums=tuple(range(len(xs))))  # pyright: ignore[reportCallIssue]
    assert count(lambda: swiglu(*xs)) == 1
    assert count(lambda: push(*xs)) == 1
    assert count(lambda: torch.func.vmap(push)(*many)) == 1
    assert count(lambda: pull(y)) == 1
    assert count(lambda: torch.func.vmap(pull)(torch.randn(5, *y.shape, device=device))) == 1
    # The dual primal, and the cotangents with their tangents.
    assert count(lambda: torch.func.jvp(gradient, xs, xs)) == 2
    # Value and tangent, and the cotangents of primals and tangents.
    assert count(lambda: torch.func.grad(lambda t: torch.func.jvp(swiglu, (t, *xs[1:]), xs)[1].sum())(x)) == 2


@pytest.mark.usefixtures("interpreted")
def test_packed_halves_are_neither_copied_nor_concatenated(device: str) -> None:
    from torch_jvpvjp.triton_kernels._launch import record_launches

    x = torch.randn(3, 8, device=device)
    with record_launches() as launches:
        swiglu(*x.chunk(2, -1))
        swiglu(x.requires_grad_()).sum().backward()
    for launched in launches:
        gate, up = launched.arguments[:2]
        assert gate.data_ptr() == x.data_ptr() and up.data_ptr() == x.data_ptr() + 4 * x.element_size()
    gate_bar, up_bar = launches[-1].arguments[8:10]
    assert x.grad is not None
    assert gate_bar.data_ptr() == x.grad.data_ptr() and up_bar.data_ptr() == x.grad[:, 4:].data_ptr()


# ---- bad input -------------------------------------------------------------------------------------------------------

X = torch.randn(3, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: swiglu(X, X[:1]),
            ValueError,
            r"swiglu: up must have gate's shape \(3, 4\), got \(1, 4\); use",
        ),
        (
            lambda: swiglu(X, X.double()),
            TypeError,
            r"swiglu: up must have .* torch.float32, got torch.float64",
        ),
        (lambda: swiglu(X, X.to("meta")), ValueError, r"swiglu: up must be on gate's device cpu, got meta"),
        (lambda: swiglu(X[:, :3]), ValueError, r"swiglu: gate must be even along axis -1 .* got shape \(3, 3\)"),
        (lambda: swiglu(X[0, 0]), ValueError, r"swiglu: gate must have an axis that holds gate and up, got shape \(\)"),
        (lambda: swiglu(X.long()), TypeError, r"swiglu: gate must be float16, .* got torch.int64"),
        (lambda: swiglu(X, 1.0), TypeError, r"swiglu: up must be a Tensor, got float"),  # type: ignore[arg-type]
        (lambda: geglu(X, X, "erf"), ValueError, r"geglu: approximate must be 'none' or 'tanh', got 'erf'"),
        (lambda: geglu(X, X, None), TypeError, r"geglu: approximate must be 'none' or 'tanh', got NoneType"),  # type: ignore[arg-type]
        (lambda: glu(X, 2), ValueError, r"glu: dim must be an axis of input, which has shape \(3, 4\), got 2"),
        (lambda: glu(X, 0), ValueError, r"glu: input must be even along axis 0 .* got shape \(3, 4\)"),
        (lambda: glu(X, 1.0), TypeError, r"glu: dim must be an int, got float"),  # type: ignore[arg-type]
        (lambda: glu([1.0, 2.0]), TypeError, r"glu: input must be a Tensor, got list"),  # type: ignore[arg-type]
    ],
)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
