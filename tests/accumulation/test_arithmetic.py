"""Programs compute nothing that is there already, and do in one op what one op does."""

from functools import reduce

import pytest
import torch
from jacobian_checks import F64, assert_same, check_jacobian, judged, randn
from replay_checks import program_of, run_calls

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.calls import without_unused
from torch_jvpvjp.accumulation.program import ProgramRecorder
from torch_jvpvjp.accumulation.replay import joined, unit_factors, with_own_results, without_idle_arithmetic
from torch_jvpvjp.accumulation.replay.layout import Layouts

ATEN = torch.ops.aten
ONES = torch.ones(3, 4, dtype=F64)
ROW, TURNED = ONES[0].clone(), ONES.T
ALMOST = ONES + torch.eye(3, 4, dtype=F64)


def rewritten(function, x):
    """Return the calls of a function as they are rewritten, what they give, and what the function gives."""
    recorder = ProgramRecorder([x])
    with recorder, torch.no_grad():
        results = function(x)
    layouts = recorder._layouts
    numbers = [recorder._number(result) for result in results]
    ones = unit_factors(recorder._calls, recorder._fixed)
    calls, numbers = without_idle_arithmetic(recorder._calls, numbers, layouts, recorder._next, ones=ones)
    calls = joined(without_unused(calls, numbers), numbers, layouts)
    calls, numbers = with_own_results(without_unused(calls, numbers), numbers, layouts, recorder._next)
    values = run_calls(calls, {0: x, **recorder._fixed})
    for index, value in values.items():
        assert (layouts[index].shape, layouts[index].stride) == (value.shape, value.stride()), index
    return [call.target for call in calls], [values[index] for index in numbers], list(results)


def slices(x, places, shape=(3, 4)):
    """Return the sum of tensors that hold a row of x each, at some places, and are zero else."""
    return reduce(torch.add, [ATEN.select_backward(x[k].sin(), shape, 0, place) for k, place in enumerate(places)])


# name: (function of a tensor (3, 4) with a list of tensors as its value, the ops that are left)
REWRITTEN = {
    "by one": (lambda x: [ATEN.mul.Tensor(x.sin(), 1) / 1.0], "sin"),
    "by ones": (lambda x: [ONES * x.sin() * ROW], "sin"),
    "by what is one but for an entry": (lambda x: [x.sin() * ALMOST], "sin mul"),
    "by ones that are more": (lambda x: [x[0].sin() * ONES], "select sin mul"),
    "by ones of a wider dtype": (lambda x: [x.float().sin() * ONES], "_to_copy sin mul"),
    "a strided one by ones": (lambda x: [(x.sin().T * TURNED).exp()], "sin permute exp"),
    "stacked alone": (
        lambda x: [torch.stack([x.sin()], 1).exp(), torch.stack([x.sin()], -1)], "sin clone unsqueeze exp"
    ),
    "the input stacked alone": (lambda x: [torch.stack([x])], None),
    "a transpose stacked alone": (lambda x: [torch.stack([x.T], 1) * x[0, 0]], None),
    "to the power of one": (lambda x: [x.sin() ** 1], "sin"),
    "the input itself": (lambda x: [x * 1, x * 1], "clone"),
    "a strided one": (lambda x: [(x.sin().T * 1).exp()], "sin permute exp"),
    "an expanded one": (lambda x: [x[0].expand(3, 4) ** 1], "select expand pow"),
    "integers": (lambda x: [(x > 0).long() * 1.0], None),
    "a number": (lambda x: [x.sum().view(1) * x.sin()[:, :1]], None),
    "of numbers alone": (lambda x: [x.sum().view(1) * 3], "sum view mul"),
    "all rows": (lambda x: [slices(x, (2, 0, 1))], "select sin stack"),
    "rows from the end": (lambda x: [slices(x, (-1, 0, -2))], "select sin stack"),
    "not all rows": (lambda x: [slices(x, (2, 0))], None),
    "a row twice": (lambda x: [slices(x, (2, 0, 1)) + slices(x, (2, 0, 1))], None),
    "a sum used twice": (lambda x: [(y := slices(x, (0, 1, 2))), y.sin()], None),
    "sum and product": (lambda x: [x.exp() + x.sin() * x.cos()], "exp sin cos addcmul"),
    "difference": (lambda x: [x.exp() - x.sin() * x.cos()], "exp sin cos addcmul"),
    "product minus": (lambda x: [x.sin() * x.cos() - x.exp()], None),
    "broadcast": (lambda x: [x[0] + x[:, :1] * x.sum()], None),
    "product of one": (lambda x: [x.exp() + (y := x.sin()) * y], None),
    "a product used twice": (lambda x: [(p := x.sin() * x.cos()), x + p], None),
    "mixed dtypes": (lambda x: [x.float() + x.float() * x.sum()], None),
    "half precision": (lambda x: [(h := x.bfloat16()).exp() + h.sin() * h], None),
    "twice the product": (lambda x: [torch.add(x, x.sin() * x.cos(), alpha=2)], None),
}  # fmt: skip


