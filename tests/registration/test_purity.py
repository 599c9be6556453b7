"""No number is silently wrong: absent cotangents, autocast, randomness, captures, options, aliases, tracing."""

from typing import Any

import pytest
import torch
from example_ops import fresh_name
from torch import Tensor
from torch.func import grad, jvp, vmap

from torch_jvpvjp import differentiable_op, ops


def test_an_unused_output_with_an_infinite_derivative_does_not_poison_the_gradient() -> None:
    @differentiable_op(fresh_name("two"))
    def two(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.sqrt()

    x = torch.zeros(2, requires_grad=True)
    torch.testing.assert_close(torch.autograd.grad(two(x)[0].sum(), x)[0], torch.ones(2))


def test_a_stopped_tangent_with_an_infinite_derivative_does_not_poison_the_gradient() -> None:
    @differentiable_op(fresh_name("power"))
    def power(x: Tensor) -> Tensor:
        return x**1.5

    power.jvp(lambda p, t: (p.x**1.5, 1.5 * p.x.sqrt() * t.x))
    x, v = torch.zeros(2), torch.ones(2)

    def loss(t: Tensor) -> Tensor:
        y, y_dot = jvp(power, (t,), (v,))
        return (y + y_dot.detach()).sum()

    torch.testing.assert_close(grad(loss)(x), torch.zeros(2))


def linear(policy: Any) -> Any:
    @differentiable_op(fresh_name("linear"))
    def op(x: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(x @ w.T)

    if policy is not None:
        op.autocast(policy)
    return op


@pytest.mark.parametrize(
    ("policy", "expected"), [(None, torch.float32), (torch.float32, torch.float32), ("lower", torch.bfloat16)], ids=str
)
def test_autocast_means_the_same_under_every_transform(policy: Any, expected: torch.dtype) -> None:
    op, x, w = linear(policy), torch.randn(3, 4), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        dtypes = {
            "eager": op(x, w).dtype,
            "dispatcher": op.overload(x, w).dtype,
            "jvp": jvp(lambda t: op(t, w), (x,), (x,))[0].dtype,
            "tangent": jvp(lambda t: op(t, w), (x,), (x,))[1].dtype,
            "vmap": vmap(lambda t: op(t[None], w))(x).dtype,
            "grad enabled": op(x.clone().requires_grad_(), w).dtype,
        }
        torch.compiler.reset()
        dtypes["compiled"] = torch.compile(lambda a, b: op(a, b), fullgraph=True, backend="aot_eager")(x, w).dtype
        gradient = grad(lambda t: op(t, w).float().sum())(x)
    assert set(dtypes.values()) == {expected}, dtypes
    if policy is not None and expected == torch.float32:
        exact = grad(lambda t: op.reference(t, w).sum())(x)
        torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-6)
    torch.compiler.reset()


def test_a_formula_that_draws_random_numbers_is_refused() -> None:
    @differentiable_op(fresh_name("noisy"))
    def noisy(x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, 0.5)

    with pytest.raises(ValueError, match=r"draws random numbers \(aten.*pass them as an argument"):
        noisy(torch.ones(8))


@pytest.mark.parametrize("needs", [False, True])
def test_a_captured_tensor_that_requires_grad_is_refused(needs: bool) -> None:
    scale = torch.tensor(3.0, requires_grad=True)

    @differentiable_op(fresh_name("captures"))
    def captures(x: Tensor) -> Tensor:
        return scale * x.sin()

    with pytest.raises(ValueError, match=r"reads 'scale' from its surroundings.*take it as an argument"):
        captures(torch.ones(2, requires_grad=needs))


def test_a_tensor_in_the_place_of_an_option_is_refused() -> None:
    @differentiable_op(fresh_name("clip"))
    def clip(
        x: Tensor,
        limit: float = 1.0,
        shifts: list[int] | None = None,
        *,
        mode: str = "tanh",
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        return limit * torch.tanh(x / limit)

    x = torch.randn(3)
    with pytest.raises(
        TypeError, match=r"argument 'limit' is a float, got a tensor; pass a number, or annotate it Tensor"
    ):
        clip(x, torch.tensor(2.0, requires_grad=True))
    with pytest.raises(TypeError, match=r"argument 'limit' is a float, got a tensor"):
        grad(lambda limit: clip(x, limit).sum())(torch.tensor(2.0))
    with pytest.raises(TypeError, match=r"argument 'limit' must be a float, got 'a'"):
        clip(x, "a")
    with pytest.raises(TypeError, match=r"argument 'shifts' must be a list or tuple of int, or None, got \(1.5,\)"):
        clip(x, shifts=(1.5,))
    with pytest.raises(TypeError, match=r"argument 'mode' must be a str, got 2"):
        clip(x, mode=2)
    with pytest.raises(TypeError, match=r"argument 'dtype' must be a torch.dtype, got 'float64'"):
        clip(x, dtype="float64")


def test_a_kernel_that_now_and_then_returns_its_input_is_refused() -> None:
    @differentiable_op(fresh_name("scale"))
    def scale(x: Tensor, s: float) -> Tensor:
        return x * s

    scale.kernel("cpu")(lambda x, s: x if s == 1.0 else x.detach() * s)
    x = torch.randn(3)
    scale(x, 2.0)
    with pytest.raises(ValueError, match=r"output 'y' is a view of, or the same as, input 'x'"):
        scale(x, 1.0)


def test_a_derivative_may_pass_a_cotangent_on() -> None:
    @differentiable_op(fresh_name("shift"))
    def shift(x: Tensor, b: Tensor) -> Tensor:
        return x + b

    shift.jvp(lambda p, t: (p.x + p.b, t.b if t.x is None else t.x if t.b is None else t.x + t.b))
    shift.vjp(lambda c, i: (c.y, c.y))
    x = torch.randn(3, requires_grad=True)
    shift(x, torch.randn(3)).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones(3))
    torch.testing.assert_close(jvp(lambda t: shift(t, t), (x.detach(),), (x.detach(),))[1], 2 * x.detach())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_records_the_op() -> None:
    @differentiable_op(fresh_name("sine"))
    def sine(x: Tensor) -> Tensor:
        return x.sin()

    sine.kernel("cpu")(lambda x: torch.from_numpy(__import__("numpy").sin(x.detach().numpy())))
    x = torch.randn(3)
    traced = torch.jit.trace(lambda t: sine(t) * 2, (torch.zeros(3),), check_trace=False)
    torch.testing.assert_close(traced(x), 2 * x.sin())


def test_a_tangent_of_another_dtype_is_refused() -> None:
    @differentiable_op(fresh_name("sine"))
    def sine(x: Tensor) -> Tensor:
        return x.sin()

    sine.jvp(lambda p, t: (p.x.sin(), (p.x.cos() * t.x).double()))
    with pytest.raises(
        ValueError, match=r"a tangent of y of dtype torch.float32, as its output has, got torch.float64"
    ):
        jvp(sine, (torch.ones(2),), (torch.ones(2),))


def test_unsaved_inputs_need_a_cotangent_of_their_own() -> None:
    @differentiable_op(fresh_name("affine"))
    def affine(x: Tensor, b: Tensor) -> Tensor:
        return x.sin() + b

    affine.vjp(unsaved=("b",))(lambda c, i: (c.y * i.x.cos(), None))
    with pytest.raises(ValueError, match=r"zeros for b, which it declares unsaved, in place of None"):
        affine(torch.ones(2), torch.ones(2, requires_grad=True)).sum().backward()


def test_arguments_that_no_schema_can_hold_are_refused() -> None:
    def hidden(_x: Tensor) -> Tensor:
        return _x + 1

    def late(x: Tensor, limit: float = 1.0, *, mode: str) -> Tensor:
        return x + 1

    with pytest.raises(TypeError, match=r"argument '_x' starts with an underscore.*rename it"):
        differentiable_op(fresh_name("hidden"))(hidden)
    with pytest.raises(TypeError, match=r"argument 'mode' follows one with a default and has none"):
        differentiable_op(fresh_name("late"))(late)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_tangent_of_the_weight_alone_under_vmap(compiled: bool) -> None:
    """ẏ = x̂ ∘ ẇ does not depend on w, and still has w's batch axis."""
    x, w, w_dot = torch.randn(4, 2, 3), torch.randn(5, 3), torch.randn(3)

    def push(f: Any) -> Any:
        inner = lambda a, b: jvp(lambda q: f(a, (3,), q, 1e-3), (b,), (w_dot,))  # noqa: E731
        return vmap(vmap(inner, in_dims=(None, 0)), in_dims=(0, None))

    torch.compiler.reset()
    ours = push(ops.rms_norm)
    ours = torch.compile(ours, fullgraph=True, backend="aot_eager") if compiled else ours
    for a, b in zip(ours(x, w), push(torch.nn.functional.rms_norm)(x, w), strict=True):
        torch.testing.assert_close(a, b)
    in_place = vmap(lambda b: jvp(lambda q: ops.rms_norm(x, (3,), q, 1e-3), (b,), (w_dot,))[1].mul_(2).add_(b))
    assert in_place(w).shape == (5, 4, 2, 3)
    torch.compiler.reset()
