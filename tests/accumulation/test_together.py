"""Like calls of a program run as one, and give what they gave one by one."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jacobian_checks import F64, assert_same, check_jacobian, judged, randn
from replay_checks import program_of, run_calls

from torch_jvpvjp.accumulation import plan_jacobian
from torch_jvpvjp.accumulation.calls import ProgramCall
from torch_jvpvjp.accumulation.replay import Layouts, Worth, layout_of, run_together
from torch_jvpvjp.accumulation.replay.alike import alike_groups, in_order
from torch_jvpvjp.accumulation.replay.together import _attempt, _Stacking
from torch_jvpvjp.accumulation.tracing.tape import Ref

ATEN = torch.ops.aten
ALWAYS = Worth(float("inf"), least=2)


class Builder:
    """Writes a program on real tensors."""

    def __init__(self, *inputs):
        self.values = dict(enumerate(inputs))
        self.layouts = Layouts({index: layout_of(value) for index, value in self.values.items()})
        self.calls = []

    def new_value(self):
        """Return the number of another value."""
        self.values[len(self.values)] = None
        return len(self.values) - 1

    def call(self, target, *args, **kwargs):
        """Add a call of values by their numbers, written as `Ref`s, and return those of its results."""
        count = 3 if target is ATEN.unbind.int else 1
        outputs = [self.new_value() for _ in range(count)]
        self.calls.append(ProgramCall(target, args, kwargs, outputs))
        self.values |= run_calls(self.calls[-1:], self.values)
        self.layouts |= {index: layout_of(self.values[index]) for index in outputs}
        return outputs if count > 1 else outputs[0]

    def together(self, results, worth=ALWAYS):
        """Return what all calls give that are needed, groups forced to be one even where nothing is gained."""
        groups = alike_groups(self.calls, self.layouts, worth.least, worth.launch_bytes)
        stacking = _Stacking(self.calls, self.layouts, self.new_value, worth)
        stacking = _attempt(self.calls, groups, results, stacking)
        return stacking, run_calls(stacking.calls, self.values | stacking.fixed, anew=True)


STACKS = {  # op, its arguments: "s…" is another value in each call, "w…" the same; and what follows
    "mul": (ATEN.mul.Tensor, "s4", "s4"),
    "mul by row": (ATEN.mul.Tensor, "s34", "s4"),
    "mul by shared": (ATEN.mul.Tensor, "s4", "w34"),
    "slope of tanh": (ATEN.tanh_backward.default, "w4", "s4"),
    "slope of sigmoid": (ATEN.sigmoid_backward.default, "s34", "w4"),
    "add number": (ATEN.add.Tensor, "s34", 2.5),
    "tanh": (ATEN.tanh.default, "s34"),
    "where": (ATEN.where.self, "w4b", "s4", "w4"),
    "mm": (ATEN.mm.default, "s34", "s42"),
    "mm by shared": (ATEN.mm.default, "s34", "w42"),
    "shared by mm": (ATEN.mm.default, "w34", "s42"),
    "mv": (ATEN.mv.default, "s34", "s4"),
    "mv of shared": (ATEN.mv.default, "w34", "s4"),
    "mv by shared": (ATEN.mv.default, "s34", "w4"),
    "addmv": (ATEN.addmv.default, "s3", "s34", "s4"),
    "addmv of shared": (ATEN.addmv.default, "s3", "w34", "s4"),
    "addmv all shared but x": (ATEN.addmv.default, "w3", "w34", "s4"),
    "addmv of shared x": (ATEN.addmv.default, "s3", "w34", "w4"),
    "bmm": (ATEN.bmm.default, "s234", "s242"),
    "bmm of shared": (ATEN.bmm.default, "w234", "s242"),
    "view": (ATEN.view.default, "s34", [2, 6]),
    "clone": (ATEN.clone.default, "s34"),
    "t": (ATEN.t.default, "s34"),
    "t of a vector": (ATEN.t.default, "s4"),
    "permute": (ATEN.permute.default, "s234", [2, 0, -2]),
    "expand": (ATEN.expand.default, "s31", [2, 3, 4]),
    "transpose": (ATEN.transpose.int, "s234", 0, -1),
    "select": (ATEN.select.int, "s34", -1, 2),
    "slice": (ATEN.slice.Tensor, "s34", 1, 1, 3),
    "unsqueeze": (ATEN.unsqueeze.default, "s4", -1),
    "unsqueeze first": (ATEN.unsqueeze.default, "s4", 0),
    "squeeze": (ATEN.squeeze.dim, "s31", 1),
    "sum": (ATEN.sum.dim_IntList, "s234", [0, -1]),
    "sum kept": (ATEN.sum.dim_IntList, "s34", [1], True),
    "mean": (ATEN.mean.dim, "s34", [0]),
    "number": (ATEN.mul.Tensor, "s", "s34"),
}


@pytest.mark.parametrize("name", STACKS)
def test_each_op_gives_for_a_stack_what_it_gives_one_by_one(name):
    target, *template = STACKS[name]
    builder, shared = Builder(), {}
    generator = torch.Generator().manual_seed(0)

    def tensor(kind):
        shape = [int(size) for size in kind[1:] if size.isdigit()]
        value = torch.randn(shape, dtype=F64, generator=generator)
        value = value > 0 if kind.endswith("b") else value
        index = builder.new_value()
        builder.values[index], builder.layouts[index] = value, layout_of(value)
        return Ref(index)

    def argument(kind):
        if not isinstance(kind, str):
            return kind
        return shared.setdefault(kind, tensor(kind)) if kind.startswith("w") else tensor(kind)

    results = [builder.call(target, *map(argument, template)) for _ in range(5)]
    stacking, values = builder.together(results)
    if name not in {"bmm of shared", "t of a vector"}:
        assert stacking.gains
        taken_out = 5 if target is ATEN.select.int else 0  # results are selected from the stack
        assert len([call for call in stacking.calls if call.target is target]) < 5 + taken_out
    for index in results:
        assert values[index].shape == builder.values[index].shape
        torch.testing.assert_close(values[index], builder.values[index], rtol=1e-12, atol=1e-12)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_random_programs_give_the_same_together(data):
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, dtype=F64, generator=generator) for shape in ((4,), (4,), (4, 4), (4, 4), (3, 4))]
    builder = Builder(*inputs)
    vectors, matrices = [0, 1, *builder.call(ATEN.unbind.int, Ref(4))], [2, 3]
    vectors.append(builder.call(ATEN.select.int, Ref(4), 0, 1))
    results = []
    for _ in range(data.draw(st.integers(5, 40))):
        # Mostly one of the latest values: chains get long, and generations many.
        vector, other = (Ref(vectors[-1 - min(data.draw(st.integers(0, 8)), len(vectors) - 1)]) for _ in range(2))
        matrix, second = (Ref(matrices[-1 - min(data.draw(st.integers(0, 6)), len(matrices) - 1)]) for _ in range(2))
        choice = data.draw(st.sampled_from(["tanh", "mul", "add", "mv", "addmv", "mm", "t", "scale", "sum", "stack"]))
        match choice:
            case "tanh":
                vectors.append(builder.call(ATEN.tanh.default, vector))
            case "mul":
                vectors.append(builder.call(ATEN.mul.Tensor, vector, other))
            case "add":
                vectors.append(builder.call(ATEN.add.Tensor, vector, other, alpha=0.5))
            case "mv":
                vectors.append(builder.call(ATEN.mv.default, matrix, vector))
            case "addmv":
                vectors.append(builder.call(ATEN.addmv.default, other, matrix, vector))
            case "mm":
                matrices.append(builder.call(ATEN.mm.default, matrix, second))
            case "t":
                matrices.append(builder.call(ATEN.t.default, matrix))
            case "scale":
                scaled = builder.call(ATEN.unsqueeze.default, vector, 1)
                matrices.append(builder.call(ATEN.mul.Tensor, Ref(scaled), matrix))
            case "sum":
                vectors.append(builder.call(ATEN.sum.dim_IntList, matrix, [1]))
            case "stack":
                matrices.append(builder.call(ATEN.stack.default, [vector, other, vector, other]))
    made = [index for call in builder.calls for index in call.outputs]
    results = data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=6, unique=True))
    _, values = builder.together(results)
    for index in results:
        # As in another order of summation: entries may have grown.
        scale = max(1.0, *(float(value.abs().max()) for value in builder.values.values() if value is not None))
        torch.testing.assert_close(values[index], builder.values[index], rtol=1e-10, atol=1e-12 * scale)


def test_groups_that_need_parts_of_each_other_are_dissolved():
    builder = Builder(randn(4), randn(4))
    a = builder.call(ATEN.tanh.default, Ref(0))
    b = builder.call(ATEN.sin.default, Ref(a))
    c = builder.call(ATEN.sin.default, Ref(1))
    d = builder.call(ATEN.tanh.default, Ref(c))
    groups = alike_groups(builder.calls, builder.layouts, 2, float("inf"))
    assert groups == [(0, 3), (1, 2)]
    assert in_order(builder.calls, groups) in ([(0, 3), (1,), (2,)], [(2,), (0, 3), (1,)], [(0,), (1, 2), (3,)])
    _, values = builder.together([b, d])
    assert_same([values[b], values[d]], [builder.values[b], builder.values[d]])


def test_what_gains_nothing_is_left_as_it_is():
    builder = Builder(*(randn(4) for _ in range(4)))
    results = [builder.call(ATEN.tanh.default, Ref(index)) for index in range(4)]
    assert run_together(builder.calls, results, builder.layouts, builder.new_value, ALWAYS) is None
    large = Builder(*(randn(4000) for _ in range(40)))
    results = [large.call(ATEN.tanh.default, Ref(index)) for index in range(40)]
    assert run_together(large.calls, results, large.layouts, large.new_value, Worth(1e3)) is None


STEPS = 24
COMPILED_STEPS = 8  # enough to run together; Inductor takes minutes for many
W = torch.randn(5, 5, dtype=F64, generator=torch.Generator().manual_seed(0)) / 5**0.5
DRIVE = torch.randn(STEPS, 5, dtype=F64, generator=torch.Generator().manual_seed(1))
B = torch.randn(5, dtype=F64, generator=torch.Generator().manual_seed(2)) / 10


def recurrence(h, steps=STEPS):
    for drive in DRIVE[:steps].to(h.dtype).unbind():
        h = torch.tanh(W.to(h.dtype) @ h + drive + B.to(h.dtype))
    return h


def euler(y, steps=STEPS):
    for _ in range(steps):
        y = y + 0.05 * torch.sin(W.to(y.dtype) @ y)
    return y


@pytest.mark.parametrize("function", [recurrence, euler])
@pytest.mark.parametrize("options", [{}, {"chunk_size": 2}, {"memory_limit": 4000}], ids=str)
def test_long_loops(function, options):
    check_jacobian(function, randn(5), **options)


@pytest.mark.parametrize("function", [recurrence, euler])
def test_long_loops_run_together(function):
    plan = plan_jacobian(function, x := randn(5))
    program = program_of(plan, x)
    products = [call for call in program.replayed if call.target in {ATEN.mm.default, ATEN.bmm.default}]
    assert len(program.replayed) < 5 * STEPS
    assert len(products) < 12  # a level of a tree each, where there are 23
    assert len(program_of(plan_jacobian(function, x, memory_limit=plan.peak_bytes), x).replayed) < 5 * STEPS
    for options in ({"chunk_size": 2}, {"memory_limit": plan.peak_bytes - 1}):
        limited = program_of(plan_jacobian(function, x, **options), x)
        assert limited.replayed is limited.calls


@pytest.mark.parametrize("function", [recurrence, euler])
def test_long_loops_in_float32_keep_their_dtype(function):
    x = randn(5)
    plan = plan_jacobian(function, x.float())
    for _ in range(3):
        assert plan(x.float()).dtype is torch.float32
    # Of 24 factors of norms around one, each rounded a few times.
    assert_same(plan(x.float()).double(), judged(function, x), 1e-4)


@pytest.mark.parametrize("function", [recurrence, euler])
def test_long_loops_of_a_batch(function):
    def each(x):
        return torch.stack([function(row) for row in x])

    x = randn(3, 5)
    plan = plan_jacobian(lambda x: torch.func.vmap(function)(x), x, batch_dims=1)
    expected = torch.stack([judged(function, row) for row in x])
    for _ in range(3):
        assert_same(plan(x), expected)
    assert_same(torch.func.vmap(plan_jacobian(function, x[0]))(x), expected)


@pytest.mark.parametrize("function", [recurrence, euler])
def test_gradients_flow_through_long_loops(function):
    x = randn(5).requires_grad_()
    plan = plan_jacobian(function, x, create_graph=True)
    for _ in range(2):
        (found,) = torch.autograd.grad(plan(x).sum(), x)
        (expected,) = torch.autograd.grad(torch.func.jacrev(function)(x).sum(), x)
        assert_same(found, expected)


@pytest.mark.compiled
@pytest.mark.slow
@pytest.mark.parametrize("function", [recurrence, euler])
def test_long_loops_compile(function):
    function, x = partial(function, steps=COMPILED_STEPS), randn(5)
    program = program_of(plan_jacobian(function, x), x)
    assert len(program.replayed) < len(program.calls)  # some run together, as of many steps
    plan = plan_jacobian(function, x).compile()
    for by in (0.0, 0.0, 0.25):
        assert_same(plan(x + by), judged(function, x + by))


def test_constants_of_equal_bits_are_one():
    def f(x):
        # Zeros of either sign are told apart: they are where the reciprocal is not the same.
        zeros = torch.zeros(4, dtype=x.dtype), -torch.zeros(4, dtype=x.dtype)
        return sum(torch.tanh(x) * torch.atan(1 / zero) for zero in zeros) + sum(torch.sin(k * x) for k in range(3))

    check_jacobian(f, randn(4))
    check_jacobian(euler, x := randn(5))
    program = program_of(plan_jacobian(euler, x), x)
    assert not [call for call in program.replayed if call.target is ATEN.stack.default and len(call.operands) != STEPS]
    assert len([call for call in program.replayed if call.target is ATEN.stack.default]) == 1


def test_products_of_two_that_depend_on_x_are_pushed_without_their_value():
    def f(x):
        left, right = x.view(3, 4).sin(), x.view(4, 3).cos()
        return (left @ right) @ (left @ left.mT) @ left.mv(right.sum(1))

    for strategy in ("forward", "reverse", "dynamic_programming"):
        check_jacobian(f, randn(12), strategy=strategy)
