"""How an op is called: arguments, kernels, autocast, the short way and the long way."""

import copy
import pickle
from typing import Any

import pytest
import torch
from example_ops import fresh_name, gather_affine, normalise, waves
from torch import Tensor

from torch_jvpvjp import differentiable_op


def counting(calls: list[str]) -> Any:
    """x ↦ sin(x) w with a CPU kernel at every first-order point; `calls` notes which function ran."""

    @differentiable_op(fresh_name("counting"))
    def op(x: Tensor, w: Tensor) -> Tensor:
        if not x.is_meta:  # what says which shapes there are to be
            calls.append("formula")
        return x.sin() * w

    @op.kernel("cpu")
    def _(x: Tensor, w: Tensor) -> Tensor:
        calls.append("kernel")
        with torch.no_grad():
            return x.sin() * w

    @op.jvp
    def _(primals: Any, tangents: Any) -> Any:
        calls.append("jvp formula")
        return push(primals, tangents)

    @op.jvp.kernel("cpu")
    def _(primals: Any, tangents: Any) -> Any:
        calls.append("jvp kernel")
        with torch.no_grad():
            return push(primals, tangents)

    def push(primals: Any, tangents: Any) -> Any:
        x, w = primals
        y_dot = torch.zeros_like(x) if tangents.x is None else tangents.x * x.cos() * w
        return x.sin() * w, y_dot if tangents.w is None else y_dot + x.sin() * tangents.w

    @op.vjp
    def _(cotangents: Any, inputs: Any) -> Any:
        calls.append("vjp formula")
        return cotangents.y * inputs.x.cos() * inputs.w, cotangents.y * inputs.x.sin()

    @op.vjp.kernel("cpu")
    def _(cotangents: Any, inputs: Any, *, needs: Any) -> Any:
        calls.append(f"vjp kernel {''.join('01'[n] for n in needs)}")
        with torch.no_grad():
            return cotangents.y * inputs.x.cos() * inputs.w, cotangents.y * inputs.x.sin()

    return op


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def xw() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3), torch.randn(2, 3)


def test_primal_and_tangent_are_one_call(calls: list[str], xw: tuple[Tensor, Tensor]) -> None:
    op = counting(calls)
    torch.func.jvp(op, xw, xw)
    assert calls == ["jvp kernel"]


def test_forward_ad_is_one_call(calls: list[str], xw: tuple[Tensor, Tensor]) -> None:
    import torch.autograd.forward_ad as fwAD

    op = counting(calls)
    with fwAD.dual_level():
        op(fwAD.make_dual(xw[0], xw[1]), xw[1])
    assert calls == ["jvp kernel"]


def test_requires_grad_does_not_replace_kernels_by_formulas(calls: list[str], xw: tuple[Tensor, Tensor]) -> None:
    op = counting(calls)
    x, w = xw[0].clone().requires_grad_(), xw[1]
    y = op(x, w)
    (x_bar,) = torch.autograd.grad(y.sum(), x, create_graph=True)  # what torch.func.grad always asks for
    assert calls == ["kernel", "vjp kernel 10"]
    torch.autograd.grad(x_bar.sum(), x)  # only here is the formula of the VJP differentiated
    assert calls[2:] == ["vjp formula"]


def test_transforms_use_the_kernels(calls: list[str], xw: tuple[Tensor, Tensor]) -> None:
    op = counting(calls)
    torch.func.grad(lambda x, w: op(x, w).sum(), argnums=(0, 1))(*xw)
    assert calls == ["kernel", "vjp kernel 11"]


def test_gradients_of_the_dual_use_the_kernel_of_the_jvp(calls: list[str], xw: tuple[Tensor, Tensor]) -> None:
    op = counting(calls)
    torch.func.grad(lambda x: torch.func.jvp(op, (x, xw[1]), xw)[1].sum())(xw[0])
    assert calls == ["jvp kernel", "jvp formula"]  # forward, then the formula to be differentiated


