"""Fixtures of the tests of the accumulator."""

import functools

import pytest
import torch

from torch_jvpvjp.accumulation import cache, jacobian, plan_jacobian


@pytest.fixture(params=["plan", "jacobian"])
def jacobian_of(request, monkeypatch):
    """The Jacobian by a plan, and by the one-shot function once that keeps a plan."""
    monkeypatch.setattr(cache, "_PLANNING_SECONDS", -1e9)
    if request.param == "jacobian":
        return lambda f: functools.partial(jacobian, f)
    return lambda f: plan_jacobian(f, torch.ones(3, dtype=torch.float64))
