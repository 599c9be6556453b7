"""An op is right at every order, in every composition, with every subset of its rules present."""

from functools import cache
from typing import Any

import pytest
import torch
from example_ops import EXAMPLES, sample_args, subsets

from torch_jvpvjp.testing import Sample
from torch_jvpvjp.testing.budget import assert_equal
from torch_jvpvjp.testing.case import Case
from torch_jvpvjp.testing.compiled import PyTorchCannot, check_compiled, compositions_for
from torch_jvpvjp.testing.compositions import EAGER


def _slow_unless(quick: bool) -> list[pytest.MarkDecorator]:
    return [] if quick else [pytest.mark.slow]


CASES = [
    pytest.param(name, rules, id=f"{name}-{'+'.join(rules) or 'no rules'}", marks=_slow_unless(rules in ((), all_)))
    for name, (_, all_) in EXAMPLES.items()
    for rules in subsets(all_)
]
EXTREMES = [
    pytest.param(name, rules, id=f"{name}-{'all' if rules else 'no'} rules")
    for name, (_, all_) in EXAMPLES.items()
    for rules in ((), all_)
]

# Compiled for every kind of op. What the other compositions add is not the op's: CI compiles them for one op without
# rules, and for two with all of them in tests/ops/test_every_op.py; `make test-all` for every one.
ELEMENTARY = ("primal", "func.jvp", "grad", "backward", "jvp∘grad", "grad∘jvp", "grad∘grad", "vmap", "vmap∘jvp")


def _in_ci_for(name: str, rules: tuple[str, ...]) -> list[Any]:
    return [
        pytest.param(*case.values, id=case.id, marks=[] if case.values == (name, rules) else [pytest.mark.exhaustive])
        for case in EXTREMES
    ]


@cache
def sample_of(name: str) -> Sample:
    return Sample(sample_args(name))


def case_of(name: str, rules: tuple[str, ...]) -> Case:
    op = EXAMPLES[name][0](rules)
    return Case(op, op.reference, sample_of(name))


@cache
def expected(name: str) -> dict[str, object]:
    """What every composition of the formula gives: one formula with any subset of rules."""
    case = case_of(name, ())
    return {label: composition(case.function(case.reference), case.point) for label, composition in EAGER.items()}


@pytest.mark.parametrize(("name", "rules"), CASES)
def test_every_composition_is_that_of_the_formula(name: str, rules: tuple[str, ...]) -> None:
    case = case_of(name, rules)
    for label, composition in EAGER.items():
        assert_equal(composition(case.function(case.op), case.point), expected(name)[label], f"{label}: ")


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize(("name", "rules"), EXTREMES)
def test_compositions_that_others_are_made_of_compile(name: str, rules: tuple[str, ...]) -> None:
    case = case_of(name, rules)
    for label in ELEMENTARY:
        check_compiled(case, label, EAGER[label], "aot_eager")
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.compiled
@pytest.mark.parametrize(("name", "rules"), _in_ci_for("waves", ()))
def test_every_other_composition_compiles_where_that_of_the_formula_does(name: str, rules: tuple[str, ...]) -> None:
    case = case_of(name, rules)
    impossible = []
    for label, composition in compositions_for("aot_eager").items():
        try:
            if label not in ELEMENTARY:
                check_compiled(case, label, composition, "aot_eager")
        except PyTorchCannot:
            impossible.append(label)
    gaps = 12 if torch.__version__.startswith("2.11.") else 8  # PyTorch's own, a handful in each release
    assert len(impossible) < gaps, impossible
    torch.compiler.reset()


def test_a_rule_of_a_rule_is_used_at_its_order() -> None:
    from example_ops import fresh_name

    from torch_jvpvjp import differentiable_op

    used: list[str] = []

    @differentiable_op(fresh_name("square"))
    def op(x: torch.Tensor) -> torch.Tensor:
        return x * x

    @op.jvp
    def _(primals, tangents):
        used.append("jvp")
        return primals.x * primals.x, 2 * primals.x * tangents.x

    @op.vjp
    def _(cotangents, inputs):
        used.append("vjp")
        return 2 * inputs.x * cotangents.y

    @op.jvp.vjp
    def _(cotangents, inputs):
        used.append("jvp.vjp")
        x, x_dot = inputs
        a = 0 if cotangents.y_dot is None else cotangents.y_dot
        b = 0 if cotangents.y is None else cotangents.y
        return 2 * x * b + 2 * x_dot * a, 2 * x * a

    @op.vjp.jvp
    def _(primals, tangents):
        used.append("vjp.jvp")
        x, y_bar = primals.x, primals.y_bar
        dotted = 0 if tangents.x is None else 2 * tangents.x * y_bar
        dotted = dotted if tangents.y_bar is None else dotted + 2 * x * tangents.y_bar
        return 2 * x * y_bar, dotted

    x, v = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    hvp = torch.func.jvp(torch.func.grad(lambda t: op(t).sum()), (x,), (v,))[1]
    torch.testing.assert_close(hvp, 2 * v)
    assert "vjp.jvp" in used
    used.clear()
    through = torch.func.grad(lambda t: torch.func.jvp(op, (t,), (v,))[1].sum())(x)
    torch.testing.assert_close(through, 2 * v)
    assert "jvp.vjp" in used
    assert sorted(op.points()) == ["", "jvp", "jvp.vjp", "vjp", "vjp.jvp"]


def test_a_pushed_pullback_may_return_more_tangents_than_are_wanted() -> None:
    from example_ops import fresh_name

    from torch_jvpvjp import differentiable_op

    @differentiable_op(fresh_name("product"))
    def op(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return x * z

    @op.vjp
    def _(cotangents, inputs):
        return inputs.z * cotangents.y, inputs.x * cotangents.y

    @op.vjp.jvp
    def _(primals, tangents):
        zero = torch.zeros_like(primals.x)
        x_dot, z_dot, a = (zero if t is None else t for t in (tangents.x, tangents.z, tangents.y_bar))
        x, z, y_bar = primals.x, primals.z, primals.y_bar
        return (z * y_bar, x * y_bar), (z_dot * y_bar + z * a, x_dot * y_bar + x * a)

    x, z, v = (torch.randn(4, dtype=torch.float64) for _ in range(3))
    for of_one in (lambda x: op(x, z), lambda x: op(z, x)):
        pushed = torch.func.jvp(torch.func.grad(lambda x, f=of_one: f(x).pow(3).sum()), (x,), (v,))[1]
        torch.testing.assert_close(pushed, 6 * x * z**3 * v)
