"""The one-shot function: right before and after it keeps a plan, for whatever kind of callable."""

import copy
import functools
import pickle

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, randn
from torch import nn

from torch_jvpvjp.accumulation import cache, jacobian
from torch_jvpvjp.accumulation._torch_autograd import Recording


class Power:
    def __init__(self, power):
        self.power = power

    def __call__(self, v):
        return v**self.power

    def times(self, v):
        return v * self.power


class Slotted:
    __slots__ = ("gain",)

    def __init__(self, gain):
        self.gain = gain

    def __call__(self, v):
        return v.sin() * self.gain


def _net():
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2), nn.Tanh(), nn.Linear(2, 5)).to(F64)


CALLABLES = {
    "module": _net,
    "function": lambda: lambda v: torch.outer(v, v).sin(),
    "object": lambda: Power(3),
    "bound method": lambda: Power(2.5).times,
    "partial": lambda: functools.partial(torch.mul, torch.arange(4.0, dtype=F64)),
    "builtin": lambda: torch.sin,
    "slots": lambda: Slotted(2.0),
    "to a number": lambda: lambda v: v.square().sum(),
    "branching": lambda: lambda v: v * 2 if v.sum() > 0 else v**2,
}


@pytest.mark.parametrize("when", ["never", "at once", "as it comes"])
@pytest.mark.parametrize("make", CALLABLES.values(), ids=CALLABLES)
def test_every_call_is_right_whenever_a_plan_is_made(make, when, monkeypatch):
    if when != "as it comes":
        monkeypatch.setattr(cache, "_PLANNING_SECONDS", 1e9 if when == "never" else -1e9)
    f = make()
    for by in (0.0, 0.0, 0.5, -3.0, 1.0):
        x = torch.tensor([0.3, 1.2, 0.7, 0.1], dtype=F64) + by
        assert_same(jacobian(f, x), judged(f, x))


