"""check_op notices each kind of defect, and reports all of them at once."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_jvpvjp import DifferentiableOp, differentiable_op
from torch_jvpvjp.testing import CheckFailure, Sample, check_op

_names = itertools.count()
SAMPLES = [Sample((torch.randn(2, 3), torch.randn(2, 3)), name="pair")]


def product() -> DifferentiableOp:
    """x sin(w), with no rule."""

    @differentiable_op(f"tests::product_{next(_names)}")
    def op(x: Tensor, w: Tensor) -> Tensor:
        return x * w.sin()

    return op


def right_jvp(op: DifferentiableOp) -> None:
    @op.jvp
    def _(primals: Any, tangents: Any) -> Any:
        x, w = primals
        y_dot = torch.zeros_like(x)
        y_dot = y_dot if tangents.x is None else y_dot + tangents.x * w.sin()
        return x * w.sin(), y_dot if tangents.w is None else y_dot + x * w.cos() * tangents.w


def failing(op: Any, **options: Any) -> set[str]:
    """Names of the properties that fail."""
    report = check_op(
        op, options.pop("samples", SAMPLES), backends=options.pop("backends", ()), raise_on_failure=False, **options
    )
    return {row.name for row in report.failures}


def test_a_right_op_passes() -> None:
    op = product()
    right_jvp(op)
    report = check_op(op, SAMPLES, backends=())
    assert not report.failures
    names = {row.name for row in report.rows}
    assert {"hessian", "jvp∘jvp", "vmap∘jvp", "gradcheck", "gradgradcheck", "duality", "layout: strided"} <= names
    assert any(name.endswith("opcheck") for name in names)


def test_wrong_jvp() -> None:
    op = product()
    op.jvp(
        lambda primals, tangents: (
            primals.x * primals.w.sin(),
            (0 if tangents.x is None else tangents.x) * primals.w.sin() + 0 * primals.x,
        )
    )
    assert {"central difference", "duality", "func.jvp", "jacfwd", "hessian", "gradcheck"} <= failing(op)


def test_wrong_vjp() -> None:
    op = product()
    op.vjp(lambda cotangents, inputs: (cotangents.y * inputs.w.sin(), cotangents.y * inputs.x))
    assert {"duality", "grad", "backward", "jacrev", "gradcheck"} <= failing(op)


def test_wrong_only_at_second_order() -> None:
    op = product()
    right_jvp(op)
    op.jvp.vjp(lambda cotangents, inputs: (inputs.x * 0, inputs.w * 0, inputs.x * 0, inputs.w * 0))
    names = failing(op)
    assert "grad∘jvp" in names
    assert "func.jvp" not in names


def test_a_rule_that_cannot_take_an_absent_tangent() -> None:
    op = product()
    op.jvp(
        lambda primals, tangents: (
            primals.x * primals.w.sin(),
            tangents.x * primals.w.sin() + primals.x * primals.w.cos() * tangents.w,
        )
    )
    assert "func.jvp, one tangent" in failing(op)


def test_wrong_kernel() -> None:
    op = product()
    op.kernel("cpu")(lambda x, w: x * w)
    names = failing(op)
    assert "primal" in names
    assert any("kernel = formula" in name for name in names)


def test_a_kernel_that_reads_fresh_memory() -> None:
    op = product()

    @op.kernel("cpu")
    def _(x: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            out = torch.empty_like(x)
            return torch.where(torch.isnan(out), out, x * w.sin())

    assert failing(op) >= {"NaN-poisoned memory"}


def test_a_kernel_that_ignores_strides() -> None:
    op = product()
    op.kernel("cpu")(lambda x, w: torch.as_strided(x.detach(), x.shape, (3, 1)) * w.detach().sin())
    assert {"layout: strided", "layout: offset"} <= failing(op)


def test_a_kernel_that_writes_into_its_input() -> None:
    op = product()

    @op.kernel("cpu")
    def _(x: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * w.sin()
            x.add_(1)
        return y

    assert "inputs unmodified" in failing(op)


def test_a_kernel_that_is_not_deterministic() -> None:
    op = product()
    op.kernel("cpu")(lambda x, w: x.detach() * w.detach().sin() + 1e-15 * torch.rand(()))
    assert "determinism" in failing(op)


def test_a_kernel_that_is_inaccurate_in_low_precision() -> None:
    op = product()

    @op.kernel("cpu")
    def _(x: Tensor, w: Tensor) -> Tensor:
        with torch.no_grad():
            y = x * w.sin()
            return y if y.dtype == torch.float64 else y * (1 + 16 * torch.finfo(y.dtype).eps)

    names = failing(op)
    assert {"torch.float32", "torch.bfloat16", "torch.float16"} <= names
    assert "torch.float64" not in names


def test_wrong_dtype() -> None:
    op = product()
    op.kernel("cpu")(lambda x, w: (x.detach() * w.detach().sin()).float())
    assert "primal" in failing(op)


def test_wrong_vmap() -> None:
    op = product()
    op.vmap(lambda info, in_dims, x, w: (op.overload(x, w), 0))
    assert "vmap" in failing(op)


def test_wrong_fake() -> None:
    op = product()
    op.fake(lambda x, w: x.new_empty((*x.shape, 1)))
    assert any("opcheck" in name for name in failing(op))


def test_a_public_function_around_an_op_needs_a_reference() -> None:
    op = product()

    def public(x: Tensor, w: Tensor) -> Tensor:
        return op(x, w)

    with pytest.raises(TypeError, match=r"reference is required"):
        check_op(public, SAMPLES)
    assert not failing(public, reference=lambda x, w: x * w.sin())


def test_all_failures_are_in_the_message() -> None:
    op = product()
    op.kernel("cpu")(lambda x, w: x.detach() * w.detach())
    with pytest.raises(CheckFailure) as caught:
        check_op(op, [*SAMPLES, Sample((torch.randn(4), torch.randn(4)), name="vector")], backends=())
    report, text = caught.value.report, str(caught.value)
    assert len(report.failures) > 20
    assert {row.sample for row in report.failures} == {"pair", "vector"}
    assert "primal" in text and "gradcheck" in text and f"{len(report.failures)} failed" in text


def test_a_report_of_many_failures_leads_with_the_simplest() -> None:
    op = product()
    right_jvp(op)

    @op.vjp
    def _(cotangents: Any, inputs: Any) -> Any:
        return cotangents[0] * inputs.w.cos(), cotangents[0] * inputs.x * inputs.w.cos()

    report = check_op(op, SAMPLES, backends=(), raise_on_failure=False)
    first, text = report.failures[0], str(report)
    assert len(report.failures) > 8
    assert f"first of them: {first.name}, sample pair (value)\n  {first.problem}\n" in text
    eager = [row for row in report.rows if row.group == "eager"]
    failed = [row for row in eager if row.problem]
    assert f"{len(failed)} of {len(eager)}" in text and text.count("inner products") <= 2
    report.rows = [row for row in report.rows if row not in report.failures[1:]]
    assert "first of them" not in str(report) and str(report).count(first.name) == 1


def test_samples_as_people_write_them() -> None:
    @differentiable_op(f"tests::sine_{next(_names)}")
    def op(x: Tensor) -> Tensor:
        return x.sin()

    assert check_op(op, [torch.randn(3), (torch.randn(2, 2),)], backends=()).rows[0].sample == "0: (3,)"
    with pytest.raises(TypeError, match=r"samples must be a nonempty list"):
        check_op(op, [])
    with pytest.raises(TypeError, match=r"sample 0 must be a Sample or a tuple, got float"):
        check_op(op, [1.0])
    with pytest.raises(TypeError, match=r"has no floating-point tensor"):
        check_op(op, [torch.tensor([1, 2])])


def test_dynamic_shapes_need_two_sizes() -> None:
    op = product()
    report = check_op(op, SAMPLES, backends=("aot_eager",), dtypes=(), compiled_samples=0)
    assert any("no two samples differ" in (row.skipped or "") for row in report.rows)
