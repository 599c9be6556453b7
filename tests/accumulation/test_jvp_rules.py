"""PyTorch's rules for JVPs in Python, which take a quarter of a second to load, are loaded where they are needed."""

import subprocess
import sys

import pytest
import torch
from jacobian_checks import randn

from torch_jvpvjp.accumulation._torch import jvp_by_own_rules, jvp_of, jvp_of_op

FRESH = """
import sys
import torch
from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation._torch import has_jvp_rules, jvp_by_own_rules, jvp_of_op

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
"""
LINEAR_ALGEBRA = """
a = torch.randn(5, 5) + 5 * torch.eye(5)
f = lambda x: torch.linalg.solve(a + torch.diag(x), x).cumprod(0)
x = torch.rand(5)
plan = plan_jacobian(f, x)
found = [plan(x), plan(x), torch.func.vmap(plan_jacobian(f, x))(x[None])[0]]
assert not has_jvp_rules(), "PyTorch's rules in Python were loaded"
expected = torch.autograd.functional.jacobian(f, x)
for jacobian in found:
    torch.testing.assert_close(jacobian, expected)
"""
WITHOUT_RULE_IN_CPP = """
y, g = torch.rand(4, 3).softmax(1), torch.rand(4, 3)
f = lambda g, y: (torch.ops.aten._softmax_backward_data(g, y, 1, torch.float64),)
dots = torch.rand(4, 3), torch.rand(4, 3)
try:
    jvp_by_own_rules(f, (g, y), dots)
except NotImplementedError:
    assert not has_jvp_rules()
else:
    raise AssertionError("the op has a rule in C++ by now: take another one for this test")
(value,), (tangent,) = jvp_of_op(f, (g, y), dots)
assert has_jvp_rules()
of_first, of_second = dots[0] - (dots[0] * y).sum(1, keepdim=True), g - (g * y).sum(1, keepdim=True)
torch.testing.assert_close(tangent, y * (of_first - (g * dots[1]).sum(1, keepdim=True)) + dots[1] * of_second)
torch.testing.assert_close(value, y * of_second)
"""


@pytest.mark.parametrize("code", [LINEAR_ALGEBRA, WITHOUT_RULE_IN_CPP], ids=["not needed", "needed"])
def test_rules_are_loaded_where_they_are_needed(code):
    run = subprocess.run([sys.executable, "-c", FRESH + code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def test_a_jvp_by_own_rules_is_that_of_torch_func():
    def f(a, b):
        return torch.linalg.solve(a, b), a.cumsum(0)

    primals, tangents = (randn(3, 3), randn(3, 2)), (randn(3, 3), randn(3, 2))
    found, expected = jvp_by_own_rules(f, primals, tangents), jvp_of(f, primals, tangents)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(jvp_of_op(f, primals, tangents), expected)


def test_an_output_that_does_not_depend_has_no_tangent():
    x = randn(3)
    found = jvp_by_own_rules(lambda x: (x.sin(), torch.ones(2)), (x,), (x,))
    torch.testing.assert_close(found, ((x.sin(), torch.ones(2)), (x.cos() * x, torch.zeros(2))))