@pytest.mark.parametrize(("function", "left"), REWRITTEN.values(), ids=REWRITTEN)
def test_rewritten_programs_give_the_same(function, left):
    targets, found, expected = rewritten(function, torch.rand(3, 4, dtype=F64) + 0.1)
    assert_same(found, expected, 1e-14)
    names = {target.overloadpacket.__name__ for target in targets}
    assert left is None or names == set(left.split())


def test_slices_that_are_seen_otherwise_are_a_stack_seen_otherwise():
    def function(x):
        parts = [ATEN.select_backward(x[:, k : k + 1].exp(), (3, 1, 4), 2, k).view(3, 4) for k in range(4)]
        return [parts[0] + parts[1] + (parts[2] + parts[3])]

    targets, found, expected = rewritten(function, randn(3, 4))
    assert_same(found, expected, 0.0)
    assert ATEN.stack.default in targets and ATEN.select_backward.default not in targets


def test_large_broadcast_products_are_left_alone():
    targets, found, expected = rewritten(lambda x: [x + x.sin() * x[0]], randn(70, 70))
    assert_same(found, expected, 0.0)
    assert ATEN.addcmul.default not in targets
    assert ATEN.addcmul.default in rewritten(lambda x: [x + x.sin() * x.cos()], randn(70, 70))[0]


def components(x):
    a, b, c = x[0], x[1], x[2]
    return torch.stack([a * b - c / a, (a + 1.0 * b * c).sqrt(), -c * b + a**2 * 1])


@pytest.mark.parametrize("strategy", ["forward", "reverse"])
def test_functions_of_components(strategy):
    x = torch.rand(3, dtype=F64) + 1
    check_jacobian(components, x, strategy=strategy)
    targets = {call.target for call in program_of(plan_jacobian(components, x, strategy=strategy), x).calls}
    assert ATEN.select_backward.default not in targets
    assert ATEN.addcmul.default in targets
    batch = torch.rand(5, 3, dtype=F64) + 1
    expected = torch.stack([judged(components, one) for one in batch])
    plan = plan_jacobian(lambda v: components(v.T).T, batch, batch_dims=1, strategy=strategy)
    for _ in range(3):
        assert_same(plan(batch), expected)


def test_tangents_that_are_copied_into_views_are_replayed():
    """In forward mode a tangent is copied into memory that lies as that of its primal."""

    def turns(angles):
        position = torch.zeros(2, dtype=F64)
        for angle in angles.unbind():
            c, s = angle.cos(), angle.sin()
            position = torch.stack([torch.stack([c, -s]), torch.stack([s, c])]) @ position + torch.stack([c, s])
        return position

    plan = plan_jacobian(turns, x := randn(6))
    for _ in range(3):
        assert_same(plan(x), judged(turns, x))
    assert plan.runtime.tracing(x).replayable


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, -0.0], ids=str)
def test_special_values_are_those_of_the_ops_apart(value):
    x = torch.full((3, 4), value, dtype=F64)
    _, found, expected = rewritten(lambda x: [x.exp() - x.sin() * x, 1 * x, x + x.cos() * x], x)
    assert_same_with_nan(found, expected)


def assert_same_with_nan(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_layouts_are_told_apart_by_the_types_of_numbers():
    recorder = ProgramRecorder([x := torch.arange(3)])
    with recorder:
        results = [x * 1, x * 1.0, x * True]
    layouts = Layouts({0: recorder._layouts[0]})
    for call, result in zip(recorder._calls, results, strict=True):
        layouts.add(call)
        assert layouts[call.outputs[0]].dtype is result.dtype


def test_constant_weights_have_no_tangents():
    """Forward mode convolves the primal with the tangent of the weights, which is zero where they have none."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(4, 32), torch.nn.Unflatten(-1, (2, 4, 4)), torch.nn.Conv2d(2, 3, 3, padding=1), torch.nn.Tanh(),
        torch.nn.ConvTranspose2d(3, 2, 2, 2), torch.nn.Tanh(), torch.nn.Conv2d(2, 5, 3, bias=False),
    ).double()  # fmt: skip
    x = randn(1, 4)
    plan = plan_jacobian(net, x, strategy="forward")
    convolutions = [call for call in program_of(plan, x).calls if call.target is ATEN.convolution.default]
    assert len(convolutions) == 5  # three of the tangents, two of the primal, whose last value nobody needs
    assert plan.peak_bytes is not None  # which is told without data
    for _ in range(3):
        assert_same(plan(x), judged(net, x))


@pytest.mark.parametrize("alpha", [1, 2])
def test_sums_with_convolutions_by_zero(alpha):
    def function(x):
        weights = torch.zeros(1, 1, 2, 2, dtype=F64)
        other = (x + 0.5).sin().view(1, 1, 3, 4)
        zero = torch.conv2d(x.view(1, 1, 3, 4), weights)
        return torch.add(zero, other[..., :2, :3], alpha=alpha), torch.add(zero, other.sum(), alpha=alpha), zero

    recorder = ProgramRecorder([x := randn(3, 4)])
    with recorder, torch.no_grad():
        expected = function(x)
    program = recorder.program(recorder.numbers(expected))
    assert program is not None
    assert_same(list(program(x)), list(expected), 0.0)
