"""Functions that look at values are called as they stand: once in each plan, and every plan of them is the same."""

import dataclasses
import logging.handlers

import pytest
import torch
from jacobian_checks import F64, assert_same, composed, judged, opaque, randn
from torch import nn

from torch_jvpvjp.accumulation import Action, Bracket, Chain, Fma, Mode, Problem, jacobian, plan_jacobian
from torch_jvpvjp.accumulation.assemble import assemble


def _black_boxes(calls, *functions):
    """Return functions that cannot be recorded, since they look at values, and that say when they run."""

    def boxed(place, function):
        def stage(v):
            calls.append(place)
            return function(v) if float(v.detach().sum()) < 1e9 else v

        return stage

    return [boxed(place, function) for place, function in enumerate(functions, 1)]


@pytest.mark.parametrize("strategy", ["forward", "reverse", "greedy", "dynamic_programming"])
def test_the_primal_of_a_black_box_is_run_once(strategy):
    calls = []
    first, second, third = _black_boxes(calls, torch.sin, opaque, lambda v: v[:2])
    x = torch.linspace(0, 1, 6, dtype=F64)
    plan = plan_jacobian([first, nn.Tanh(), second, third], x, strategy=strategy)
    for _ in range(2):
        calls.clear()
        plan(x)
        assert calls == [1, 2, 3]


def test_a_recorded_function_is_not_run_again():
    log, runs = logging.Logger("runs"), logging.handlers.BufferingHandler(1000)
    log.addHandler(runs)  # what is logged is not watched
    weights = torch.arange(6.0, dtype=F64)

    def function(v):
        log.warning("it runs")
        return v.sin() * weights

    x = torch.linspace(0, 1, 6, dtype=F64)
    plan = plan_jacobian(function, x)
    assert runs.buffer
    assert not plan.runtime.refusals()
    runs.buffer.clear()
    for by in (0.0, 1.0, 2.0):
        plan(x + by)
    assert not runs.buffer


def _planned_by_hand(stages, x, brackets):
    chain = Chain(stages)
    factors = chain.plan(x).factors
    plan = assemble(Problem(factors, Fma()), brackets, strategy="by hand")
    return plan, chain


def test_the_primal_is_run_once_when_a_later_block_is_formed_first():
    calls = []
    stages = _black_boxes(calls, lambda v: v * v.flip(0), lambda v: torch.sin(v.repeat(10)), lambda v: v.cumsum(0)[:1])
    x = torch.linspace(0.1, 1, 10, dtype=F64)
    plan, chain = _planned_by_hand(
        stages,
        x,
        [
            Bracket(Action.ACCUMULATE, Mode.TANGENT, 1, 1, 1),
            Bracket(Action.ACCUMULATE, Mode.TANGENT, 2, 2, 2),
            Bracket(Action.ELIMINATE, Mode.TANGENT, 3, 2, 2),
            Bracket(Action.MULTIPLY, None, 3, 1, 1),
        ],
    )
    steps = plan.steps
    plan = dataclasses.replace(plan, steps=(*steps[1:3], steps[0], steps[3]))  # (2, 2, 2) needs the value of F1 first
    jacobian(chain, x, plan=plan)  # the first call looks at what the functions do
    calls.clear()
    found = jacobian(chain, x, plan=plan)
    # F1 looks at data and is passed before it is pushed through, so that it cannot be recorded on the way.
    assert calls.count(2) == calls.count(3) == 1
    torch.testing.assert_close(found, torch.func.jacrev(composed(stages))(x))


def _all_plans(problem):
    """Every plan of a short chain, as brackets."""

    def ways(j, i):
        if i == j:
            yield from ([Bracket(Action.ACCUMULATE, mode, i, i, i)] for mode in problem.leaf_modes(i))
        for k in range(i, j):
            for action, mode in (
                (Action.MULTIPLY, None),
                (Action.ELIMINATE, Mode.TANGENT),
                (Action.ELIMINATE, Mode.ADJOINT),
            ):
                step = Bracket(action, mode, j, k, i)
                if not problem.allows(step):
                    continue
                operands = step.operands
                for first in ways(*operands[0]):
                    for second in ways(*operands[1]) if len(operands) > 1 else [[]]:
                        yield [*first, *second, step]

    return list(ways(problem.length, 1))


def test_all_plans_of_a_chain_agree():
    torch.manual_seed(0)
    stages = [_black_boxes([], opaque)[0], nn.Linear(4, 3, dtype=F64), nn.Tanh()]
    x = torch.randn(4, dtype=F64)
    chain = Chain(stages)
    problem = Problem(chain.plan(x).factors, Fma())
    plans = _all_plans(problem)
    assert len(plans) > 20
    expected = torch.func.jacrev(composed(stages))(x)
    for brackets in plans:
        plan = assemble(problem, brackets, strategy="by hand")
        torch.testing.assert_close(jacobian(chain, x, plan=plan), expected, rtol=1e-12, atol=1e-13)


def _of_any_shape(shape):
    """A black box, which hands a fraction to Python, that returns as many rows and columns as a list says by then."""

    def function(v):
        return (v * float(v.max().sin())).reshape(shape) if shape else v[:2] * float(v.max())

    return function


@pytest.mark.parametrize("options", [{}, {"create_graph": True}, {"chunk_size": 2}], ids=str)
@pytest.mark.parametrize("behind", [[], [lambda y: (y.sin() * y[0]).sum(-1)]], ids=["alone", "with a stage behind it"])
def test_a_black_box_that_returns_another_shape_is_taken_apart_anew(behind, options):
    shape, x = [2, 3], randn(6)
    f = [_of_any_shape(shape), *behind]
    plan = plan_jacobian(f, x, **options)
    for now in ([2, 3], [3, 2], [3, 2], [], [6, 1], [2, 3]):
        shape[:] = now
        expected = judged(composed(f), x)
        assert_same(plan(x), expected)
        assert_same(jacobian(f, x, objective="fma", **options), expected)


def test_a_black_box_that_returns_another_dtype_is_taken_apart_anew():
    wide, x = [True], randn(3)

    def function(v):
        y = v * float(v.max())
        return y if wide[0] else y.float()

    plan = plan_jacobian([function, torch.sin], x)
    for wide[0] in (True, False, True):
        found = plan(x)
        assert found.dtype == function(x).dtype
        assert_same(found.double(), judged(lambda v: function(v).sin(), x).double(), 1e-6)


def test_a_way_that_is_not_recorded_returns_another_shape_than_before():
    x = randn(4)

    def function(v):  # another way at each point, and of another size
        return v[: 2 + int(10 * v[0]) % 3] * float(v.sum())

    plan = plan_jacobian(function, x)
    for place in range(12):
        point = x + place / 10
        assert_same(plan(point), judged(function, point))
