"""Attention through its kernels in Triton's interpreter: every rule, many tangents and cotangents, every point.

`make test-all` takes all properties of tests/ops/test_every_op.py there, which are minutes; tests/kernels judges the
kernels themselves, with every mask and option.
"""

import os
from dataclasses import replace

import pytest
from attention_judge import RULES

from torch_jvpvjp.testing.budget import assert_equal
from torch_jvpvjp.testing.case import Case
from torch_jvpvjp.testing.cases import CASES
from torch_jvpvjp.testing.compositions import EAGER
from torch_jvpvjp.testing.dispatched import checks_of, record_calls

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="test_every_op.py takes every property of every sample here"
)


@pytest.fixture
def case(device: str) -> Case:
    row = CASES["scaled_dot_product_attention"]
    (sample,) = (sample for sample in row.samples if sample.name in row.interpreted)
    return Case(row.function, row.reference, sample, device)


@pytest.mark.parametrize("name", [*RULES, "backward, tangent stopped", "vmap∘jvp", "vmap∘vjp", "vmap∘hvp"])
def test_compositions(name: str, case: Case) -> None:
    point = replace(case.point, thorough=False)
    ours, theirs = (EAGER[name](case.function(f), point) for f in (case.op, case.reference))
    assert_equal(ours, theirs)


def test_every_point_up_to_the_second_order_is_its_formula(case: Case) -> None:
    calls = record_calls(case, ("jvp∘grad", "grad∘jvp", "grad∘grad"))
    assert {"attention", "attention_jvp", "attention_vjp"} <= {call.op.qualname.partition("::")[2] for call in calls}
    for call in calls:
        for _, check in checks_of(call):
            check()
