"""Numbers that a function reads by `.item()`: followed where a tensor may stand for them, else refused, never wrong."""

import copy
import math

import numpy as np
import pytest
import torch
from jacobian_checks import F64, assert_same, judged, quiet_judge, randn

from torch_jvpvjp.accumulation import plan_jacobian

N = 6


def _recorded(plan):
    return not plan.runtime.refusals()


REFUSED = {
    "a float": lambda v: v * float(v.detach().max()),
    "mathematics": lambda v: v * math.sqrt(v.norm().item()),
    "a remainder": lambda v: v * (v.norm().item() % 1),
    "a text": lambda v: v * float(f"{v.norm().item():.3f}"),
    "a set": lambda v: v if v.norm().item() in {0.5, 2} else v.sin(),
    "another function": lambda v: torch.lerp(v, v.sin(), v.norm().item()),
    "caught": lambda v: v * _caught(v),
    "half precision": lambda v: (v.half() * v.norm().item()).double(),
    "NumPy": lambda v: v * torch.from_numpy(v.detach().numpy()),
    "random numbers": lambda v: v if torch.rand(()) < 0.5 else 1 * v,
}


def _caught(v):
    try:
        return math.exp(-v.norm().item())
    except Exception:  # noqa: BLE001 (as users write it)
        return 2.0


@quiet_judge
@pytest.mark.parametrize("f", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_followed_is_called_as_it_stands(f):
    x = randn(N)
    plan = plan_jacobian(f, x)
    assert not _recorded(plan)
    for point in (x, 0.1 * x, 3 * x):
        if f is not REFUSED["NumPy"]:
            assert_same(plan(point), judged(f, point), tolerance=1e-2 if f is REFUSED["half precision"] else 1e-10)


def test_a_power_or_quotient_that_python_refuses():
    def f(v):
        try:
            return v / (1.0 / v[0].item()) * v[1].item() ** 0.5
        except (ZeroDivisionError, TypeError):
            return v * v

    x = torch.tensor([1.0, 2, 3], dtype=F64)
    plan = plan_jacobian(f, x)
    for point in (x, torch.tensor([0.0, 2, 3], dtype=F64), x):
        assert_same(plan(point), judged(f, point))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_results_have_the_dtype_that_a_number_of_python_leaves(dtype):
    def f(v):
        return torch.stack([v.sum() * v.max().item(), v.max().item() - v[0], v[1] / v.max().item(), v[0]])

    x = torch.rand(3, dtype=dtype)
    plan = plan_jacobian(f, x)
    assert _recorded(plan)
    assert plan(x).dtype == dtype
    assert_same(plan(2 * x), torch.func.jacrev(f)(2 * x), tolerance=1e-5 if dtype == torch.float32 else 1e-10)


FOLLOWED = {
    "a power of a number": lambda v, r: v * 2**r,
    "plus": lambda v, r: v * +r,
    "at most": lambda v, r: v.sin() if r <= 1 else v * v,
    "at least": lambda v, r: v.sin() if r >= 1 else v * v,
    "another": lambda v, r: v.sin() if r != 1 else v * v,
    "truth": lambda v, r: v.sin() if r - 1 else v * v,
    "whole": lambda v, r: v * (int(r) + math.trunc(-3 * r)),
    "chained": lambda v, r: v.sin() if 0.5 < r <= 1.5 else v * v,
    "the larger": lambda v, r: v * max(r, 1.0),
    "the middle": lambda v, r: v * sorted([r, 1.5, v[0].item()])[1],
}
NOT_FOLLOWED = {
    "floor": lambda v, r: v * (r // 0.4),
    "floor of another": lambda v, r: v * (7 // r),
    "remainder of another": lambda v, r: v * (7 % r),
    "both": lambda v, r: v * divmod(r, 0.4)[1],
    "both of another": lambda v, r: v * divmod(5, r)[1],
    "rounded to a fraction": lambda v, r: v * round(r, 2),
    "as text": lambda v, r: v * float(str(r)) * float(repr(r)),
    "a complex number": lambda v, r: (v * complex(r)).real,
    "times a complex number": lambda v, r: (v * (r * 2j)).imag,
    "a copy": lambda v, r: v * copy.deepcopy(r),
    "a method": lambda v, r: v if r.is_integer() else v * v,
    "times a number of NumPy's": lambda v, r: v * (np.int64(2) * r),
    "a tensor filled with it": lambda v, r: v * torch.full((N,), r, dtype=F64),
}


@quiet_judge
@pytest.mark.parametrize("recorded", [True, False])
def test_what_python_does_with_a_number(recorded):
    x = randn(N)
    x = x / x.norm()
    for name, function in (FOLLOWED if recorded else NOT_FOLLOWED).items():
        f = lambda v, function=function: function(v, v.norm().item())  # noqa: E731
        plan = plan_jacobian(f, 0.7 * x)
        assert _recorded(plan) is recorded, name
        for scale in (0.7, 1.0, 0.3, 2.5, 0.7, -1.2):
            assert_same(plan(scale * x), judged(f, scale * x))
