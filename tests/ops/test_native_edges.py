"""Where PyTorch's function stands for an op: what surrounds the call, and numbers far from 1."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD  # noqa: N812 -- PyTorch's documentation spells it so
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from torch_jvpvjp import ops
from torch_jvpvjp.ops import _native

if not _native.is_active():
    pytest.skip("in the interpreter, CPU tensors take the Triton kernels", allow_module_level=True)

F64 = torch.float64


def draw(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


CLASSES = torch.tensor([0, 2])
WEIGHT = draw(3, 4, seed=1)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": ops.gelu,
    "silu": ops.silu,
    "tanh": ops.tanh,
    "swiglu": lambda x: ops.swiglu(x, x.cos()),
    "geglu": lambda x: ops.geglu(x, x.cos()),
    "glu": ops.glu,
    "softmax": lambda x: ops.softmax(x, -1),
    "logsumexp": lambda x: ops.logsumexp(x, -1),
    "layer_norm": lambda x: ops.layer_norm(x, (4,), x.detach()[0], x.detach()[1]),
    "group_norm": lambda x: ops.group_norm(x, 2),
    "dyt": lambda x: ops.dyt(x, x[0, 0]),
    "cross_entropy": lambda x: ops.cross_entropy(x, CLASSES),
    "linear_cross_entropy": lambda x: ops.linear_cross_entropy(x, WEIGHT, CLASSES),
    "mse_loss": lambda x: ops.mse_loss(x, x.cos()),
    "huber_loss": lambda x: ops.huber_loss(x, x.cos()),
}
named = pytest.mark.parametrize("name", FUNCTIONS)


# ---- a checkpoint computes again in other surroundings ---------------------------------------------------------------


class Watcher(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@contextmanager
def dual_level() -> Iterator[None]:
    with fwAD.dual_level():
        yield


@pytest.mark.parametrize(("around_call", "around_backward"), [(nullcontext, dual_level), (Watcher, nullcontext)])
@named
def test_a_checkpoint_saves_the_same_whatever_surrounds_it(name: str, around_call: Any, around_backward: Any) -> None:
    x = draw(2, 4).requires_grad_()
    y = FUNCTIONS[name](x)
    y_bar = torch.ones_like(y)
    (wanted,) = torch.autograd.grad(y, x, y_bar)
    with around_call():
        y = checkpoint(FUNCTIONS[name], x, use_reentrant=False)
    with around_backward():
        (found,) = torch.autograd.grad(y, x, y_bar)
    torch.testing.assert_close(found, wanted)


@named
def test_a_jvp_of_the_backward_of_a_checkpoint(name: str) -> None:
    x = draw(2, 4).requires_grad_()
    y = checkpoint(FUNCTIONS[name], x, use_reentrant=False)
    y_bar = torch.ones_like(y)
    pulled, moved = torch.func.jvp(lambda c: torch.autograd.grad(y, x, c)[0], (y_bar,), (2 * y_bar,))
    torch.testing.assert_close(moved, 2 * pulled)  # a pullback is linear


# ---- what an op returned may be written into -------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_group_norm_returns_may_be_written_into(memory_format: torch.memory_format) -> None:
    x = draw(2, 4, 3, 3).to(memory_format=memory_format).requires_grad_()
    found = torch.autograd.grad(ops.group_norm(x, 2).relu_().square().sum(), x)
    wanted = torch.autograd.grad(torch.nn.functional.group_norm(x, 2).relu().square().sum(), x)
    torch.testing.assert_close(found, wanted)


# ---- numbers far from 1 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(("dtype", "far"), [(torch.float16, 300.0), (torch.float32, 1e20)])
def test_gelu_is_flat_far_away(dtype: torch.dtype, far: float, approximate: str) -> None:
    x = torch.tensor([-far, far], dtype=dtype, requires_grad=True)
    (x_bar,) = torch.autograd.grad(ops.gelu(x, approximate).sum(), x, create_graph=True)
    assert torch.autograd.grad(x_bar.sum(), x)[0].tolist() == [0.0, 0.0]
    if approximate == "none":  # where PyTorch's own is NaN
        (theirs,) = torch.autograd.grad(torch.nn.functional.gelu(x).sum(), x, create_graph=True)
        assert torch.autograd.grad(theirs.sum(), x)[0].isnan().all()
        one = torch.ones_like(x)
        moved = torch.func.jvp(lambda t: torch.func.jvp(ops.gelu, (t,), (one,))[1], (x.detach(),), (one,))[1]
        assert moved.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("delta", [1e-30, 1e-3, 1.0, 1e3, 1e30, 1e38, 1e39])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_huber_loss_of_any_delta(delta: float, reduction: str) -> None:
    x, t = draw(7, dtype=torch.float32).requires_grad_(), torch.zeros(7)
    found, wanted = (f(x, t, reduction, delta) for f in (ops.huber_loss, torch.nn.functional.huber_loss))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0.0)
    bars = [torch.autograd.grad(y.sum(), x)[0] for y in (found, wanted)]
    torch.testing.assert_close(*bars, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_the_slope_of_a_saturated_linear_layer_is_not_rounded_away(activation: str) -> None:
    x = torch.tensor([[4.0]], dtype=torch.bfloat16, requires_grad=True)
    (found,) = torch.autograd.grad(ops.linear(x, torch.ones_like(x), activation=activation), x)
    z = torch.tensor(4.0, dtype=F64)
    slope = 1 / z.cosh().square() if activation == "tanh" else z.sigmoid() * (-z).sigmoid()
    torch.testing.assert_close(found.double().squeeze(), slope, rtol=torch.finfo(torch.bfloat16).eps, atol=0.0)


# ---- what is no plain tensor -----------------------------------------------------------------------------------------


@named
def test_a_tensor_without_data_has_a_shape(name: str) -> None:
    if "cross_entropy" in name:
        pytest.skip("classes of the test are on the CPU")
    assert FUNCTIONS[name](draw(2, 4).to("meta")).shape == FUNCTIONS[name](draw(2, 4)).shape


@pytest.mark.parametrize("f", [ops.linear, ops.linear_cross_entropy, ops.cross_entropy], ids=lambda f: f.__name__)
def test_what_asks_for_autocast_takes_tensors_without_data(f: Callable[..., Tensor]) -> None:
    x, classes = torch.empty(2, 4, device="meta"), torch.empty(2, dtype=torch.int64, device="meta")
    args = {"linear": (x, x), "linear_cross_entropy": (x, x, classes), "cross_entropy": (x, classes)}[f.__name__]
    assert f(*args).is_meta


def test_the_forward_mode_hessian_of_a_linear_layer_by_the_vmap_before_functorch() -> None:
    args = draw(2, 3), draw(4, 3, seed=1), draw(4, seed=2)

    def hessian(function: Callable[..., Tensor]) -> Any:
        loss = lambda *primals: function(*primals).sin().sum()  # noqa: E731
        options = {"vectorize": True, "outer_jacobian_strategy": "forward-mode"}
        return torch.autograd.functional.hessian(loss, args, **options)

    torch.testing.assert_close(hessian(ops.linear), hessian(torch.nn.functional.linear))
