"""Every plan of one chain gives the same Jacobian, whatever its stages; the judge is torch.func.jacrev in float64."""

import warnings
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobian_checks import F64, composed, opaque
from torch import nn
from torch.nn.utils import parametrizations

from torch_jvpvjp.accumulation import (
    STRATEGIES,
    Chain,
    jacobian,
    plan_jacobian,
)


def _seeded(seed=0):
    torch.manual_seed(seed)


def _linear(n, m, **options):
    return nn.Linear(n, m, dtype=F64, **options)


def _branching(v):
    return v * 2 if v.sum() > 0 else v.square()


class _Residual(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.inner = _linear(n, n)

    def forward(self, v):
        return v + self.inner(v).tanh()


def _spectral(n):
    module = parametrizations.weight_norm(_linear(n, n))
    return module


def _hooked(n):
    module = _linear(n, n)
    module.register_forward_hook(lambda module, args, out: out**2)
    return module


# name: (stages, shape of x)
CHAINS = {
    "one linear": (lambda: [_linear(4, 3)], (4,)),
    "one activation": (lambda: [nn.Tanh()], (4,)),
    "one black box": (lambda: [opaque], (4,)),
    "bottleneck": (lambda: [_linear(6, 4), nn.GELU(), _linear(4, 2), nn.Tanh(), _linear(2, 5), nn.SiLU()], (6,)),
    "wide middle": (lambda: [_linear(2, 7), nn.Sigmoid(), _linear(7, 3)], (2,)),
    "no bias": (lambda: [_linear(5, 3, bias=False), nn.ReLU(), _linear(3, 4, bias=False)], (5,)),
    "rows": (lambda: [_linear(4, 3), nn.GELU(), _linear(3, 2)], (5, 4)),
    "one row": (lambda: [_linear(4, 3), nn.Tanh(), _linear(3, 2)], (1, 1, 4)),
    "black boxes": (lambda: [opaque, torch.tanh, opaque, lambda v: v[:2] * v[2:4], opaque], (6,)),
    "mixed": (lambda: [_linear(6, 4), opaque, nn.Tanh(), lambda v: v.view(2, 2) @ v.view(2, 2).T, torch.exp], (6,)),
    "to scalar": (lambda: [_linear(6, 4), nn.Softplus(), lambda v: v.square().sum()], (6,)),
    "from scalar": (lambda: [lambda v: v * torch.arange(1.0, 4.0, dtype=F64), torch.sin, _linear(3, 5)], ()),
    "scalar to scalar": (lambda: [torch.sin, lambda v: v**3], ()),
    "matrix to matrix": (lambda: [lambda v: v.T @ v, torch.tanh, lambda v: v.flatten()[:4].reshape(2, 2)], (3, 4)),
    "constant": (lambda: [_linear(3, 3), lambda v: torch.ones(2, dtype=F64)], (3,)),
    "view": (lambda: [nn.Flatten(0), _linear(6, 2), lambda v: v[None]], (2, 3)),
    "residual module": (lambda: [_Residual(4), nn.ReLU(), _Residual(4)], (4,)),
    "parametrised linear": (lambda: [_spectral(3), nn.Tanh()], (3,)),
    "hooked linear": (lambda: [_hooked(3), nn.Tanh()], (3,)),
    "branching": (lambda: [_branching, _linear(3, 2)], (3,)),
    "evaluated dropout": (lambda: [_linear(4, 4), nn.Dropout(0.5).eval(), _linear(4, 2)], (4,)),
    "layer norm": (lambda: [_linear(4, 4), nn.LayerNorm(4, dtype=F64), nn.GELU("tanh")], (4,)),
    "convolution": (lambda: [nn.Conv1d(1, 2, 3, dtype=F64), nn.ReLU(), nn.Flatten(0), _linear(8, 2)], (1, 6)),
}  # fmt: skip


@pytest.mark.parametrize("strategy", ["forward", "reverse", "greedy", "dynamic_programming", "exhaustive"])
@pytest.mark.parametrize(("stages", "shape"), CHAINS.values(), ids=CHAINS)
def test_every_strategy_gives_the_jacobian(stages, shape, strategy):
    _seeded()
    stages = stages()
    x = torch.randn(shape, dtype=F64)
    before = x.clone()
    expected = torch.func.jacrev(composed(stages))(x.clone())
    for matrix_free in (True, False):
        plan = plan_jacobian(stages, x, strategy=strategy, matrix_free=matrix_free)
        found = plan(x)
        assert found.shape == expected.shape and found.dtype == F64
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            plan(x + 0.25), torch.func.jacrev(composed(stages))(x + 0.25), rtol=1e-12, atol=1e-13
        )
    assert torch.equal(x, before)


