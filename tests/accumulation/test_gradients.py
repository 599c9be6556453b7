"""Training steps through Jacobians: recorded pullbacks, judged by autograd through jacrev."""

import gc
import weakref

import pytest
import torch
from jacobian_checks import F64, assert_same, randn
from random_functions import Function
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from torch_jvpvjp.accumulation import differentiable, gradients, jacobian, plan_jacobian


@pytest.fixture(autouse=True)
def _recorded_at_once(monkeypatch):
    monkeypatch.setattr(gradients, "_SECONDS_OF_OP", 0.0)


def _loss(jacobians):
    leaves = [leaf for leaf in tree_leaves(jacobians) if leaf.requires_grad]
    weights = [torch.linspace(0.3, 1.7, leaf.numel(), dtype=leaf.dtype).view_as(leaf) for leaf in leaves]
    return sum((leaf * weight).sin().sum() for leaf, weight in zip(leaves, weights, strict=True))


def _gradients(jacobians, leaves):
    found = torch.autograd.grad(_loss(jacobians), leaves, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(leaf) if one is None else one for one, leaf in zip(found, leaves, strict=True)]


def _is_recorded(jacobians):
    return all("RecordedJacobian" in type(leaf.grad_fn).__name__ for leaf in tree_leaves(jacobians) if leaf.grad_fn)


def _net():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)).to(F64)


class _Coupling(nn.Module):
    def __init__(self, flipped):
        super().__init__()
        self.flipped = flipped
        self.net = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 4)).to(F64)

    def forward(self, x):
        a, b = x.chunk(2, -1)
        a, b = (b, a) if self.flipped else (a, b)
        scale, shift = self.net(a).chunk(2, -1)
        b = b * scale.tanh().exp() + shift
        return torch.cat([b, a] if self.flipped else [a, b], -1)


def _weighted(function):
    module = nn.Module()
    module.weight = nn.Parameter(randn(4, 4))
    module.forward = lambda x: function(x, module.weight)
    return module


FUNCTIONS = {
    "net": (_net, 3),
    "flow": (lambda: nn.Sequential(*(_Coupling(bool(place % 2)) for place in range(3))), 4),
    "products": (lambda: _weighted(lambda x, w: (w @ x).tanh() @ w + torch.linalg.solve(w @ w.T + 3 * w.exp(), x)), 4),
    "moved": (lambda: _weighted(lambda x, w: torch.roll(x, 1, -1) * w[0] + x.flip(-1).cumsum(-1) * w[1]), 4),
    "detached": (lambda: _weighted(lambda x, w: x * x.detach() * w[0].detach() + w[1] * x.sin()), 4),
    "attention": (
        lambda: _weighted(
            lambda x, w: nn.functional.scaled_dot_product_attention(x[None, :, None] * w[None], w[None], w[None] * x)
        ),
        4,
    ),
    "linear": (lambda: _weighted(lambda x, w: x @ w), 4),
}


@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_at_new_points_and_weights(name, batch_dims):
    if batch_dims and name in {"products", "attention"}:
        pytest.skip("its formula is for one sample")
    make, size = FUNCTIONS[name]
    f = make()
    jacrev = torch.func.jacrev(f)
    plan = plan_jacobian(f, randn(*[5][:batch_dims], size), create_graph=True, batch_dims=batch_dims)
    for _ in range(4):
        x = randn(*[5][:batch_dims], size).requires_grad_()
        with torch.no_grad():
            for parameter in f.parameters():
                parameter.mul_(1.1)
        leaves = [x, *f.parameters()]
        found = plan(x)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            expected = torch.func.vmap(jacrev)(x) if batch_dims else jacrev(x)
        assert_same(found, expected)
        for gradient, judge in zip(_gradients(found, leaves), _gradients(expected, leaves), strict=True):
            assert_same(gradient, judge)
    assert _is_recorded(found)


@pytest.mark.parametrize("seed", range(12))
def test_gradients_of_random_functions(seed, monkeypatch):
    f = Function(seed)
    x = tuple(f.inputs) if len(f.inputs) > 1 else f.inputs[0]
    plan, other = (plan_jacobian(f, x, create_graph=True) for _ in range(2))
    for _ in range(3):
        x = tree_map(lambda leaf: (leaf.detach() * (1 + 0.02 * torch.randn_like(leaf))).requires_grad_(), x)
        leaves = [*tree_leaves(x), *f.parameters()]
        found = plan(x)
        with monkeypatch.context() as here:
            here.setattr(gradients, "hooks_saved_tensors", lambda: True)  # by the executor
            expected = other(x)
        assert not _is_recorded(expected) or not any(leaf.requires_grad for leaf in tree_leaves(expected))
        for one, judge in zip(tree_leaves(found), tree_leaves(expected), strict=True):
            assert one.requires_grad == judge.requires_grad
            assert_same(one, judge)
        if not any(leaf.requires_grad for leaf in tree_leaves(expected)):
            continue
        for gradient, judge in zip(_gradients(found, leaves), _gradients(expected, leaves), strict=True):
            assert_same(gradient, judge, 1e-8)


