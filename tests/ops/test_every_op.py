"""Every public op of the case table under every property of check_op.

Without an interpreter or a GPU this judges the formulas, on a GPU and under ``TRITON_INTERPRET=1`` the kernels. The
interpreter is slow: there, of the samples only those run that reach different kernels.
"""

import os

import pytest

from torch_jvpvjp import ops
from torch_jvpvjp.testing import Sample, check_op
from torch_jvpvjp.testing.cases import CASES

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SAMPLES = [
    pytest.param(name, sample, id=f"{name}-{sample.name}")
    for name, case in CASES.items()
    for sample in case.samples
    if not INTERPRETED or sample.name in case.interpreted
]


def test_every_public_op_has_a_row() -> None:
    assert sorted(CASES) == sorted(ops.__all__)


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_every_property(name: str, sample: Sample, device: str) -> None:
    case = CASES[name]
    check_op(case.function, [sample], reference=case.reference, device=device, backends=())


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", list(CASES))
def test_every_composition_compiled(name: str, device: str) -> None:
    case = CASES[name]
    report = check_op(case.function, case.samples[:2], reference=case.reference, device=device, dtypes=())
    compiled = {row.name for row in report.rows if row.group.startswith("compiled") and row.skipped is None}
    # What PyTorch can compile of the plain formula must be compiled of ours too, in every release.
    assert {
        "primal",
        "func.jvp",
        "fwAD",
        "vjp",
        "grad",
        "jacrev",
        "backward",
        "one compilation for all sizes",
    } <= compiled
    assert {"jvp∘jvp", "jvp∘grad", "grad∘jvp", "grad∘grad", "vmap", "vmap∘jvp", "jvp∘vmap", "vmap∘grad"} <= compiled


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", list(CASES))
def test_a_few_compositions_under_inductor(name: str, device: str) -> None:
    case = CASES[name]
    sample = case.samples[:1]
    report = check_op(case.function, sample, reference=case.reference, device=device, dtypes=(), backends=("inductor",))
    compiled = {row.name for row in report.rows if row.group == "compiled (inductor)" and row.skipped is None}
    assert {"primal", "func.jvp", "grad", "backward"} <= compiled
