"""Random functions: plans and one-shot calls follow them to other points, layouts and weights, judged by jacrev."""

import pytest
import torch
from jacobian_checks import assert_same, judged, moved, parameters_judged, quiet_judge
from random_functions import Function
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from torch_jvpvjp.accumulation import cache, jacobian, plan_jacobian

pytestmark = pytest.mark.filterwarnings("ignore:(var|std).*degrees of freedom")  # of one entry, as drawn functions have
QUICK = range(12)
WIDE = [pytest.param(seed, marks=pytest.mark.exhaustive) for seed in range(12, 400)]


def _drawn(seed: int):
    f = Function(seed)
    x = tuple(f.inputs) if len(f.inputs) > 1 else f.inputs[0]
    try:
        return f, x, judged(f, x)
    except RuntimeError as error:  # such as one that writes into what autograd must keep
        return pytest.skip(f"jacrev refuses it: {error}")


def _between(tensor: Tensor) -> Tensor:
    """Return the same entries with others between them."""
    return torch.stack([tensor, tensor + 9], -1)[..., 0]


@quiet_judge
@pytest.mark.parametrize("seed", [*QUICK, *WIDE])
def test_a_random_function(seed, monkeypatch):
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", [-1e9, 1e9][seed % 2])
    f, x, expected = _drawn(seed)
    plan = plan_jacobian(f, x, objective=("time", "fma", "memory")[seed % 3])
    for _ in range(3):
        assert_same(plan(x), expected, 1e-8)
    for _ in range(2):
        assert_same(jacobian(f, x), expected, 1e-8)
    assert_same(jacobian(f, x, chunk_size=2), expected, 1e-8)
    assert_same(plan(tree_map(_between, x)), expected, 1e-8)
    other = moved(x, 0.01)
    assert_same(plan(other), judged(f, other), 1e-8)
    with torch.no_grad():
        for parameter in f.parameters():
            parameter.mul_(1.1)
    assert_same(plan(x), judged(f, x), 1e-8)
    for place, weight in enumerate(list(f.weights)):
        f.weights[place] = nn.Parameter(weight.detach() * 0.9)
    assert_same(plan(x), judged(f, x), 1e-8)
    assert_same(jacobian(f, x), judged(f, x), 1e-8)


@quiet_judge
@pytest.mark.parametrize("seed", [*QUICK[:4], *WIDE])
def test_a_random_function_in_its_parameters(seed):
    f, x, _ = _drawn(seed)
    if not list(f.parameters()):
        return
    args = x if isinstance(x, tuple) else (x,)
    expected = parameters_judged(f, *args)
    for _ in range(2):
        assert_same(jacobian(f, x, wrt="parameters", objective="fma"), expected, 1e-8)
