"""Plans that are called, and made, within inference mode, in which `torch.func` of PyTorch 2.11 gives zeros."""

import pytest
import torch
from jacobian_checks import F64, assert_same, randn

from torch_jvpvjp.accumulation import jacobian, plan_jacobian

FUNCTIONS = {
    "no closed form": lambda v: torch.linalg.matrix_exp(v.reshape(3, 3)),
    "a solve": lambda v: torch.linalg.solve(torch.diag(v[:3]) + 5, v[3:6]),
    "batch norm": lambda v: torch.nn.functional.batch_norm(v.reshape(3, 3), None, None, training=True),
    "a black box": lambda v: v.sin() if float(v.detach().sum()) < 1e9 else -v,
}
OPTIONS = {"chosen": {}, "forward": {"strategy": "forward"}, "reverse": {"strategy": "reverse"}}


@pytest.mark.parametrize("options", [*OPTIONS.values(), {"create_graph": True}], ids=[*OPTIONS, "create_graph"])
@pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)
def test_jacobians_within_inference_mode_are_those_outside(f, options):
    x = randn(9)
    expected = torch.autograd.functional.jacobian(f, x)
    made_before = plan_jacobian(f, x, **options)
    with torch.inference_mode():
        inside = torch.empty(9, dtype=F64).copy_(x)
        for point in (inside, x):
            for plan in (made_before, plan_jacobian(f, point, **options)):
                assert_same([plan(point), plan(x), plan(inside)], [expected] * 3)
            assert_same(jacobian(f, point), expected)
            assert_same(jacobian(f, point, create_graph=True), expected)
    assert_same(made_before(x).detach(), expected)
