"""Functions that draw random numbers: a Jacobian belongs to one draw, and each call draws anew."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, randn
from torch import nn

from torch_jvpvjp.accumulation import jacobian, plan_jacobian
from torch_jvpvjp.accumulation.cache import Remembered


def _noisy(v):
    return v * torch.rand_like(v) + torch.randn(3, dtype=F64).sum() * v.sin()


RANDOM = {
    "dropout": lambda: nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 3)).to(F64),
    "noise": lambda: _noisy,
    "dropout by hand": lambda: lambda v: v * torch.bernoulli(torch.full_like(v, 0.5)),
}


@pytest.mark.parametrize("strategy", ["forward", "reverse", "dynamic_programming"])
@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_a_jacobian_is_that_of_one_draw(make, strategy):
    f, x = make(), randn(3)
    plan = plan_jacobian(f, x, strategy=strategy)
    found = []
    for seed in (1, 1, 2, 1):
        torch.manual_seed(seed)
        found.append(plan(x))
        torch.manual_seed(seed)
        assert_same(found[-1], judged(f, x))
    assert torch.equal(found[1], found[3])  # both replayed; the first call, which records, may round otherwise
    assert_same(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_the_one_shot_function_draws_anew_in_each_call(make):
    f, x = make(), randn(3)
    found = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        found.append(jacobian(f, x))
        torch.manual_seed(seed)
        assert_same(found[-1], judged(f, x))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("make", RANDOM.values(), ids=RANDOM)
def test_a_call_that_makes_a_plan_draws_what_one_without_a_plan_draws(make, monkeypatch):
    monkeypatch.setattr(Remembered, "planning_pays", lambda *_: True)
    f, x = make(), randn(3)
    torch.manual_seed(1)
    found = jacobian(f, x)
    torch.manual_seed(1)
    assert_same(found, judged(f, x))


def test_chunks_share_one_draw():
    f, x = RANDOM["dropout"](), randn(3)
    for chunk_size in (1, 2):
        plan = plan_jacobian(f, x, chunk_size=chunk_size)
        for _ in range(2):
            torch.manual_seed(3)
            found = plan(x)
            torch.manual_seed(3)
            assert_same(found, judged(f, x))


def test_samples_of_a_batch_draw_as_they_are_told():
    x = torch.ones(20, 3, dtype=F64)
    dropout = nn.Dropout(0.5)
    same = jacobian(dropout, x, batch_dims=1, randomness="same")
    different = jacobian(dropout, x, batch_dims=1, randomness="different")
    assert (same == same[0]).all() and not (different == different[0]).all()
    for found in (same, different):
        assert set(found.unique().tolist()) <= {0.0, 2.0}
        assert (found == torch.diag_embed(found.diagonal(dim1=1, dim2=2))).all()
    with pytest.raises(ValueError, match="must draw no random numbers"):
        jacobian(dropout, x, batch_dims=1)
    for wrong in ("any", [], None):
        with pytest.raises(ValueError, match="randomness must be 'error', 'same' or 'different', got"):
            jacobian(dropout, x, batch_dims=1, randomness=wrong)


@pytest.mark.parametrize("f", [nn.Dropout(0.5), RANDOM["dropout by hand"]()], ids=["dropout", "dropout by hand"])
def test_what_is_drawn_for_a_batch_is_refused_where_no_value_shows_it(f):
    with pytest.raises(ValueError, match="must draw no random numbers"):
        jacobian(f, torch.zeros(16, 3, dtype=F64), batch_dims=1)  # 0 stays 0 if it is dropped
