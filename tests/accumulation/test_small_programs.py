"""Programs of few numbers, run by their entries: what tensors give, at points where tensors hold infinities too."""

import math

import pytest
import torch
import torch.nn.functional as F
from jacobian_checks import F64, assert_same, randn
from replay_checks import program_of
from torch import Tensor

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation import program as programs
from torch_jvpvjp.accumulation.program import ProgramRecorder
from torch_jvpvjp.accumulation.replay import by_entries, small_or_whole
from torch_jvpvjp.accumulation.replay.numbers import Numbers

LANES = 64
TOLERANCE = {F64: 1e-10, torch.float32: 2e-5}


def arm(angles: Tensor) -> Tensor:
    """A chain of turns about two axes, with zeros among its numbers."""
    x, y, z = torch.eye(3, dtype=angles.dtype)
    at = 0 * x
    for c, s in zip(angles.cos(), angles.sin(), strict=True):
        x, y = c * x + s * y, c * y - s * x
        y, z = 0.6 * y + 0.8 * z, 0.6 * z - 0.8 * y
        at = at + 0.3 * x + 0.1 * z
    return torch.cat([at, x])


def functions(x: Tensor) -> Tensor:
    """Functions of one number, of entries that are positive and below one."""
    a, b, c = (x[..., i].sigmoid() for i in range(3))
    first = [a.sqrt() * b.log(), b.exp() / c, c.erf() - a.sinh(), torch.acos(a) * b**3, (a * b * c).rsqrt(), a**1.7]
    more = [a.expm1() * b.log1p(), torch.atan(c) / b.tan(), a.tanh() * b.cosh(), c.erfc() + 1 / a, b**-2 - 0.3 * c]
    return torch.stack([*first, *more], -1)


def kinks(x: Tensor) -> Tensor:
    """Functions with jumps in their slopes."""
    a, b, c = (x[..., i] for i in range(3))
    first = [a.abs() * b, torch.maximum(a, b), torch.minimum(b, c) * a, F.relu(a - b), torch.where(a > c, a * b, c)]
    positive = torch.where(a > 0, a, 1.0)
    return torch.stack([*first, torch.where((a > 0) & (b < 1) | ~(c > 0), positive.log(), b)], -1)


def products(x: Tensor) -> Tensor:
    """Products of small matrices, and sums."""
    matrix = torch.stack([x.sin(), x.cos(), x]) + torch.eye(3, dtype=x.dtype)
    return (matrix @ matrix.mT @ x + matrix.sum(0) * matrix.mean(1)).tanh()


def shifted(x: Tensor) -> Tensor:
    """Joins, shifts and slices."""
    longer = torch.cat([x, x.flip(-1) * x], -1)
    return (longer.roll(1, -1) * longer)[..., 1:].unflatten(-1, (1, -1)) * torch.arange(1.0, 6.0, dtype=x.dtype)


CASES = [arm, functions, kinks, products, shifted]
IN_LANES = [functions, kinks]


def quick_of(program):
    """Return a program as it is run by its entries; None if it is not."""
    if program.run is program.by_ops:
        return None
    return by_entries(program.calls, program.inputs, program.fixed, program.results, program.layouts)


@pytest.mark.parametrize("function", CASES)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_numbers_give_the_jacobians_of_every_point(function, dtype):
    x = randn(3).to(dtype)
    plan = plan_jacobian(function, x)
    program = program_of(plan, x)
    quick = quick_of(program)
    assert (quick is None) == (function is kinks and dtype is torch.float32)  # conditions are seen in float32
    for _ in range(4):
        x = randn(3).to(dtype)
        expected = torch.func.jacrev(function)(x.double()).to(dtype)
        assert_same(plan(x), expected, TOLERANCE[dtype])
        if quick is not None:
            (found,) = quick(x, *plan.runtime.tracing(x).constants.values())
            assert_same(found, expected, TOLERANCE[dtype])
            assert found.dtype == dtype
            assert found.stride() == plan(x).stride()