def test_strategies_of_the_table_are_all_tested():
    assert set(STRATEGIES) == {"forward", "reverse", "greedy", "dynamic_programming", "exhaustive"}


ACTIVATIONS = [
    nn.CELU(), nn.ELU(), nn.GELU(), nn.GELU("tanh"), nn.Hardsigmoid(), nn.Hardswish(), nn.Hardtanh(), nn.Identity(),
    nn.LeakyReLU(), nn.LogSigmoid(), nn.Mish(), nn.ReLU(), nn.ReLU6(), nn.SELU(), nn.SiLU(), nn.Sigmoid(),
    nn.Softplus(), nn.Softshrink(), nn.Softsign(), nn.Tanh(), nn.Tanhshrink(), nn.Hardshrink(), nn.Threshold(0.1, 2.0),
    torch.relu, torch.sin, torch.exp, torch.square, nn.functional.gelu, nn.functional.silu, nn.functional.elu,
    nn.functional.softplus,
]  # fmt: skip


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda function: getattr(function, "__name__", str(function)))
def test_elementwise_functions_are_diagonal_and_right(function):
    x = torch.tensor([-3.5, -0.7, 0.0, 0.3, 2.9], dtype=F64)
    plan = plan_jacobian(function, x)
    assert isinstance(function, nn.Identity) or [step.structure for step in plan.steps] == ["diagonal"]
    torch.testing.assert_close(plan(x), torch.func.jacrev(function)(x), rtol=1e-12, atol=0)


def test_a_derivative_is_right_by_differences():
    _seeded()
    net = nn.Sequential(_linear(5, 3), nn.GELU(), _linear(3, 4), nn.Tanh())
    x, direction = torch.randn(5, dtype=F64), torch.randn(5, dtype=F64)
    with torch.no_grad():
        difference = (net(x + 1e-6 * direction) - net(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close(jacobian(net, x) @ direction, difference, rtol=1e-8, atol=1e-8)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=6),
    kinds=st.lists(st.sampled_from(["tanh", "black box", "rows"]), min_size=5, max_size=5),
    strategy=st.sampled_from(["forward", "reverse", "greedy", "dynamic_programming"]),
    rows=st.integers(1, 3),
)
def test_random_networks(sizes, kinds, strategy, rows):
    _seeded(sum(sizes))
    stages = []
    for (n, m), kind in zip(zip(sizes, sizes[1:], strict=False), kinds, strict=False):
        stages += [_linear(n, m), {"tanh": nn.Tanh(), "black box": opaque, "rows": nn.Softmax(-1)}[kind]]
    x = torch.randn(rows, sizes[0], dtype=F64)
    found = plan_jacobian(stages, x, strategy=strategy)(x)
    torch.testing.assert_close(found, torch.func.jacrev(composed(stages))(x), rtol=1e-11, atol=1e-12)


def test_a_function_is_a_chain_of_one_stage():
    x = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(jacobian(lambda v: v @ v.T, x), torch.func.jacrev(lambda v: v @ v.T)(x))
    module = _Residual(2)
    torch.testing.assert_close(jacobian(module, x), torch.func.jacrev(module)(x))


def test_nested_sequentials_are_flattened_and_a_module_may_come_twice():
    act = nn.Tanh()
    layer = _linear(3, 3)
    net = nn.Sequential(OrderedDict(a=nn.Sequential(layer, act), b=nn.Sequential(nn.Sequential(layer, act), layer)))
    chain = Chain.from_module(net)
    assert [type(stage).__name__ for stage in chain.functions] == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    x = torch.ones(3, dtype=F64)
    torch.testing.assert_close(chain(x), net(x))
    torch.testing.assert_close(jacobian(net, x), torch.func.jacrev(net)(x))


def test_a_sequential_that_does_more_is_one_stage():
    class Scaled(nn.Sequential):
        def forward(self, v):
            return 3 * super().forward(v)

    hooked = nn.Sequential(_linear(2, 2))
    hooked.register_forward_hook(lambda module, args, out: out * v)
    v = torch.tensor([2.0, 5.0], dtype=F64)
    for net in (Scaled(_linear(2, 2), nn.Tanh()), hooked):
        assert len(Chain.from_module(net)) == 1
        torch.testing.assert_close(jacobian(net, v), torch.func.jacrev(net)(v))


def test_the_plan_follows_modules_as_they_change():
    net = nn.Sequential(_linear(2, 2), nn.Tanh())
    x = torch.ones(2, dtype=F64)
    plan = plan_jacobian(net, x)
    with torch.no_grad():
        net[0].weight.mul_(2)
    torch.testing.assert_close(plan(x), torch.func.jacrev(net)(x))
    net[1].register_forward_hook(lambda module, args, out: out**2)  # another chain, of the same sizes
    torch.testing.assert_close(plan(x), torch.func.jacrev(net)(x))


