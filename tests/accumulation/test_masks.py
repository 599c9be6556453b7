"""Sizes that depend on data: what a mask selects is recorded as it is at x, with the mask as a condition."""

import pytest
import torch
from jacobian_checks import F64, assert_same, judged, quiet_judge, randn

from torch_jvpvjp.accumulation import jacobian, plan_jacobian
from torch_jvpvjp.accumulation.conditions import Conditions

OUTSIDE = torch.tensor([True, False, True, True])
ROW = torch.linspace(1, 2, 3, dtype=F64)


def _put(x, index, values):
    y = x.clone()
    y[index] = values
    return y


FUNCTIONS = {
    "entries": lambda x: torch.cat([x[x > 0].cumsum(0), x[x <= 0]]),
    "rows and columns": lambda x: x[x[:, 0] > 0][:, x[0] > 0].sum() * x,
    "columns": lambda x: x[:, x[0] > 0].sum(1),
    "where": lambda x: x.flatten()[torch.where(x.flatten() > 0)[0]].sum() * x,
    "argwhere": lambda x: x[torch.argwhere(x > 0)[:, 0]].sum(0),
    "nonzero of fractions": lambda x: x[torch.relu(x[:, 0]).nonzero()[:, 0]].sum(0),
    "masked_select": lambda x: torch.masked_select(x, x[:, :1] > 0).sum() * x,
    "masked_select of one": lambda x: x * torch.masked_select(x[0, 0], x[0, 1] > 0).sum(),
    "masked_scatter": lambda x: x.masked_scatter(x > 0, (x * x)[x > 0]),
    "written": lambda x: _put(x, x > 0, (x * x)[x > 0]),
    "written columns": lambda x: _put(x, (slice(None), x[0] > 0), (x * x)[:, x[0] > 0]),
    "accumulated": lambda x: x.index_put((x[:, 0] > 0,), x[x[:, 0] > 0], accumulate=True),
    "none": lambda x: x[x > 100].sum() + x,
    "all or nothing": lambda x: x[x.sum() > 0].sum(0),
    "as many as": lambda x: x.flatten().topk(int((x > 0).sum())).values.sum() * x,
}


@quiet_judge
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_what_a_mask_selects(f):
    points = [randn(4, 3) for _ in range(4)]
    plan = plan_jacobian(f, points[0])
    assert not plan.runtime.refusals()
    assert plan.runtime.conditions
    for x in (*points, *(1.1 * x for x in points)):
        for _ in range(3):
            assert_same(plan(x), judged(f, x))
        assert_same(jacobian(f, x, objective="fma"), judged(f, x))


def test_where_a_recording_took_none(monkeypatch):
    """On the other way as many values are written as there were: none."""

    def f(v):
        y = v.clone()
        y[v > 0] = (v * v)[v > 0]
        return y if (y > 0).sum() > 1 else y * v[v > 0].sum()

    for one_by_one in (False, True):
        if one_by_one:  # as on a GPU
            monkeypatch.setattr(Conditions, "one_by_one", property(lambda _: True, lambda *_: None), raising=False)
        x = -torch.ones(4, dtype=F64)
        plan = plan_jacobian(f, x)
        for point in (x, x, x, -x, -x, -x, randn(4), x):
            assert_same(plan(point), judged(f, point))


WITHOUT = {
    "a mask from outside": lambda x: x[OUTSIDE] ** 2,
    "written by one": lambda x: _put(x, OUTSIDE, 2 * x[:3]),
    "where one is true": lambda x: x[OUTSIDE] * x[OUTSIDE.nonzero()[:, 0]],
    "one row for all that are selected": lambda x: _put(x, x[:, 0] > 0, ROW * x[0]),
    "one number for all that are selected": lambda x: _put(x, x > 0, 2.0),
}


@quiet_judge
@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("f", WITHOUT.values(), ids=WITHOUT)
def test_what_needs_no_condition(f, batch_dims):
    x = randn(4, 3)
    if batch_dims:
        own, x = f, randn(2, 4, 3)

        def f(v):
            return torch.stack([own(one) for one in v])

    plan = plan_jacobian(f, x, batch_dims=batch_dims)
    assert not plan.runtime.refusals()
    assert not plan.runtime.conditions
    for scale in (1, -1):
        expected = torch.stack([judged(own, one) for one in scale * x]) if batch_dims else judged(f, scale * x)
        assert_same(plan(scale * x), expected)


def test_a_mask_from_outside_is_read_anew_once_it_is_another():
    mask = OUTSIDE.clone()

    def f(v):
        return v[mask].sin()

    x = randn(4)
    plan = plan_jacobian(f, x)
    for place in (0, 1, 3):
        assert_same(plan(x), judged(f, x))
        mask[place] = not mask[place]
    assert_same(plan(x), judged(f, x))


def test_a_large_mask_is_not_looked_at_in_every_call():
    def f(v):
        return (v[:, None] * torch.ones(50_000, dtype=F64))[v[:, None] > torch.zeros(50_000, dtype=F64)].sum()

    x = randn(3)
    plan = plan_jacobian(f, x)
    assert "too large a mask" in next(iter(plan.runtime.refusals().values()))
    assert_same(plan(x), judged(f, x))
