"""Autocast is on where the function runs, as its caller has it, and off around that; nothing is remembered of it."""

import pytest
import torch
from torch import nn

import torch_jvpvjp as tj

torch.manual_seed(0)
NET = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.LayerNorm(7), nn.Linear(7, 3))
TALL = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 30))
X = torch.randn(5)


def in_part(v):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = NET[0](v)
    return y.float() @ torch.ones(7, 2)


def out_of_it(v):
    with torch.autocast("cpu", enabled=False):
        return NET(v)


def looking(v):
    return NET(v) if float(v.detach().sum()) < 1e9 else -NET(v)


FUNCTIONS = {"net": NET, "tall": TALL, "in part": in_part, "out of it": out_of_it, "black box": looking}
WAYS = {
    "first calls": lambda f, x, **options: tj.jacobian(f, x, **options),
    "later calls": lambda f, x, **options: [tj.jacobian(f, x, **options) for _ in range(30)][-1],
    "plan": lambda f, x, **options: tj.plan_jacobian(f, x, **options)(x),
    "replayed": lambda f, x, **options: [plan(x) for plan in [tj.plan_jacobian(f, x, **options)] for _ in range(3)][-1],
    "chunks": lambda f, x, **options: tj.jacobian(f, x, chunk_size=2, **options),
    "create_graph": lambda f, x, **options: tj.jacobian(f, x, create_graph=True, **options).detach(),
}
EPS = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def judged(f, x, low):
    """The Jacobian without autocast but for its dtype, and how far off rounding may be: pullbacks round within it."""
    value = f(x)
    with torch.autocast("cpu", enabled=False):
        expected = torch.autograd.functional.jacobian(f, x)
    rounded = low if f in (NET, TALL, looking) else torch.bfloat16 if f is in_part else torch.float32
    return expected.to(value.dtype), 8 * EPS[rounded] * float(expected.abs().max())


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_jacobians_within_autocast_are_those_of_what_runs_within_it(f, way, low):
    with torch.autocast("cpu", dtype=low):
        expected, atol = judged(f, X, low)
        torch.testing.assert_close(way(f, X), expected, rtol=0, atol=atol)
        if f is not looking:
            batch = torch.stack([X, X])
            torch.testing.assert_close(way(f, batch, batch_dims=1)[1], expected, rtol=0, atol=atol)
            trees = (
                way(lambda t: f(t["x"]), {"x": batch}, batch_dims=1) if way is WAYS["plan"] else {"x": expected[None]}
            )
            torch.testing.assert_close(trees["x"][-1], expected, rtol=0, atol=atol)
        assert torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_weights_are_cast_anew_behind_a_call(way):
    net, batch = nn.Linear(5, 3), torch.stack([X, X])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        way(net, X)
        way(net, batch, batch_dims=1)
        y = net(X)
        assert type(y) is torch.Tensor
        y.float().sum().backward()
        assert net.weight.grad is not None
        with torch.no_grad():
            net.weight.mul_(2)
        expected = net.weight.detach().bfloat16()
        assert torch.equal(way(net, X), expected)


def test_a_plan_follows_its_caller_in_and_out():
    outside = torch.autograd.functional.jacobian(NET, X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, atol = judged(NET, X, torch.bfloat16)
        plan = tj.plan_jacobian(NET, X)
        torch.testing.assert_close(plan(X), inside, rtol=0, atol=atol)
    for _ in range(3):
        torch.testing.assert_close(plan(X), outside)
        torch.testing.assert_close([tj.jacobian(NET, X) for _ in range(30)][-1], outside)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for found in (plan(X), plan(X), tj.jacobian(NET, X)):
                torch.testing.assert_close(found, inside, rtol=0, atol=atol)


def test_a_jacobian_inside_of_a_function_is_taken_within_its_autocast():
    def f(v):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return tj.jacobian(NET[0], v).float().sum() * v

    expected = NET[0].weight.detach().bfloat16().float().sum() * torch.eye(5)
    for found in (tj.jacobian(f, X), tj.plan_jacobian(f, X)(X)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_norm_whose_weight_is_wider_than_its_input(way):
    weight, bias, x = torch.rand(6) + 0.5, torch.randn(6), torch.randn(6).bfloat16()

    def norm(v):
        return nn.functional.layer_norm(v, (6,), weight, bias)

    expected = torch.autograd.functional.jacobian(norm, x)
    torch.testing.assert_close(way(norm, x), expected, rtol=0, atol=4 * EPS[torch.bfloat16])
    rows = way(norm, torch.stack([x, x]), batch_dims=1)
    torch.testing.assert_close(rows[1], expected, rtol=0, atol=4 * EPS[torch.bfloat16])


def test_tensors_of_inference_are_points_and_weights():
    with torch.inference_mode():
        x, weight = torch.randn(5), torch.randn(5, 4)
    expected = torch.autograd.functional.jacobian(NET, x.clone())
    for way in WAYS.values():
        torch.testing.assert_close(way(NET, x), expected)
        with torch.inference_mode():
            torch.testing.assert_close(way(NET, x), expected)
    for name, way in WAYS.items():
        if name != "create_graph":  # which PyTorch refuses
            torch.testing.assert_close(way(lambda v: v @ weight, X), weight.t())


@pytest.mark.parametrize("seed", range(6))
def test_rounding_to_what_autocast_casts_to_keeps_no_function_from_being_recorded(seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plan = tj.plan_jacobian(net, torch.randn(8))
    assert len(plan.factors) > 1  # a function that is called as it stands is one