def test_a_function_that_goes_another_way():
    weight = randn(2, 4).requires_grad_()

    def f(x):
        return x * weight[0] if x.sum() > 0 else (x * weight[1]).sin()

    for sign in (1, 1, -1, -1, 1, -1):
        x = (sign * randn(4).abs()).requires_grad_()
        found = jacobian(f, x, create_graph=True)
        expected = torch.func.jacrev(lambda v, s=sign: v * weight[0] if s > 0 else (v * weight[1]).sin())(x)
        for gradient, judge in zip(_gradients(found, [weight, x]), _gradients(expected, [weight, x]), strict=True):
            assert_same(gradient, judge)


def test_losses_of_some_parts():
    weight = randn(3, 3).requires_grad_()

    def f(x):
        return {"a": (weight @ x["u"]).sin() * x["t"], "b": x["u"] * 2, "c": (x["t"] ** 2).sum()[None]}

    x = {"u": randn(3).requires_grad_(), "t": randn(3).requires_grad_()}
    leaves, plan = [weight, x["u"], x["t"]], plan_jacobian(f, x, create_graph=True)
    expected = torch.func.jacrev(f)(x)
    parts = (lambda tree: tree, lambda tree: tree["a"], lambda tree: tree["c"]["t"])
    for part in [parts[0]] * 3 + [parts[1]] * 3 + [parts[2]] * 3 + [*parts] * 2:
        found = plan(x)
        for gradient, judge in zip(_gradients(part(found), leaves), _gradients(part(expected), leaves), strict=True):
            assert_same(gradient, judge)


def test_derivatives_of_higher_order():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Softmax(-1)).to(F64)
    x = randn(3).requires_grad_()

    def plan():
        made = plan_jacobian(net, x, create_graph=True)
        made(x)
        assert _is_recorded(made(x))
        return made

    assert torch.autograd.gradcheck(plan(), (x,))
    assert torch.autograd.gradgradcheck(plan(), (x,))
    judge = torch.func.jacrev(torch.func.grad(lambda v: torch.func.jacrev(net)(v).sin().sum()))(x)
    made = plan()
    assert_same(torch.autograd.functional.hessian(lambda v: made(v).sin().sum(), x), judge)
    again = torch.func.jacrev(torch.func.jacrev(net))(x)
    assert_same(torch.autograd.functional.jacobian(plan(), x, vectorize=True), again)
    assert_same(torch.func.jacfwd(plan())(x), again)


def test_two_inputs_one_of_which_depends_on_the_other():
    raw = randn(3, 3).requires_grad_()
    first, second = raw.tanh(), raw.tanh().exp()

    def f(x):
        return (first @ x).sin() @ second

    x = randn(3).requires_grad_()
    plan = plan_jacobian(f, x, create_graph=True)
    expected = torch.autograd.grad(_loss(torch.func.jacrev(f)(x)), raw, retain_graph=True)[0]
    for _ in range(3):
        assert_same(torch.autograd.grad(_loss(plan(x)), raw, retain_graph=True)[0], expected)
        twice = torch.autograd.grad(_loss(plan(x)), raw, create_graph=True)[0]
        assert_same(twice.detach(), expected)


@pytest.mark.parametrize("written", ["weight", "x"])
def test_what_is_written_into_in_between_is_noticed(written):
    net, x = _net(), randn(3).requires_grad_()
    plan = plan_jacobian(net, x, create_graph=True)
    for again in range(3):
        found = plan(x)
        with torch.no_grad():
            (x if written == "x" else net[0].weight).mul_(1.01)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            _loss(found).backward()
        assert again == 0 or _is_recorded(found)


def test_a_jacobian_that_is_written_into():
    net, x = _net(), randn(3).requires_grad_()
    plan = plan_jacobian(net, x, create_graph=True)
    for _ in range(3):
        found = plan(x)
        (expected,) = torch.autograd.grad(found.square().sum(), x)
        again = plan(x)
        again.mul_(2)
        assert_same(torch.autograd.grad(again.square().sum() / 4, x)[0], expected)


def test_memory_is_freed_with_the_graph():
    net, x = _net(), randn(3).requires_grad_()
    plan = plan_jacobian(net, x, create_graph=True)
    for _ in range(3):
        found = plan(x)
    node = weakref.ref(found.grad_fn)
    _loss(found).backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        _loss(found).backward()
    gc.collect()
    gc.disable()
    try:
        del found
        assert node() is None
    finally:
        gc.enable()