def test_unwanted_cotangents_are_not_asked_for(calls: list[str], xw: tuple[Tensor, Tensor]) -> None:
    op = counting(calls)
    w = xw[1].clone().requires_grad_()
    op(xw[0], w).sum().backward()
    assert calls == ["kernel", "vjp kernel 01"]


def test_absent_cotangents_cost_nothing(calls: list[str], xw: tuple[Tensor, Tensor]) -> None:
    op = counting(calls)
    x = xw[0].clone().requires_grad_()
    y = op(x, xw[1])
    (gradient,) = torch.autograd.grad(y.detach().sum() + 0 * x.sum(), x)
    assert calls == ["kernel"]
    assert not gradient.any()


def test_the_stopped_tangent_arrives_as_none() -> None:
    seen: list[tuple[bool, bool]] = []

    @differentiable_op(fresh_name("stopped"))
    def op(x: Tensor) -> Tensor:
        return x.sin()

    op.jvp(lambda primals, tangents: (primals.x.sin(), primals.x.cos() * tangents.x))

    @op.jvp.vjp
    def _(cotangents: Any, inputs: Any) -> Any:
        seen.append((cotangents.y is None, cotangents.y_dot is None))
        return cotangents.y * inputs.x.cos(), None

    x, v = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)

    def loss(t: Tensor) -> Tensor:
        y, y_dot = torch.func.jvp(op, (t,), (v,))
        return ((y + y_dot.detach()) ** 2).sum()

    gradient = torch.func.grad(loss)(x)
    assert seen == [(False, True)]
    torch.testing.assert_close(gradient, 2 * (x.sin() + x.cos() * v) * x.cos())


def test_compiled_regions_keep_the_op_whole(calls: list[str], xw: tuple[Tensor, Tensor]) -> None:
    op = counting(calls)
    torch.compiler.reset()
    push = torch.compile(lambda p, t: torch.func.jvp(op, p, t), fullgraph=True, backend="aot_eager")
    push(xw, xw)
    calls.clear()
    push(xw, xw)
    assert calls == ["jvp kernel"]
    torch.compiler.reset()


def test_kernels_for_several_devices(xw: tuple[Tensor, Tensor]) -> None:
    ran: list[str] = []

    @differentiable_op(fresh_name("devices"))
    def op(x: Tensor) -> Tensor:
        ran.append("formula")
        return x * 2

    @op.kernel("cpu", "xpu")
    def _(x: Tensor) -> Tensor:
        ran.append("cpu")
        return x * 2

    @op.kernel("cuda")
    def _(x: Tensor) -> Tensor:
        ran.append("cuda")
        return x * 2

    assert op.kernel_devices() == ("cpu", "xpu", "cuda")
    op(xw[0])
    op.overload(xw[0])
    op(xw[0].to("meta"))
    assert ran == ["cpu", "formula", "cpu", "formula"]  # what the first call returns is compared with the formula


