"""Where PyTorch's function stands for an op on a CPU, it is right in all that follows, and steps back when watched."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from torch_jvpvjp import ops
from torch_jvpvjp.ops import _native
from torch_jvpvjp.testing import Sample, check_op
from torch_jvpvjp.testing.cases import CASES

if not _native.is_active():
    pytest.skip("in the interpreter, CPU tensors take the Triton kernels", allow_module_level=True)

# Ops whose face calls a function of PyTorch's somewhere.
NATIVE = (
    *("gelu", "silu", "tanh", "sin", "softplus", "mish", "sigmoid", "relu", "swiglu", "geglu", "glu"),
    *("softmax", "log_softmax", "logsumexp", "cross_entropy", "linear_cross_entropy", "mse_loss", "huber_loss"),
    *("layer_norm", "group_norm", "dyt", "gated_residual"),
)


def _reduced(terms: Tensor, reduction: str) -> Tensor:
    return {"none": terms, "sum": terms.sum(), "mean": terms.mean()}[reduction]


# In the place of references that are PyTorch's own functions, which raise in what follows here.
FORMULAS = {
    "mish": lambda x: x * torch.tanh(torch.nn.functional.softplus(x)),
    "mse_loss": lambda x, t, reduction="mean": _reduced((x - t).square(), reduction),
}


@dataclass(frozen=True)
class Function:
    """An op as a function of the tensors that are differentiated, and its reference."""

    ours: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    primals: tuple[Tensor, ...]


def function_of(name: str, sample: Sample) -> Function:
    """An op on a sample."""
    case = CASES[name]
    places = [i for i, a in enumerate(sample.args) if isinstance(a, Tensor) and a.is_floating_point()]

    def bind(function: Callable[..., Any]) -> Callable[..., Tensor]:
        def of_tensors(*primals: Tensor) -> Tensor:
            args = list(sample.args)
            for i, primal in zip(places, primals, strict=True):
                args[i] = primal
            return function(*args, **sample.kwargs)

        return of_tensors

    primals = tuple(sample.args[i].double() for i in places)
    return Function(bind(case.function), bind(FORMULAS.get(name, case.reference)), primals)


FUNCTIONS = {
    f"{name}-{sample.name}": function_of(name, sample)
    for name in NATIVE
    for sample in CASES[name].samples
    if all(t.numel() for t in (*sample.args, *sample.kwargs.values()) if isinstance(t, Tensor))
}
named = pytest.mark.parametrize("name", NATIVE)
sampled = pytest.mark.parametrize("name", FUNCTIONS)


def leaves(primals: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.clone().requires_grad_() for x in primals)


def directions(y: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    draw = lambda: torch.randn(y.shape, generator=generator, dtype=y.dtype)  # noqa: E731
    return draw(), draw()


def both(name: str, derivative: Callable[[Callable[..., Tensor], tuple[Tensor, ...]], object]) -> None:
    """Compare a derivative of an op with that of its reference."""
    function = FUNCTIONS[name]
    found, wanted = (derivative(f, function.primals) for f in (function.ours, function.reference))
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# ---- what follows a call that nothing was known of when it was recorded ----------------------------------------------


@sampled
def test_backward_of_a_dual_cotangent(name: str) -> None:
    def derivative(f: Callable[..., Tensor], primals: tuple[Tensor, ...]) -> object:
        xs = leaves(primals)
        y = f(*xs)
        with fwAD.dual_level():
            y_bar = fwAD.make_dual(*directions(y))
            x_bars = torch.autograd.grad(y, xs, y_bar)
            return [tuple(fwAD.unpack_dual(x_bar)) for x_bar in x_bars]

    both(name, derivative)


@sampled
def test_backward_through_a_jvp_to_its_tangents(name: str) -> None:
    """ẏ = J ẋ, whose pullback in ẋ is Jᵀ: what stands for an op in one JVP does not look whether tangents have one."""
    function = FUNCTIONS[name]
    x_dots = leaves(tuple(directions(x)[0] for x in function.primals))
    _, y_dot = torch.func.jvp(function.ours, function.primals, x_dots)
    y_bar, _ = directions(y_dot)
    found = torch.autograd.grad(y_dot, x_dots, y_bar, materialize_grads=True)
    xs = leaves(function.primals)
    wanted = torch.autograd.grad(function.reference(*xs), xs, y_bar, materialize_grads=True)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@sampled
def test_jvp_of_backward(name: str) -> None:
    def derivative(f: Callable[..., Tensor], primals: tuple[Tensor, ...]) -> object:
        xs = leaves(primals)
        y = f(*xs)
        y_bar, y_bar_dot = directions(y)
        pull = lambda c: torch.autograd.grad(y, xs, c, retain_graph=True)  # noqa: E731
        return torch.func.jvp(pull, (y_bar,), (y_bar_dot,))

    both(name, derivative)


@sampled
def test_backward_through_the_tangent_of_a_backward(name: str) -> None:
    def derivative(f: Callable[..., Tensor], primals: tuple[Tensor, ...]) -> object:
        xs = leaves(primals)
        y = f(*xs)
        bars = tuple(t.requires_grad_() for t in directions(y))
        with fwAD.dual_level():
            x_bars = torch.autograd.grad(y, xs, fwAD.make_dual(*bars), create_graph=True)
            pairs = [fwAD.unpack_dual(x_bar) for x_bar in x_bars]
            loss = torch.stack([(p.sin() * t).sum() + t.square().sum() for p, t in pairs if t is not None]).sum()
        return torch.autograd.grad(loss, (*xs, *bars), materialize_grads=True)

    both(name, derivative)


@sampled
def test_backward_three_times(name: str) -> None:
    def derivative(f: Callable[..., Tensor], primals: tuple[Tensor, ...]) -> object:
        xs = leaves(primals)
        value: Any = f(*xs).sin().sum()
        found = []
        for _ in range(3):
            x_bars = torch.autograd.grad(value, xs, create_graph=True, materialize_grads=True)
            found.append([x_bar.detach() for x_bar in x_bars])
            value = torch.stack([x_bar.cos().sum() for x_bar in x_bars]).sum()
        return found

    both(name, derivative)


@sampled
def test_backward_of_batched_cotangents(name: str) -> None:
    def derivative(f: Callable[..., Tensor], primals: tuple[Tensor, ...]) -> object:
        xs = leaves(primals)
        y = f(*xs)
        rows = torch.stack(directions(y))
        pull = lambda c: torch.autograd.grad(y, xs, c, retain_graph=True)  # noqa: E731
        return torch.func.vmap(pull)(rows), torch.autograd.grad(y, xs, rows, is_grads_batched=True)

    both(name, derivative)


# ---- nodes of PyTorch's that are watched -----------------------------------------------------------------------------

WATCHED = {
    "gelu": "GeluBackward0",
    "silu": "SiluBackward0",
    "mish": "MishBackward0",
    "glu": "GluBackward0",
    "mse_loss": "MseLossBackward0",
    "huber_loss": "HuberLossBackward0",
    "layer_norm": "NativeLayerNormBackward0",
    "group_norm": "NativeGroupNormBackward0",
}
watched = pytest.mark.parametrize("name", WATCHED)


def recorded(name: str) -> tuple[tuple[Tensor, ...], Tensor]:
    function = function_of(name, CASES[name].samples[0])
    xs = leaves(function.primals)
    return xs, function.ours(*xs)


@watched
def test_the_node_is_one_of_pytorch(name: str) -> None:
    _, y = recorded(name)
    assert y.grad_fn is not None
    assert y.grad_fn.name() == WATCHED[name]


@watched
def test_a_node_that_was_differentiated_once_serves_plain_backward_again(name: str) -> None:
    xs, y = recorded(name)
    y_bar, _ = directions(y)
    before = torch.autograd.grad(y, xs, y_bar, retain_graph=True)
    graphs = torch.autograd.grad(y, xs, y_bar, create_graph=True)
    after = torch.autograd.grad(y, xs, y_bar)
    torch.testing.assert_close(before, after, rtol=0, atol=0)
    torch.testing.assert_close(graphs, after, rtol=1e-12, atol=1e-12)
    assert all(x_bar.requires_grad for x_bar in graphs)
    assert not any(x_bar.requires_grad for x_bar in after)


@pytest.mark.parametrize("name", ["mse_loss", "huber_loss", "layer_norm", "group_norm"])
def test_what_nobody_asks_for_stays_unasked(name: str) -> None:
    xs, y = recorded(name)
    y_bar, _ = directions(y)
    all_bars = torch.autograd.grad(y, xs, y_bar, retain_graph=True)
    for x, wanted in zip(xs, all_bars, strict=True):
        (x_bar,) = torch.autograd.grad(y, x, y_bar, create_graph=True)
        torch.testing.assert_close(x_bar, wanted, rtol=1e-12, atol=1e-12)


@watched
def test_what_the_node_keeps_is_freed_by_its_backward(name: str) -> None:
    xs, y = recorded(name)
    y_bar, _ = directions(y)
    torch.autograd.grad(y, xs, y_bar, create_graph=True, retain_graph=False)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(y, xs, y_bar)


@watched
def test_a_changed_input_is_noticed_in_every_backward(name: str) -> None:
    xs, y = recorded(name)
    y_bar, _ = directions(y)
    with torch.no_grad():
        xs[0].mul_(2)
    for create_graph in (False, True):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(y, xs, y_bar, retain_graph=True, create_graph=create_graph)


# ---- the rules that it stands for ------------------------------------------------------------------------------------


_EVERY_DAY = ("gelu", "swiglu", "softmax", "mse_loss", "layer_norm")  # one of each kind


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in _EVERY_DAY else [pytest.mark.slow]) for n in NATIVE])
def test_the_rules_are_right_without_it(name: str) -> None:
    case = CASES[name]
    with _native.without_native():
        check_op(case.function, case.samples[:1], reference=case.reference, backends=())


# ---- who watches sees the op -----------------------------------------------------------------------------------------


class Names(TorchDispatchMode):
    """Note the names of the ops that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.namespace)
        return func(*args, **(kwargs or {}))


