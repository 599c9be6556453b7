"""Every public op of the case table under every property of check_op.

Without an interpreter or a GPU this judges the formulas, on a GPU and under ``TRITON_INTERPRET=1`` the kernels. The
interpreter is slow: there, of the samples only those run that reach different kernels.
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch

from torch_jvpvjp import ops
from torch_jvpvjp.testing import Sample, check_op
from torch_jvpvjp.testing.cases import CASES
from torch_jvpvjp.testing.compiled import INDUCTOR
from torch_jvpvjp.testing.compositions import EAGER

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# In the interpreter CI takes an op of each kind of kernels. These launch the kernels of swiglu, gelu, softmax, mse_loss
# and l2_norm, which tests/kernels and test_op_db.py judge there for every op; of attention, too slow for all
# properties, test_attention_interpreted.py takes a selection.
EXHAUSTIVE_IF_INTERPRETED = (
    *("geglu", "glu", "silu", "tanh", "softplus", "log_softmax", "huber_loss", "kl_div", "pixel_norm"),
    "scaled_dot_product_attention",
)


_LONG = ("attention_jvp", "varlen_attention", "qk_rms_norm", "modulated_rms_norm")  # beside others of their families


def _marks(name: str, number: int) -> list[pytest.MarkDecorator]:
    """The first sample is for every day. The second differs from it in sizes only, which is for what is compiled."""
    if name in EXHAUSTIVE_IF_INTERPRETED if INTERPRETED else number == 1:
        return [pytest.mark.exhaustive]
    return [pytest.mark.slow] if number or name in _LONG else []


SAMPLES = [
    pytest.param(name, sample, id=f"{name}-{sample.name}", marks=_marks(name, number))
    for name, case in CASES.items()
    for number, sample in enumerate(case.samples)
    if not INTERPRETED or sample.name in case.interpreted
]
# What PyTorch can compile of the plain formula must be compiled of ours too, in every release.
COMPILED = (
    *("primal", "func.jvp", "fwAD", "vjp", "grad", "jacrev", "backward", "one compilation for all sizes"),
    *("jvp∘jvp", "jvp∘grad", "grad∘jvp", "grad∘grad", "vmap", "vmap∘jvp", "jvp∘vmap", "vmap∘grad"),
    "opcheck with symbolic sizes",
)
# Compiling takes long: CI does it for ops of different kinds, `make test-all` for every one.
COMPILED_IN_CI = ("rms_norm", "softmax", "gelu", "rope", "linear", "cross_entropy")
# What the other compositions add is not the op's. (tests/registration/test_tower.py has an op without rules.)
COMPILED_FULLY = ("rms_norm", "linear")
COMPILED_FULLY_IN_CI = ("rms_norm",)
# What inductor adds is not the op's: one of one result, of two, of a scalar, and one that runs matrix products. A value
# is part of each tangent, a gradient of each tangent of it.
UNDER_INDUCTOR_IN_CI = ("rms_norm", "rope", "cross_entropy", "linear")
CONTAINED = ("primal", "grad")


def _named(in_ci: Sequence[str], names: Iterable[str] = CASES) -> list[Any]:
    return [pytest.param(name, marks=[] if name in in_ci else [pytest.mark.exhaustive]) for name in names]


def test_every_public_op_has_a_row() -> None:
    assert sorted(CASES) == sorted(ops.__all__)


@pytest.mark.parametrize(("name", "sample"), SAMPLES)
def test_every_property(name: str, sample: Sample, device: str) -> None:
    case = CASES[name]
    # PyTorch's gelu of float32 errs by 1e-6 where oneDNN makes it, as on processors with AVX-512: not ours to judge
    onednn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(onednn and sample.name != "gelu")
    try:
        check_op(case.function, [sample], reference=case.reference, device=device, backends=())
    finally:
        torch._C._set_mkldnn_enabled(onednn)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", _named(COMPILED_IN_CI))
def test_compositions_compiled(name: str, device: str) -> None:
    gaps = {"jacrev"} if torch.__version__.startswith("2.11.") else set()  # which does not compile it of every formula
    assert compiled(name, device, "aot_eager", COMPILED) | gaps == set(COMPILED)


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", _named(COMPILED_FULLY_IN_CI, COMPILED_FULLY))
def test_other_compositions_compiled(name: str, device: str) -> None:
    assert compiled(name, device, "aot_eager", [other for other in EAGER if other not in COMPILED])


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize("name", _named(UNDER_INDUCTOR_IN_CI))
def test_a_few_compositions_under_inductor(name: str, device: str) -> None:
    chosen = set(INDUCTOR) - set(CONTAINED)
    assert compiled(name, device, "inductor", sorted(chosen)) == chosen


@pytest.mark.exhaustive
@pytest.mark.compiled
@pytest.mark.parametrize("name", CASES)
def test_what_these_contain_under_inductor(name: str, device: str) -> None:
    assert compiled(name, device, "inductor", CONTAINED) == set(CONTAINED)


def compiled(name: str, device: str, backend: str, compositions: Sequence[str]) -> set[str]:
    """Check them, and return those that this release of PyTorch compiles."""
    case = CASES[name]
    report = check_op(
        case.function,
        case.samples[:2],
        reference=case.reference,
        device=device,
        backends=(backend,),
        compositions=compositions,
        eager=False,
    )
    return {row.name for row in report.rows if row.skipped is None}