def test_a_plan_is_made_once_calls_without_one_have_cost_as_much(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", 0.0)
    monkeypatch.setattr(cache, "_PLANNING_RUNS", 1e-9)
    monkeypatch.setattr(cache, "_PLANNING_SECONDS_OF_OP", 0.0)
    net = _net()
    x = randn(4)
    jacobian(net, x)
    (known,) = vars(net)[cache.ATTRIBUTE].values()
    assert known.plan is not None
    assert_same(jacobian(net, x + 1), judged(net, x + 1))


def test_fresh_lambdas_do_not_share_plans(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    x = randn(3)
    for gain in (1.0, 2.0, 3.0):
        assert_same(jacobian(lambda v, gain=gain: v.sin() * gain, x), torch.diag(x.cos()) * gain)


def test_bound_methods_of_two_objects_and_two_methods_do_not_share_plans(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    x = randn(3).abs() + 1
    first, second = Power(2.0), Power(3.0)
    for _ in range(3):
        for one in (first, second):
            assert_same(jacobian(one.times, x), judged(one.times, x))
            assert_same(jacobian(one, x), judged(one, x))


def test_builtins_of_one_module_and_methods_of_one_tensor_do_not_share_plans(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    x, weight = randn(3), randn(3)
    for f in (torch.special.ndtr, torch.special.i1, nn.functional.gelu, nn.functional.softplus, weight.mul, weight.sub):
        for _ in range(2):
            assert_same(jacobian(f, x), judged(f, x))


def test_other_shapes_dtypes_and_options_have_plans_of_their_own(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)

    def function(v):
        return v.sin() * v.sum()

    for x in (randn(3), randn(2, 2), torch.randn(3), randn(0), randn(1)[0]):
        for _ in range(2):
            assert_same(jacobian(function, x), judged(function, x), 1e-6)
    x = randn(3, 3)
    for _ in range(2):
        assert_same(jacobian(torch.sin, x, batch_dims=1), torch.diag_embed(x.cos()))
        assert_same(jacobian(torch.sin, x), judged(torch.sin, x))
        assert_same(jacobian(torch.sin, x, objective="fma", strategy="reverse"), judged(torch.sin, x))


def test_a_copy_of_a_module_begins_without_plans(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    net, x = _net(), randn(4)
    jacobian(net, x)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.no_grad():
            other[0].weight.mul_(2)
        assert_same(jacobian(other, x), judged(other, x))
    assert_same(jacobian(net, x), judged(net, x))
    assert not any(cache.ATTRIBUTE in name for name in net.state_dict())


def test_it_is_right_inside_transforms_after_a_plan_was_kept(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    net, batch = _net(), randn(3, 4)
    for _ in range(2):
        assert_same(jacobian(net, batch[0]), judged(net, batch[0]))
    rows = torch.stack([judged(net, row) for row in batch])
    assert_same(torch.func.vmap(lambda row: jacobian(net, row))(batch), rows)
    expected = torch.func.grad(lambda v: torch.func.jacrev(net)(v).square().sum())(batch[0])
    assert_same(torch.func.grad(lambda v: jacobian(net, v).square().sum())(batch[0]), expected)
    direction = (batch[1],)
    _, pushed = torch.func.jvp(lambda v: jacobian(net, v), (batch[0],), direction)
    assert_same(pushed, torch.func.jvp(torch.func.jacrev(net), (batch[0],), direction)[1])


def test_without_a_plan_it_is_right_inside_transforms(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", 1e9)
    net, batch = _net(), randn(3, 4)
    rows = torch.stack([judged(net, row) for row in batch])
    assert_same(torch.func.vmap(lambda row: jacobian(net, row))(batch), rows)
    expected = torch.func.grad(lambda v: torch.func.jacrev(net)(v).square().sum())(batch[0])
    assert_same(torch.func.grad(lambda v: jacobian(net, v).square().sum())(batch[0]), expected)


@pytest.mark.parametrize("m", [0, 1, 2, 3, 12, 40])
@pytest.mark.parametrize("n", [0, 1, 3, 12])
def test_first_calls_of_any_size_are_right(m, n):
    weight = randn(m, n)
    for shape in ((n,), (1, n)):
        x = randn(*shape)
        expected = (weight @ x.reshape(n)).cos()[:, None] * weight
        assert_same(jacobian(lambda v: (weight @ v.reshape(n)).sin(), x), expected.reshape(m, *shape))


def test_first_calls_take_tangents_of_what_cannot_be_differentiated_twice():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(v):
            return v.repeat(50) * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, y_bar):
            return y_bar.reshape(50, -1).sum(0) * 2

        @staticmethod
        def jvp(ctx, v_dot):
            return v_dot.repeat(50) * 2

    expected = (2 * torch.eye(3, dtype=F64)).repeat(50, 1)
    assert_same(jacobian(lambda v: Twice.apply(v), randn(3)), expected)


def test_first_calls_leave_the_function_and_its_point_as_they_were():
    net, x = _net(), randn(4).requires_grad_()
    found = jacobian(net, x)
    assert not found.requires_grad and x.grad is None and all(p.grad is None for p in net.parameters())
    with torch.inference_mode():
        same = jacobian(net, x.detach().clone())
    assert_same(same, found)


def test_planning_is_put_off_by_the_ops_that_it_takes(monkeypatch):
    seconds = {name: getattr(cache, name) for name in ("_PLANNING_SECONDS", "_PLANNING_SECONDS_OF_OP")}
    monkeypatch.setattr(cache, "_PLANNING_RUNS", 0.0)
    short, long, other = (Recording(nodes, [way]) for nodes, way in ((5, int), (100, int), (5, str)))
    known = cache.Remembered(last=short)
    known.took(3 * seconds["_PLANNING_SECONDS"])
    assert known.planning_pays(0.0, 0)
    assert known.planning_pays(0.0, 0, lambda: short)
    assert not known.planning_pays(0.0, 0, lambda: long)
    assert not known.planning_pays(0.0, 0, lambda: other)  # calls that went another way do not pay for this one
    assert not cache.Remembered().planning_pays(0.0, 0, lambda: short)


def test_what_only_autograd_takes_is_right_whenever_a_plan_would_pay(monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(F64).train()  # counts its batches, in place
    still = copy.deepcopy(net)
    still[1].num_batches_tracked, still[1].momentum = None, 0.1
    x = randn(5, 4)
    for calls in range(1, 4):
        assert_same(jacobian(net, x), judged(still, x))
        assert net[1].num_batches_tracked == calls


def _preallocated(u):
    states = torch.zeros(u.shape[0] + 1, 2, dtype=u.dtype)
    for k in range(u.shape[0]):
        states[k + 1] = states[k] + 0.1 * torch.stack([u[k] * states[k, 1].cos(), u[k]])
    return states


def test_values_that_are_written_over_are_no_obstacle():
    """Autograd refuses such a function, which reads the list of its states again and again while it is filled."""
    u = torch.linspace(-1, 1, 5, dtype=torch.float64)
    expected = torch.func.jacfwd(_preallocated)(u)
    for _ in range(3):
        torch.testing.assert_close(jacobian(_preallocated, u), expected)


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_a_function_that_cannot_be_recorded_is_not_planned(batch_dims, monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    weight = randn(4, 2)

    def f(v):
        return (v @ weight).tanh() if float(v.detach().sum()) < 1e9 else v

    x = randn(3, 4)
    expected = torch.stack([judged(f, row) for row in x]) if batch_dims else judged(f, x)
    for _ in range(3):
        assert_same(jacobian(f, x, batch_dims=batch_dims), expected)
    (known,) = cache.plans_of(f).values()
    assert known.plan is None
    assert not known.plannable
    assert_same(jacobian(f, x, batch_dims=batch_dims, objective="fma"), expected)


def test_first_calls_pull_the_rows_of_attention_back_together():
    def attend(x):
        return nn.functional.scaled_dot_product_attention(x, x, x)

    def formula(x):
        return torch.softmax(x @ x.mT / 2, -1) @ x

    x = randn(1, 2, 6, 4)
    assert_same(jacobian(attend, x), judged(formula, x))  # of fused attention PyTorch warns, which is an error here


def test_first_calls_of_attention_draw_what_the_function_draws():
    def attend(x):
        y = nn.functional.scaled_dot_product_attention(x, x, x)
        return y * (torch.rand(6, 1, dtype=F64) < 0.5)

    x = randn(1, 2, 6, 4)
    torch.manual_seed(3)
    dropped, after = attend(x)[0, 0, :, 0] == 0, torch.get_rng_state()
    assert dropped.any() and not dropped.all()
    torch.manual_seed(3)
    found = jacobian(attend, x)
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal((found == 0).flatten(4).all(-1)[0, 0, :, 0], dropped)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_first_calls_of_attention_count_a_batch_once():
    normalise = nn.BatchNorm1d(4).to(F64).train()
    judge = nn.BatchNorm1d(4, track_running_stats=False).to(F64)

    def attend(x):
        return normalise(nn.functional.scaled_dot_product_attention(x, x, x)[0, 0])

    def formula(x):
        return judge((torch.softmax(x @ x.mT / 2, -1) @ x)[0, 0])

    x = randn(1, 1, 6, 4)
    assert_same(jacobian(attend, x), judged(formula, x))
    assert normalise.num_batches_tracked == 1


def test_first_calls_leave_bags_of_embeddings_that_are_differentiated_to_a_plan():
    bags, indices, starts = nn.EmbeddingBag(5, 4, mode="mean", dtype=F64), torch.tensor([0, 2, 3]), torch.tensor([0, 1])
    x, weights = randn(4).requires_grad_(), randn(2, 4, 4)

    def function(v):  # `torch.func` asks indices for gradients
        return (bags(indices, starts) * v).sin()

    rows = [torch.autograd.grad(entry, x, create_graph=True)[0] for entry in function(x).reshape(-1)]
    expected = torch.stack(rows).reshape(2, 4, 4)
    inputs = [x, bags.weight]
    for _ in range(2):
        found = jacobian(function, x, create_graph=True)
        assert_same(found.detach(), expected)
        pulled = [torch.autograd.grad((weights * one).sum(), inputs, retain_graph=True) for one in (found, expected)]
        assert_same(*pulled)