@pytest.mark.parametrize("function", IN_LANES)
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_lanes_give_the_jacobians_of_every_batch(function, dtype, monkeypatch):
    monkeypatch.setattr("torch_jvpvjp.accumulation.replay.small._MOST_RETURNED", 0)  # numbers of all lanes are more
    monkeypatch.setattr("torch_jvpvjp.accumulation.replay.small._ROW", 0.01)
    x = randn(LANES, 3).to(dtype)
    plan = plan_jacobian(function, x, batch_dims=1)
    quick = quick_of(program_of(plan, x))
    assert quick is not None
    for _ in range(4):
        x = randn(LANES, 3).to(dtype)
        expected = torch.func.vmap(torch.func.jacrev(function))(x.double()).to(dtype)
        (found,) = quick(x)
        assert_same(found, expected, TOLERANCE[dtype])
        assert_same(plan(x), expected, TOLERANCE[dtype])
        assert found.is_contiguous()
        assert found.dtype == dtype


def _at_infinity(x: Tensor) -> Tensor:
    """What divides, roots and overflows, and a zero that meets all of them."""
    return torch.stack([x[0].log() / x[1], x[1].sqrt() * x[2], x[2].exp() * x[2].exp(), x[0] * x[2] + 0 * x[1]])


POINTS = [(0.0, 1, 1), (1, 0.0, 1), (-1, 2, 1), (1, -1, 1), (1, 2, 800), (math.inf, 1, 1), (1, math.nan, 1)]


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_infinities_are_those_of_tensors(point):
    x = torch.tensor([0.3, 0.7, 1.1], dtype=F64)
    plan = plan_jacobian(_at_infinity, x)
    assert quick_of(program_of(plan, x)) is not None
    at = torch.tensor(point, dtype=F64)
    (expected,) = program_of(plan, x).by_ops(at)
    torch.testing.assert_close(plan(at), expected, equal_nan=True, rtol=1e-12, atol=1e-12)
    assert not expected.isfinite().all()
    assert_same(plan(x), torch.func.jacrev(_at_infinity)(x))


@pytest.mark.parametrize("point", [math.inf, math.nan])
def test_what_is_multiplied_by_zero_is_found_finite(point):
    zero = torch.zeros(3, dtype=F64)

    def nothing(x: Tensor) -> Tensor:
        return (x * zero).exp() * zero + x * zero + zero.sin()

    x = torch.ones(3, dtype=F64)
    recorder = ProgramRecorder([x])
    with torch.no_grad(), recorder:
        results = [nothing(x)]
    program = recorder.program(recorder.numbers(results))
    quick = quick_of(program)
    assert quick is not None
    assert_same(quick(x)[0], zero)
    at = torch.tensor([1.0, point, 1.0], dtype=F64)
    with pytest.raises(ArithmeticError):
        quick(at)
    torch.testing.assert_close(program(at)[0], nothing(at), equal_nan=True)


def test_lanes_ask_tensors_where_zero_meets_infinity(monkeypatch):
    monkeypatch.setattr("torch_jvpvjp.accumulation.replay.small._MOST_RETURNED", 0)
    monkeypatch.setattr("torch_jvpvjp.accumulation.replay.small._ROW", 0.01)

    def f(x: Tensor) -> Tensor:
        return (
            torch.stack([x[..., 0].exp() * 0 + x[..., 1], x[..., 1] / x[..., 0], x[..., 0] * x[..., 1]], -1)
            * x[..., :1]
        )

    x = randn(LANES, 2)
    plan = plan_jacobian(f, x, batch_dims=1)
    assert quick_of(program_of(plan, x)) is not None
    for value in (1e6, math.inf, math.nan, 0.0):
        at = x.clone()
        at[7, 0] = value
        torch.testing.assert_close(plan(at), program_of(plan, x).by_ops(at)[0], equal_nan=True)


def test_every_call_has_a_result_of_its_own():
    x = randn(3)
    plan = plan_jacobian(arm, x)
    first, second = plan(x), plan(x)
    first.zero_()
    assert_same(second, torch.func.jacrev(arm)(x))
    assert_same(plan(x), second)