@named
def test_a_dispatch_mode_sees_the_op(name: str) -> None:
    if name in ("dyt", "gated_residual"):
        pytest.skip("their peer is the formula")
    function = function_of(name, CASES[name].samples[0])
    with Names() as names:
        function.ours(*function.primals)
    assert "torch_jvpvjp" in names.seen


def test_a_compiler_sees_the_op() -> None:
    graphs: list[Any] = []

    def backend(graph: Any, example_inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(ops.relu, backend=backend, fullgraph=True)(torch.randn(3))
    assert torch.ops.torch_jvpvjp.relu.default in [node.target for node in graphs[0].graph.nodes]
    torch.compiler.reset()


def test_autocast_sees_the_op() -> None:
    x = torch.randn(4, requires_grad=True)

    def node() -> str:
        grad_fn = ops.tanh(x).grad_fn
        assert grad_fn is not None
        return type(grad_fn).__name__

    assert "torch_jvpvjp" not in node()
    with torch.autocast("cpu", torch.bfloat16):
        assert "torch_jvpvjp" in node()


def test_values_without_gradient_keep_no_graph() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        assert ops.layer_norm(x, (3,)).grad_fn is None
    assert ops.layer_norm(x, (3,)).grad_fn is not None
    assert ops.layer_norm(x.detach(), (3,)).grad_fn is None


def test_the_pullback_of_layer_norm_computes_no_moments_again() -> None:
    x = torch.randn(5, 4, requires_grad=True)
    y = ops.layer_norm(x, (4,), torch.ones(4), torch.zeros(4))
    with Names() as names:
        torch.autograd.grad(y, x, torch.ones_like(y))
    assert "torch_jvpvjp" in names.seen  # a mode sees the op ...
    from torch.profiler import ProfilerActivity, profile

    y = ops.layer_norm(x, (4,), torch.ones(4), torch.zeros(4))
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        torch.autograd.grad(y, x, torch.ones_like(y))
    found = {event.key for event in profiler.key_averages()}
    assert "aten::native_layer_norm_backward" in found and "aten::native_layer_norm" not in found