def test_inside_of_a_checkpoint():
    net, x = _net(), randn(3).requires_grad_()
    plan = plan_jacobian(net, x, create_graph=True)
    leaves = [x, *net.parameters()]
    expected = _gradients(torch.func.jacrev(net)(x), leaves)
    for _ in range(3):
        loss = checkpoint(lambda v: _loss(plan(v)), x, use_reentrant=False)
        found = torch.autograd.grad(loss, leaves, allow_unused=True)
        for gradient, judge in zip(found, expected, strict=True):
            assert_same(torch.zeros_like(judge) if gradient is None else gradient, judge)
        assert _is_recorded(plan(x)) or _ == 0


def test_what_requires_no_gradient():
    net, x = _net(), randn(3).requires_grad_()
    plan = plan_jacobian(net, x, create_graph=True)
    for _ in range(3):
        with torch.no_grad():
            assert not plan(x).requires_grad
        net.requires_grad_(False)  # noqa: FBT003 (as PyTorch has it)
        assert not plan(x.detach()).requires_grad
        net[0].weight.requires_grad_()
        leaves = [net[0].weight]
        assert_same(*(_gradients(one, leaves)[0] for one in (plan(x.detach()), torch.func.jacrev(net)(x.detach()))))
        net.requires_grad_()
        leaves = [x, *net.parameters()]
        for pair in zip(*(_gradients(one, leaves) for one in (plan(x), torch.func.jacrev(net)(x))), strict=True):
            assert_same(*pair)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of PyTorch's fake tensors
def test_autocast_is_left_to_the_forward_pass():
    net, x = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)), torch.randn(8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        plan = plan_jacobian(net, x, create_graph=True)
    found = []
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            made = plan(x)
        found.append(torch.autograd.grad(made.float().square().sum(), net[0].weight)[0])
    assert _is_recorded(made)
    assert found[-1].dtype is torch.float32
    torch.testing.assert_close(found[-1], found[0], rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("point", [randn(3), torch.zeros(3, dtype=F64)], ids=["anywhere", "at 0"])
def test_a_number_from_out_of_sight_is_not_taken_for_fixed(point):
    def made(inputs):
        (x,) = inputs
        return [x * torch.from_numpy(x.detach().numpy().copy())]  # of which a recorder sees nothing

    x = point.clone().requires_grad_()
    replay = differentiable.Replay(1 << 20)
    assert differentiable.recorded(made, [x], None, replay) is None
    assert differentiable.recorded(lambda inputs: [inputs[0] * inputs[0].detach()], [x], None, replay)


def test_recording_waits_for_calls_that_have_taken_as_long(monkeypatch):
    monkeypatch.setattr(gradients, "_SECONDS_OF_OP", 1e9)
    net, x = _net(), randn(3).requires_grad_()
    plan = plan_jacobian(net, x, create_graph=True)
    for _ in range(3):
        assert not _is_recorded(plan(x))


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch._prims_common.check:FutureWarning")  # by Inductor of itself
@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("name", ["net", "moved", "detached"])
def test_compiled_gradients(name, batch_dims, monkeypatch):
    monkeypatch.setattr(gradients, "_SECONDS_OF_OP", 1e9)
    make, size = FUNCTIONS[name]
    f = make()
    jacrev = torch.func.jacrev(f)
    plan = plan_jacobian(f, randn(*[5][:batch_dims], size), create_graph=True, batch_dims=batch_dims, compile=True)
    for _ in range(3):
        x = randn(*[5][:batch_dims], size).requires_grad_()
        with torch.no_grad():
            for parameter in f.parameters():
                parameter.mul_(1.1)
        leaves = [x, *f.parameters()]
        found, expected = plan(x), torch.func.vmap(jacrev)(x) if batch_dims else jacrev(x)
        assert _is_recorded(found)
        assert_same(found, expected)
        for gradient, judge in zip(_gradients(found, leaves), _gradients(expected, leaves), strict=True):
            assert_same(gradient, judge)
        if name == "net":  # of which the pullback uses the weight
            found = plan(x)
            with torch.no_grad():
                leaves[1].mul_(1.01)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                _loss(found).backward()
    x = randn(*[5][:batch_dims], size)
    assert_same(plan(x).detach(), torch.func.vmap(jacrev)(x) if batch_dims else jacrev(x))


def test_what_cannot_be_compiled_is_refused():
    weight = randn(3).requires_grad_()
    with pytest.raises(ValueError, match="got one that draws random numbers"):
        jacobian(lambda x: x * weight * torch.rand_like(x), randn(3), create_graph=True, compile=True)
    with pytest.raises(ValueError, match="got a chunk_size, memory_limit, progress or sparse as well"):
        jacobian(lambda x: x.sin() * weight, randn(3), create_graph=True, compile=True, chunk_size=1)
