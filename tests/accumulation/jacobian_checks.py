"""What the tests of traced functions share: a Jacobian is compared on recording, on replay and at other points."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from torch_jvpvjp.accumulation import jacobian, plan_jacobian

F64 = torch.float64

# The judge's own vmap has no rule for some ops, and says so.
quiet_judge = pytest.mark.filterwarnings("ignore:There is a performance drop")


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


def moved(x: Any, by: float) -> Any:
    """Return x with its floating tensors moved."""
    return tree_map(lambda leaf: leaf + by if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, x)


def assert_same(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Check that two trees are the same tree of equal tensors."""
    (left, left_spec), (right, right_spec) = tree_flatten(found), tree_flatten(expected)
    assert left_spec == right_spec
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=tolerance, atol=tolerance)


def judged(f: Callable[..., Any], x: Any, argnums: Any = None) -> Any:
    """Return the Jacobian by torch.func.jacrev; x is a tuple of arguments if it is a tuple.

    One output at a time: `jacrev` in one batch is wrong for some functions (`torch.cdist` in PyTorch 2.13).
    """
    args = x if type(x) is tuple else (x,)
    if argnums is None:
        argnums = tuple(range(len(args))) if type(x) is tuple else 0
    try:
        return torch.func.jacrev(f, argnums=argnums, chunk_size=1)(*args)
    except AssertionError:  # it does not take outputs without entries one by one
        return torch.func.jacrev(f, argnums=argnums)(*args)


def parameters_judged(module: torch.nn.Module, *args: Tensor) -> Any:
    """Return the Jacobian in all parameters, as a dict by name."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.jacrev(lambda given: torch.func.functional_call(module, given, args))(parameters)


def check_jacobian(
    f: Callable[..., Any], x: Any, judge: Callable[[Any], Any] | None = None, tolerance: float = 1e-10, **options: Any
) -> None:
    """Check a plan on its first, recording call, on a replay and at two other points, and the one-shot function."""
    judge = judge or (lambda point: judged(f, point))
    plan = plan_jacobian(f, x, **options)
    for by in (0.0, 0.0, 0.25, -0.4):
        assert_same(plan(moved(x, by)), judge(moved(x, by)), tolerance)
    for by in (0.0, 0.25):
        assert_same(jacobian(f, moved(x, by), **options), judge(moved(x, by)), tolerance)


def opaque(v):
    """A function that is one stage, of no structure."""
    return torch.sin(v) * v.flip(-1) + v.cumsum(-1)


def composed(stages):
    """One stage after the other."""

    def function(x):
        for stage in stages:
            x = stage(x)
        return x

    return function