def test_residuals_are_hidden_and_recomputed_by_formulas() -> None:
    """The residual trap: with the saved residual, every composition but the Hessian is right."""
    op = normalise(("vjp", "kernel", "vjp kernel"))
    x, w = torch.randn(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    assert isinstance(op(x, w), Tensor)
    assert len(op.overload(x, w)) == 2
    ours = torch.func.hessian(lambda t: op(t, w).square().sum())(x)
    theirs = torch.func.hessian(lambda t: op.reference(t, w).square().sum())(x)
    torch.testing.assert_close(ours, theirs)


def test_arguments_by_position_name_and_default() -> None:
    op = gather_affine(("vjp", "kernel"))
    x, index = torch.randn(2, 3), torch.tensor([0, 2])
    y = op(x, index)
    torch.testing.assert_close(y, x[:, index].sin())
    torch.testing.assert_close(op(x, index=index, mode="square"), x[:, index] ** 2)
    torch.testing.assert_close(op(x, index, None, [1, 2], mode="sin"), 2 * y)
    torch.testing.assert_close(op(index=index, x=x, bias=torch.ones(2)), y + 1)
    torch.testing.assert_close(op.overload(x, index, mode="square"), x[:, index] ** 2)


def test_integer_inputs_are_simply_not_differentiated() -> None:
    op = waves(("jvp", "vjp"))
    x, w = torch.randn(3), torch.tensor([1, 2, 3])
    y = torch.func.grad(lambda t: op(t, w)[0].sum())(x)
    torch.testing.assert_close(y, torch.func.grad(lambda t: op.reference(t, w)[0].sum())(x))


@pytest.mark.parametrize(
    ("policy", "expected"), [("lower", torch.bfloat16), (torch.float32, torch.float32), ("promote", torch.float32)]
)
def test_autocast(policy: Any, expected: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    @differentiable_op(fresh_name("autocast"))
    def op(x: Tensor, w: Tensor) -> Tensor:
        seen.extend([x.dtype, w.dtype])
        return (x * w).to(x.dtype)

    op.autocast(policy)
    x, w = torch.randn(3, requires_grad=True), torch.randn(3).bfloat16()
    op(x, w)
    assert seen == [torch.float32, torch.bfloat16]  # outside of a region nothing is cast
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        y = op(x, w)
        op(x.double(), w)
    assert seen[:2] == [expected, expected]
    assert seen[2] == torch.float64  # float64 is never cast
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32


def test_the_fast_path_is_taken_only_where_nothing_is_going_on() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    op = waves(("kernel",))
    with Spy():
        op(torch.randn(2), torch.randn(2))
    assert any("tests.waves" in name for name in seen)  # a mode sees the op whole


def test_one_forward_level_reaches_the_kernel_without_the_dispatcher(xw: tuple[Tensor, Tensor]) -> None:
    calls: list[str] = []
    op = counting(calls)
    results = torch.func.jvp(op, xw, xw)
    assert calls == ["jvp kernel"]
    torch.testing.assert_close(results, torch.func.jvp(op.reference, xw, xw))
    constant = torch.func.jvp(lambda x: op(xw[0], xw[1]) + x, (xw[0],), (xw[1],))
    torch.testing.assert_close(constant[1], xw[1])


@pytest.mark.parametrize("transform", ["func.jvp", "dual_level", "dual_level around backward"])
def test_one_forward_level_is_recorded_without_the_dispatcher(
    xw: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, transform: str
) -> None:
    import torch.autograd.forward_ad as fwAD

    calls: list[str] = []
    op = counting(calls)
    assert op.jvp_op is not None
    with torch.no_grad():  # as one would, for the tangent of a network alone
        torch.func.jvp(op, tuple(t.clone().requires_grad_() for t in xw), xw)
    assert calls == ["jvp kernel"]
    for point in (op, op.jvp_op):
        monkeypatch.setattr(point, "overload", None)  # the dispatcher's op
    found = []
    for f in (op, op.reference):
        x, w, x_dot = (t.clone().requires_grad_() for t in (*xw, xw[1]))
        if transform == "func.jvp":
            y, y_dot = torch.func.jvp(lambda x, f=f, w=w: f(x, w), (x,), (x_dot,))
            found.append([y, y_dot, *torch.autograd.grad((y * y_dot).sum(), (x, w, x_dot))])
            continue
        with fwAD.dual_level():
            y, y_dot = fwAD.unpack_dual(f(fwAD.make_dual(x, x_dot), w))
            assert y_dot is not None
            if transform == "dual_level":
                found.append([y, y_dot, *torch.autograd.grad((y * y_dot).sum(), (x, w, x_dot))])
                continue
            dual = f(fwAD.make_dual(x, x_dot), w)
            (w_bar,) = torch.autograd.grad(dual.sum(), w, create_graph=True)
            found.append(list(fwAD.unpack_dual(w_bar)))
            assert found[-1][1] is not None
    torch.testing.assert_close(found[0], found[1])


def test_a_forward_level_that_is_not_all_goes_by_the_dispatcher(xw: tuple[Tensor, Tensor]) -> None:
    import torch.autograd.forward_ad as fwAD

    op = counting([])
    x, x_dot = xw[0], xw[1].clone().requires_grad_()  # the tangent alone is differentiated
    found = []
    for f in (op, op.reference):
        with fwAD.dual_level():
            tangent = fwAD.unpack_dual(f(fwAD.make_dual(x, x_dot), xw[1])).tangent
        assert tangent is not None
        found.append(torch.autograd.grad(tangent.sum(), x_dot)[0])
    torch.testing.assert_close(found[0], found[1])
    jacobians = [  # the vmap before functorch, over tangents
        torch.autograd.functional.jacobian(lambda t, f=f: f(t, xw[1]), x, vectorize=True, strategy="forward-mode")
        for f in (op, op.reference)
    ]
    torch.testing.assert_close(jacobians[0], jacobians[1])


def test_subclasses_see_the_op() -> None:
    class Tagged(Tensor):
        names: list[str] = []

        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            cls.names.append(str(func))
            return super().__torch_function__(func, types, args, kwargs or {})

    op = waves(())
    op(torch.randn(2).as_subclass(Tagged), torch.randn(2))
    assert any("waves" in name for name in Tagged.names)


def test_saved_tensor_hooks_see_what_is_kept() -> None:
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    x, w = torch.randn(2, requires_grad=True), torch.randn(2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        waves(("vjp",))(x, w)
        reading_outputs = len(kept)
        gather_affine(("vjp",))(torch.randn(3, requires_grad=True), torch.tensor([0, 1]), torch.randn(2))
    assert reading_outputs == 4  # x, w and, since the rule takes outputs, both outputs
    assert len(kept) - reading_outputs == 2  # x and index; bias is declared unsaved


def test_checkpoint_recomputes() -> None:
    from torch.utils.checkpoint import checkpoint

    op = waves(("vjp", "kernel"))
    x, w = torch.randn(3, dtype=torch.float64, requires_grad=True), torch.randn(3, dtype=torch.float64)
    checkpoint(lambda t: op(t, w)[0], x, use_reentrant=False).sum().backward()
    expected = torch.func.grad(lambda t: op.reference(t, w)[0].sum())(x.detach())
    torch.testing.assert_close(x.grad, expected)


def test_ops_survive_pickle_and_deepcopy() -> None:
    op = waves(())
    assert pickle.loads(pickle.dumps(op)) is op
    assert copy.deepcopy({"op": op})["op"] is op


def test_inference_mode_and_no_grad() -> None:
    op = waves(("kernel", "vjp"))
    x, w = torch.randn(3, requires_grad=True), torch.randn(3)
    with torch.no_grad():
        assert not op(x, w)[0].requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(op(x, w)[0], op.reference(x, w)[0])


def test_kernels_are_given_memory_that_holds_the_values() -> None:
    def plain(*tensors: Tensor) -> None:
        assert not any(t.is_neg() or t._is_zerotensor() for t in tensors)

    @differentiable_op(fresh_name("wave"))
    def wave(x: Tensor) -> Tensor:
        return x.sin()

    wave.jvp(lambda primals, tangents: (primals.x.sin(), primals.x.cos() * tangents.x))
    wave.vjp(lambda cotangents, inputs: cotangents.y * inputs.x.cos())
    wave.kernel("cpu")(lambda x: (plain(x), x.sin())[1])
    wave.jvp.kernel("cpu")(lambda p, t: (plain(p.x, t.x), (p.x.sin(), p.x.cos() * t.x))[1])
    wave.vjp.kernel("cpu")(lambda c, i: (plain(c.y, i.x), c.y * i.x.cos())[1])
    x = torch.randn(3)
    flipped = torch.complex(x, -x).conj().imag  # x, as the memory of -x and a bit
    assert flipped.is_neg()
    zero = torch.ops.aten._efficientzerotensor([3])
    torch.testing.assert_close(wave(flipped), x.sin())
    torch.testing.assert_close(torch.func.jvp(wave, (flipped,), (flipped,))[1], x.cos() * x)
    torch.testing.assert_close(torch.func.jvp(wave, (x,), (zero,))[1], torch.zeros(3))
    leaf = flipped.detach().requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(wave(leaf), leaf, flipped)[0], x.cos() * x)