VIEWS = [lambda x: x.sin(), lambda x: x.T.exp(), lambda x: x.unbind(1)[0].sin(), lambda x: x.sum()]


@pytest.mark.parametrize("made", VIEWS)
def test_results_lie_as_those_of_tensors(made):
    def steps(x: Tensor) -> Tensor:
        return made((x * x).cos() * x.sin() + x.exp())

    x = randn(2, 3)
    recorder = ProgramRecorder([x])
    with torch.no_grad(), recorder:
        results = [steps(x), steps(x).clone()]
    program = recorder.program(recorder.numbers(results))
    assert program is not None
    quick = quick_of(program)
    assert quick is not None
    for found, expected in zip(quick(x), program.by_ops(x), strict=True):
        assert_same(found, expected)
        assert found.stride() == expected.stride()


def test_weights_count_as_they_are_in_each_call():
    weight = randn(3)
    plan = plan_jacobian(lambda x: (x * weight).sin().cumsum(0) * x.prod(), randn(3))
    for _ in range(3):
        x = randn(3)
        weight.normal_()
        assert_same(plan(x), torch.func.jacrev(lambda x: (x * weight).sin().cumsum(0) * x.prod())(x))


def test_points_that_require_grad_or_lie_in_columns_are_taken():
    x = randn(3)
    plan = plan_jacobian(arm, x)
    plan(x)
    assert_same(plan(x.clone().requires_grad_()), torch.func.jacrev(arm)(x))
    assert_same(plan(torch.stack([x, x], 1)[:, 0]), torch.func.jacrev(arm)(x))
    assert_same(plan(torch._neg_view(-x)), torch.func.jacrev(arm)(x))


def test_large_programs_are_left_to_tensors():
    x = randn(40, 40)
    assert quick_of(program_of(plan_jacobian(lambda x: (x @ x.sin()).tanh().exp().sum(0), x), x)) is None


def test_entries_are_given_up_where_they_never_tell():
    calls = {"small": 0, "whole": 0}

    def small(*inputs):
        calls["small"] += 1
        raise ZeroDivisionError

    def whole(x):
        calls["whole"] += 1
        return (x,)

    run = small_or_whole(whole, lambda: small)
    for _ in range(50):
        run(randn(1))
    assert calls["whole"] == 50
    assert calls["small"] < 20


def test_tensors_without_data_go_by_ops():
    x = randn(3)
    plan = plan_jacobian(arm, x)
    program, constants = program_of(plan, x), plan.runtime.tracing(x).constants.values()
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert program.run(mode.from_tensor(x), *map(mode.from_tensor, constants))[0].shape == (6, 3)


def test_arithmetic_is_written_down_once_and_simplified():
    numbers = Numbers(F64)
    a, b = numbers.given(), numbers.given()
    one, two = numbers.constant(1.0), numbers.constant(2.0)
    assert numbers.mul(a, b) == numbers.mul(b, a)
    assert numbers.mul(a, one) == a
    assert numbers.add(a, 0) == a
    assert numbers.add(one, one) == two
    assert numbers.neg(numbers.neg(a)) == a
    assert numbers.add(a, numbers.neg(b)) == numbers.sub(a, b)
    assert numbers.sub(a, numbers.neg(b)) == numbers.add(a, b)
    assert numbers.mul(numbers.neg(a), numbers.neg(b)) == numbers.mul(a, b)
    assert numbers.needed([two]) == ([], [])
    assert numbers.mul(numbers.add(a, b), 0) == 0
    order, checked = numbers.needed([a])
    assert len(checked) == 1  # that a + b is finite
    assert {a, b} < set(order)


def test_programs_are_made_by_entries_once_in_their_first_call(monkeypatch):
    made = []
    before = programs.by_entries
    monkeypatch.setattr(programs, "by_entries", lambda *args: made.append(1) or before(*args))
    x = randn(3)
    plan = plan_jacobian(arm, x)
    assert not made
    for _ in range(3):
        plan(x)
    assert len(made) == 1
