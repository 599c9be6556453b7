"""Attention through its kernels in Triton's interpreter: every rule, many tangents and cotangents, every point.

`make test-all` takes all properties of tests/ops/test_every_op.py there, which are minutes; tests/kernels judges the
kernels themselves, with every mask and option.
"""

import os
from dataclasses import replace

import pytest
import torch
from attention_judge import RULES, assert_blind_rows_have_no_derivative, qkv
from torch.utils._python_dispatch import TorchDispatchMode

from torch_jvpvjp.testing.budget import assert_equal
from torch_jvpvjp.testing.case import Case
from torch_jvpvjp.testing.cases import CASES
from torch_jvpvjp.testing.compositions import EAGER
from torch_jvpvjp.testing.dispatched import checks_of, record_calls


class Names(TorchDispatchMode):
    """The names of the ATen ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


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


def test_second_order_without_the_shared_memory_for_it_goes_by_stripes(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_jvpvjp.triton_kernels import attention
    from torch_jvpvjp.triton_kernels._launch import count_launches

    def launches() -> int:
        with count_launches() as count:
            found = EAGER["jvp∘grad"](case.function(case.op), replace(case.point, thorough=False))
        assert_equal(found, EAGER["jvp∘grad"](case.function(case.reference), replace(case.point, thorough=False)))
        return count.by_name["_columns_kernel"]

    assert launches() > 0
    monkeypatch.setattr(attention, "second_order_fits", lambda head, like: False)
    assert launches() == 0


def test_nothing_is_copied_after_the_kernels() -> None:
    """The cotangents are what the kernels wrote: no sum along an axis of one, no copy."""
    from torch_jvpvjp.ops.attention.kernels import kernels
    from torch_jvpvjp.ops.attention.rules import op
    from torch_jvpvjp.triton_kernels._launch import record_launches

    q = torch.randn(1, 2, 16, 16)
    inputs = op.signature.inputs_type(q, q, q, *[None] * 10, -1, -1, 0, 0.0, 0.0, 1, 1)
    with record_launches(), Names() as names:
        outputs = kernels.primal(inputs)
        cotangents = kernels.vjp((q, None), inputs, outputs, needs=(True, True, True, False))
    assert [None if c is None else c.shape for c in cotangents] == [q.shape] * 3 + [None]
    assert set(names.seen) <= {"new_empty", "empty", "unsqueeze", "unbind", "reshape", "view", "squeeze", "slice"}


def test_no_cotangent_of_minus_infinity_is_read() -> None:
    assert_blind_rows_have_no_derivative([t.float() for t in qkv(b=1, h=1, lk=2)])


def test_seeds_and_masks_that_alone_are_batched() -> None:
    """A seed of no axes, seeds and masks under vmap while query, key and value have no axis in front."""
    from torch_jvpvjp.ops.attention.rules import op

    q = torch.randn(3, 1, 2, 17, 16).unbind()
    seeds, masks = torch.tensor([3, 9]), torch.randn(2, 1, 1, 17, 17) > -1

    def arguments(mask: torch.Tensor | None, seed: torch.Tensor | None) -> tuple:
        options = (None, -1, -1, 0, 0.0, 0.0 if seed is None else 0.3, 0, 0)
        return (*q, None, mask, None, None, seed, None, None, None, None, *options)

    torch.testing.assert_close(op(*arguments(None, seeds[0])), op.reference(*arguments(None, seeds[0])))
    for ours, each in (
        (torch.func.vmap(lambda s: op(*arguments(None, s)))(seeds), [arguments(None, s) for s in seeds]),
        (torch.func.vmap(lambda m: op(*arguments(m, None)))(masks), [arguments(m, None) for m in masks]),
    ):
        expected = [torch.stack(parts) for parts in zip(*(op.reference(*a) for a in each), strict=True)]
        torch.testing.assert_close(ours, tuple(expected))