def test_the_weight_is_not_handed_out():
    layer = _linear(3, 2)
    found = jacobian(layer, torch.zeros(3, dtype=F64))
    found.zero_()
    assert layer.weight.abs().min() > 0
    assert not isinstance(found, nn.Parameter) and not found.requires_grad


def test_the_result_is_detached_but_not_silently_constant_inside_a_transform():
    _seeded()
    net = nn.Sequential(_linear(3, 3), nn.Tanh(), _linear(3, 2))
    x = torch.randn(3, dtype=F64, requires_grad=True)
    assert not jacobian(net, x).requires_grad
    plan = plan_jacobian(net, x.detach())
    expected = torch.func.grad(lambda v: torch.func.jacrev(net)(v).square().sum())(x.detach())
    found = torch.func.grad(lambda v: plan(v).square().sum())(x.detach())
    assert expected.abs().min() > 0
    torch.testing.assert_close(found, expected)


def test_under_vmap_it_is_the_loop():
    _seeded()
    net = nn.Sequential(_linear(3, 4), nn.GELU(), _linear(4, 2))
    batch = torch.randn(5, 3, dtype=F64)
    plan = plan_jacobian([net[0], net[1], net[2], opaque], batch[0])
    found = torch.func.vmap(plan)(batch)
    torch.testing.assert_close(found, torch.stack([plan(row) for row in batch]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_dtype_is_kept(dtype):
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)
    assert jacobian(net, torch.ones(3, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("strategy", ["forward", "reverse", "dynamic_programming"])
def test_a_stage_may_change_the_dtype(strategy):
    stages = [nn.Linear(3, 3), torch.Tensor.double, _linear(3, 2), nn.Tanh()]
    x = torch.linspace(-1, 1, 3)
    found = plan_jacobian(stages, x, strategy=strategy)(x)
    assert found.dtype == F64  # that of the output
    torch.testing.assert_close(found, torch.func.jacfwd(composed(stages))(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("stages", "shape", "result"),
    [([_linear(3, 2), nn.Tanh()], (0, 3), (0, 2, 0, 3)), ([lambda v: v[:0], torch.sin], (4,), (0, 4))],
    ids=["no rows", "nothing left"],
)
def test_empty_tensors(stages, shape, result):
    x = torch.zeros(shape, dtype=F64)
    assert jacobian(stages, x).shape == result


@pytest.mark.parametrize("strategy", ["forward", "reverse"])
def test_modules_may_write_into_what_the_stage_before_made(strategy):
    _seeded()
    layer = _linear(4, 4)
    stages = [
        layer,
        nn.ReLU(inplace=True),
        nn.Sigmoid(),
        nn.ELU(2.0, inplace=True),
        opaque,
        nn.Hardtanh(inplace=True),
    ]
    pure = [layer, nn.ReLU(), nn.Sigmoid(), nn.ELU(2.0), opaque, nn.Hardtanh()]  # jacrev itself refuses the others
    x = torch.randn(4, dtype=F64)
    before = x.clone()
    torch.testing.assert_close(plan_jacobian(stages, x, strategy=strategy)(x), torch.func.jacrev(composed(pure))(x))
    assert torch.equal(x, before)


def test_a_function_with_only_an_adjoint():
    class Cube(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(v):
            return v**3

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx, y_bar):
            (v,) = ctx.saved_tensors
            return 3 * v**2 * y_bar

    stages = [_linear(3, 4), Cube.apply, _linear(4, 5)]
    x = torch.ones(3, dtype=F64)
    plan = plan_jacobian(stages, x)
    assert plan.factors[1].jvp_cost is None and plan.tangent_fma is None
    torch.testing.assert_close(plan(x), torch.func.jacrev(composed(stages))(x))
    assert "all tangent  not possible" in str(plan)
    with pytest.raises(ValueError, match="forward: factor F2 must have a tangent evaluation, got none"):
        plan_jacobian(stages, x, strategy="forward")


def test_random_stages_draw_once():
    net = [_linear(6, 6), nn.Dropout(0.5), opaque]
    x = torch.linspace(1, 2, 6, dtype=F64)
    for strategy in ("forward", "reverse"):
        plan = plan_jacobian(net, x, strategy=strategy)
        torch.manual_seed(5)
        found = plan(x)
        torch.manual_seed(5)
        torch.testing.assert_close(found, torch.func.jacrev(composed(net))(x))


def test_no_warning_and_no_grad_left_behind():
    layer = _linear(3, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jacobian([layer, opaque], torch.ones(3, dtype=F64))
    assert layer.weight.grad is None and torch.is_grad_enabled()
